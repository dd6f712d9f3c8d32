"""The trained tokenizer that a recipe names by its folder."""

from pathlib import Path

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.checkpoint import find_part, load_tokenizer, read_config


def open_tokenizer(folder: Path) -> VQVAE:
    """Load a recipe's tokenizer, without gradients. Raises InputError: there is none, or its files are damaged."""
    return load_tokenizer(_find(folder)).requires_grad_(False)


def tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the sizes alone of a recipe's tokenizer. Raises InputError: there is none, or its config cannot be read."""
    found = _find(folder)
    try:
        return TokenizerConfig(**read_config(found)["config"])
    except (TypeError, ValueError) as error:
        raise InputError(f"tokenizer={str(folder)!r} cannot be used: {one_line(error)}") from error


def _find(folder: Path) -> Path:
    """Return the tokenizer's own folder: that given, or the one in a pipeline or a training's output."""
    if not folder.is_dir():
        raise InputError(f"tokenizer={str(folder)!r} does not exist: train stage 1 first, and give its model")
    return find_part(folder, VQVAE.__name__)
