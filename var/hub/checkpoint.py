"""Models on disk: a folder with config.json (what to build) and model.safetensors (its weights)."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tokenizer.errors import InputError, abbreviate, one_line
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.models.aim import AIM, AIMConfig, Encoder, EncoderConfig, Probe, ProbeConfig
from var.models.conditional import ConditionalTransformer
from var.sampling.generators import GENERATORS
from var.utils.contents import HEAD, find_substitute
from var.utils.device import choose_stored_dtype
from var.utils.files import atomic_folder
from var.utils.json_text import parse_json
from var.utils.paths import check_writable
from var.utils.provenance import as_key, file_sha256, sha256
from var.utils.weights import StateDict, check_finite, load_strict, on_meta, read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Entries of CONFIG: checksums of WEIGHTS, of the entries that say what to build, and of all others, these two among
# them. Files from before have none, or the first ones.
CHECKSUM, CONFIG_CHECKSUM, ENTRIES_CHECKSUM = "sha256", "config_sha256", "entries_sha256"
EXPORTED = "model"  # folder of a training's output
TOKENIZER, TRANSFORMER = "tokenizer", "transformer"  # folders of a pipeline's models
PIPELINE_PARTS = {"VQVAE": TOKENIZER} | {generator.model.__name__: TRANSFORMER for generator in GENERATORS}

log = logging.getLogger(__name__)


def save_model(
    folder: Path,
    model: VQVAE | ConditionalTransformer | Encoder | AIM | Probe,
    extra: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Write a model's folder, whole or not at all; of one that is there these files are replaced, others stay.

    Args:
        extra: more entries for config.json, such as the names of the classes.
        dtype: type of the stored floating-point numbers, see `choose_stored_dtype`; None keeps the model's.

    Raises InputError: the folder cannot be written; a type that weights are not stored in; a transformer in int8;
    weights that are not finite, which are not worth keeping.
    """
    dtype = choose_stored_dtype(dtype)
    if isinstance(model, ConditionalTransformer) and model.dtype == torch.int8:
        raise InputError("a model in int8 was rounded, and is not saved: save it as loaded with dtype float32")
    config = {"model": type(model).__name__, "config": model.config.to_dict(), **(extra or {})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    check_finite(state, f"the {type(model).__name__} to be written to {folder}")
    with atomic_folder(folder) as new:
        safetensors.torch.save_file(state, new / WEIGHTS)
        config |= {CHECKSUM: file_sha256(new / WEIGHTS), CONFIG_CHECKSUM: config_sha256(config)}
        config[ENTRIES_CHECKSUM] = _entries_sha256(config)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (new / WEIGHTS).chmod((new / CONFIG).stat().st_mode)  # the umask's: safetensors 0.8 shuts out all others


def check_exportable(folder: Path) -> None:
    """Raise InputError if `save_model` could not write the folder; nothing is made yet."""
    check_writable(folder)
    if taken := [folder / name for name in (CONFIG, WEIGHTS) if (folder / name).is_dir()]:
        raise InputError(f"cannot write {taken[0]}: it is a folder: move it away, or give another output")


def config_sha256(config: Mapping[str, Any]) -> str:
    """Checksum of the entries of config.json that say what to build; the others, such as class names, may change."""
    return sha256([as_key({name: config[name] for name in ("model", "config")})])


def _entries_sha256(config: Mapping[str, Any]) -> str:
    """Checksum of the entries of config.json that may change: names, sampling defaults, the other checksums."""
    may_change = config.keys() - {"model", "config", ENTRIES_CHECKSUM}
    return sha256([as_key({name: config[name] for name in may_change})])


def find_exported(folder: Path) -> Path:
    """Return the folder `model` in the output of a training, which it exports; any other folder as it is."""
    exported = folder / EXPORTED
    is_output = exported.is_dir() and not any((folder / name).exists() for name in (CONFIG, TOKENIZER, TRANSFORMER))
    return exported if is_output else folder


def find_part(folder: Path, kind: str) -> Path:
    """Return the folder of a model of that class in that of a pipeline or a training's output; others as they are."""
    folder = find_exported(folder)
    part = folder / PIPELINE_PARTS.get(kind, "")
    return part if part.is_dir() else folder


def read_config(folder: Path) -> dict[str, Any]:
    """The entries of a model folder's config.json.

    Raises InputError: no such folder, no such file, not JSON, not a model's configuration.
    """
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist: give a folder with {CONFIG} and {WEIGHTS}")
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise InputError(f"{folder} has no {missing[0]}: a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        text = (folder / CONFIG).read_bytes()
        if substitute := find_substitute(text[:HEAD]):
            raise OSError(substitute)
        config = parse_json(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise InputError(f"{folder / CONFIG} is not a model's configuration: it needs the entries model and config")
    return config


def read_class_names(folder: Path, config: Mapping[str, Any]) -> dict[int, str] | None:
    """Return the class names of a model folder's config.json by label; None: it has none. Raises InputError."""
    names = config.get("classes")
    try:
        return None if names is None else {int(label): str(name) for label, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG}: classes must map labels to names ({one_line(error)})") from error


def load_tokenizer(folder: Path) -> VQVAE:
    """Load the tokenizer in a folder, in float32 and evaluation mode. Raises InputError."""
    return _load(folder, VQVAE, TokenizerConfig)


def load_transformer(folder: Path) -> ConditionalTransformer:
    """Load the transformer in a folder, of any kind that draws, in float32 and evaluation mode. Raises InputError."""
    kind = read_config(folder).get("model")
    found = next((generator for generator in GENERATORS if generator.model.__name__ == kind), GENERATORS[0])
    model: ConditionalTransformer = _load(folder, found.model, found.config)
    return model


def load_probe(folder: Path) -> Probe:
    """Load the probe in a folder, without its encoder, in float32 and evaluation mode. Raises InputError."""
    return _load(folder, Probe, ProbeConfig)


def load_aim(folder: Path) -> AIM:
    """Load the encoder with its probe in a folder, in float32 and evaluation mode. Raises InputError."""
    kind = read_config(folder).get("model")
    if kind == Encoder.__name__:
        raise InputError(f"{folder} holds an encoder that has no probe: train one on it (a recipe of stage probe)")
    if kind == Probe.__name__:
        raise InputError(f"{folder} holds a probe on other features: load it with var.features.sources.load_classifier")
    return _load(folder, AIM, AIMConfig)


def load_encoder(folder: Path) -> Encoder:
    """Load the encoder in a folder, which may have a probe too, in float32 and evaluation mode. Raises InputError."""
    if read_config(folder).get("model") == AIM.__name__:
        return load_aim(folder).encoder
    return _load(folder, Encoder, EncoderConfig)


def check_values(folder: Path, config: Mapping[str, Any], state: StateDict) -> None:
    """Raise InputError if a model folder's weights or sizes are not those that it was written with, or not finite.

    Other entries of config.json are the user's to change, so of those the log warns.
    """
    known = (CHECKSUM, CONFIG_CHECKSUM, ENTRIES_CHECKSUM)
    texts = {name: value for name, value in config.items() if isinstance(value, str) and name not in known}
    if stray := [name for name, value in texts.items() if re.fullmatch("[0-9a-f]{64}", value)]:
        raise InputError(
            f"{folder / CONFIG} is damaged: it holds a checksum under the name {abbreviate(stray[0])}, not under "
            f"{', '.join(known)}: copy the folder again, or remove that entry"
        )
    if ENTRIES_CHECKSUM in config and _entries_sha256(config) != config[ENTRIES_CHECKSUM]:
        log.warning(
            "%s: class names, sampling defaults or checksums are not what was written, by its %s: copy the folder "
            "again, or remove that entry if you changed them yourself", folder / CONFIG, ENTRIES_CHECKSUM,
        )  # fmt: skip
    if CONFIG_CHECKSUM in config and config_sha256(config) != config[CONFIG_CHECKSUM]:
        raise InputError(
            f"{folder / CONFIG} is damaged: what it says of the model is not what was written, by its "
            f"{CONFIG_CHECKSUM}: copy the folder again, or remove that entry if you changed the model yourself"
        )
    path = folder / WEIGHTS
    if CHECKSUM in config and file_sha256(path) != config[CHECKSUM]:
        raise InputError(
            f"{path} is damaged, or not the file that {CONFIG} was written for, by its {CHECKSUM}: copy the folder "
            f"again, or remove the entry {CHECKSUM} of {CONFIG} if you changed the weights yourself"
        )
    check_finite(state, path)


def _load(folder: Path, kind: type, config_type: type) -> Any:
    entries = read_config(folder)
    if entries.get("model") != kind.__name__:
        raise InputError(f"{folder} holds a {entries.get('model')!r}, a {kind.__name__!r} is needed here")
    try:
        with on_meta():
            model: nn.Module = kind(config_type(**entries["config"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / CONFIG}: {str(error).splitlines()[0]}") from error
    state = read_weights(folder / WEIGHTS)
    load_strict(model, state, folder / WEIGHTS, f"does not fit {CONFIG}")
    check_values(folder, entries, state)
    return model.eval()
