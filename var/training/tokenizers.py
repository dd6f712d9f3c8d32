"""The trained tokenizer that a recipe names by its folder."""

from pathlib import Path

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.checkpoint import load_tokenizer, read_config


def open_tokenizer(folder: Path) -> VQVAE:
    """Load a recipe's tokenizer, without gradients. Raises InputError: there is none, or its files are damaged."""
    _check_exists(folder)
    return load_tokenizer(folder).requires_grad_(False)


def tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the sizes alone of a recipe's tokenizer. Raises InputError: there is none, or its config cannot be read."""
    _check_exists(folder)
    try:
        return TokenizerConfig(**read_config(folder)["config"])
    except (TypeError, ValueError) as error:
        raise InputError(f"tokenizer={str(folder)!r} cannot be used: {one_line(error)}") from error


def _check_exists(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"tokenizer={str(folder)!r} does not exist: train stage 1 first, and give its model")
