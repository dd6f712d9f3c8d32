"""The trained tokenizer of a recipe: its folder, name, repository or released file.

A released file is read for 256 px, as no tensor shows its scales; that of 512 px has the name var-d36.
"""

from pathlib import Path

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import VQVAE, Regularization, TokenizerConfig
from var.hub.checkpoint import load_tokenizer, read_config
from var.hub.presets import RELEASED, own_name
from var.hub.sources import find_weights, read_released

KINDS: dict[Regularization, str] = {"vq": "tokens of a codebook", "kl": "continuous tokens"}
KIND, KEY = VQVAE.__name__, "tokenizer"


def open_tokenizer(given: Path, regularization: Regularization = "vq") -> VQVAE:
    """Load a recipe's tokenizer, without gradients, which needs that regularization.

    Raises InputError: there is none, its files are damaged, it cannot be downloaded, or is of another regularization.
    """
    tokenizer_config(given, regularization)  # raises
    return _open_tokenizer(given)


def _open_tokenizer(given: Path) -> VQVAE:
    place = find_weights(given, KIND, KEY)
    if place is not None and place.is_dir():
        return load_tokenizer(place).requires_grad_(False)
    released = read_released(place, str(given), KIND, TokenizerConfig(), KEY)
    if not isinstance(released, VQVAE):
        raise TypeError(f"a VQVAE is needed, got {type(released).__name__}")
    return released.requires_grad_(False)


def tokenizer_config(given: Path, regularization: Regularization = "vq") -> TokenizerConfig:
    """Read the sizes alone of a recipe's tokenizer, which needs that regularization; a released one is not downloaded.

    Raises InputError: there is none, its config cannot be read, it is in a repository that cannot be had, or is of
    another regularization.
    """
    config = _read_config(given)
    if config.regularization != regularization:
        theirs, ours = (KINDS[each] for each in (config.regularization, regularization))
        raise InputError(
            f"tokenizer={str(given)!r} has {theirs} (regularization={config.regularization}), and {ours} are needed "
            f"here: give one that was trained with model.regularization={regularization}"
        )
    return config


def _read_config(given: Path) -> TokenizerConfig:
    place = find_weights(given, KIND, KEY)
    if place is None:
        return TokenizerConfig(scales=RELEASED[own_name(str(given))].scales)
    if place.is_file():
        return _open_tokenizer(given).config
    try:
        return TokenizerConfig(**read_config(place)["config"])
    except (TypeError, ValueError) as error:
        raise InputError(f"tokenizer={str(given)!r} cannot be used: {one_line(error)}") from error
