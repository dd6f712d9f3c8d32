"""Sizes of a model by its name or folder: a benchmark has random weights, so none are downloaded."""

from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import TokenizerConfig
from var.hub.checkpoint import TOKENIZER, TRANSFORMER, read_config
from var.hub.download import find_given
from var.hub.presets import ENCODER_SIZES, RELEASED, SHIPPED, check_name, choose_layers, own_name
from var.models.aim import AIM, AIMConfig, Encoder
from var.models.var import VAR, VARConfig


class VARSizes(NamedTuple):
    """Sizes of a tokenizer and of the transformer on its tokens."""

    tokenizer: TokenizerConfig
    transformer: VARConfig


ModelSizes = VARSizes | AIMConfig


def find_sizes(model: str) -> ModelSizes:
    """Return the sizes of a model.

    Args:
        model: a shipped or released VAR, an AIM or a size of it (`aim-tiny`), a model folder, or user/model on the
            Hugging Face hub.

    Raises InputError: an unknown name, a folder that holds neither a VAR nor an AIM.
    """
    folder, own = find_given(model), own_name(model)
    if folder is None and own in ENCODER_SIZES:
        return _with_probe(ENCODER_SIZES[own].to_dict())
    if folder is None:
        own = check_name(model, (*SHIPPED, *RELEASED, *ENCODER_SIZES))
    if own in RELEASED and folder is None:
        return VARSizes(TokenizerConfig(scales=RELEASED[own].scales), RELEASED[own])
    return _read_sizes(SHIPPED[own] if folder is None else folder)


def _with_probe(sizes: dict[str, Any]) -> AIMConfig:
    return AIMConfig(**sizes, probe_layers=choose_layers("last", sizes["depth"], None))


def _read_sizes(folder: Path) -> ModelSizes:
    try:
        if (folder / TRANSFORMER).is_dir():
            tokenizer, entries = (read_config(folder / part) for part in (TOKENIZER, TRANSFORMER))
            if entries.get("model") == VAR.__name__:
                return VARSizes(TokenizerConfig(**tokenizer["config"]), VARConfig(**entries["config"]))
        else:
            entries = read_config(folder)
        if entries.get("model") == AIM.__name__:
            return AIMConfig(**entries["config"])
        if entries.get("model") == Encoder.__name__:
            return _with_probe(entries["config"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder} holds sizes that cannot work: {one_line(error)}") from error
    raise InputError(
        f"{folder} holds a {entries.get('model')!r}: what is measured is a VAR (folders {TOKENIZER} and {TRANSFORMER}) "
        "or an AIM"
    )
