"""A list of the models that can be loaded by a name or from a folder nearby, without reading their weights."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tokenizer.vqvae import TokenizerConfig
from var.hub.presets import AIM_RELEASED, RELEASED, SHIPPED
from var.models.aim import Encoder
from var.models.var import VAR
from var.utils.json_text import parse_json
from var.utils.paths import cache_folder

LICENSES = {"var-mini": "research only (ImageNet)", "var-emoji": "MIT"}  # of the shipped models, as their cards say


class Entry(NamedTuple):
    """A model; None where it does not say."""

    name: str  # as --model takes it
    origin: str
    parameters: int | None  # of transformer and tokenizer; of a released VAR, of the transformer
    image_side: int | None
    num_classes: int | None  # that it was trained on
    license: str


def list_models(runs: Path = Path("runs")) -> list[Entry]:
    """List shipped and released models, those converted in the cache, and those that runs wrote."""
    entries = [_read_folder(folder, name, "shipped", LICENSES[name]) for name, folder in SHIPPED.items()]
    for name, config in RELEASED.items():
        side = TokenizerConfig(scales=config.scales).image_side
        with torch.device("meta"):
            entries.append(Entry(name, "released", _count(VAR(config)), side, config.num_classes, "MIT"))
    for name, released in AIM_RELEASED.items():
        with torch.device("meta"):
            size = _count(Encoder(released.config))
        entries.append(Entry(name, "released", size, released.config.image_size, None, f"see {released.repository}"))
    for origin, folders in (("cache", cache_folder().glob("*")), ("run", runs.glob("*/model"))):
        found = [folder for folder in sorted(folders) if (folder / "transformer" / "config.json").is_file()]
        entries += [_read_folder(folder, str(folder), origin, "") for folder in found]
    return entries


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _read_folder(folder: Path, name: str, origin: str, license: str) -> Entry:
    """Describe a pipeline's folder by its headers; what cannot be read is left out."""
    try:
        config = parse_json((folder / "transformer" / "config.json").read_bytes())
        sizes = config["config"]
        tokenizer = parse_json((folder / "tokenizer" / "config.json").read_bytes())["config"]
        side = tokenizer["scales"][-1] * 2 ** (len(tokenizer["multipliers"]) - 1)
        files = [folder / part / "model.safetensors" for part in ("tokenizer", "transformer")]
        classes = len(config["classes"]) if config.get("classes") else sizes["num_classes"]
        return Entry(name, origin, sum(map(_count_file, files)), side, classes, license)
    except (OSError, ValueError, TypeError, LookupError, SafetensorError):
        return Entry(name, origin, None, None, None, license)


def _count_file(file: Path) -> int:
    with safe_open(file, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - no mapping
    return sum(torch.Size(shape).numel() for shape in shapes)
