"""Released weights: found in a folder or downloaded, converted once, kept as a folder of ours."""

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.convert import load_official
from var.model import VAR
from var.presets import RELEASED, RELEASED_REPOSITORY, RELEASED_TOKENIZER


def cache_folder() -> Path:
    """Where converted models are kept: $VAR_CACHE, else var-next-scale in the user's cache folder."""
    if folder := os.environ.get("VAR_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "var-next-scale"


def load_released(name: str, vae_file: Path | None = None, var_file: Path | None = None) -> tuple[VQVAE, VAR]:
    """The tokenizer and transformer of a released model, in float32 and evaluation mode.

    Args:
        name: one of presets.RELEASED.
        vae_file: the released tokenizer here; None looks in `released/` of the cache folder, then on the hub.
        var_file: the same for the transformer.

    Raises:
        InputError: a file that is missing, damaged, or not of this model; no connection, with the files to fetch.
    """
    preset = RELEASED[name]
    vae_file = vae_file or find(RELEASED_TOKENIZER, name)
    var_file = var_file or find(preset.file, name)
    vae_state, var_state = read_weights(vae_file), read_weights(var_file)
    try:
        vqvae, model = load_official(vae_state, var_state, scales=preset.config.scales)
    except InputError as error:
        raise InputError(f"{vae_file} and {var_file} are not the files of {name}: {error}") from error
    if model.config != preset.config:
        raise InputError(f"{var_file} holds another model than {name}: its sizes are {model.config}")
    return vqvae, model


def find(file: str, model_name: str) -> Path:
    """A released file: in the cache's `released/` folder, or from the hub.

    Raises:
        InputError: it is in neither place.
    """
    local = cache_folder() / "released" / file
    if local.is_file():
        return local
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(RELEASED_REPOSITORY, file))
    except Exception as error:  # the HTTP library's errors, which differ by version
        raise InputError(
            f"{file} could not be downloaded ({type(error).__name__}): fetch {RELEASED_TOKENIZER} and "
            f"{RELEASED[model_name].file} from {RELEASED_REPOSITORY} on the Hugging Face hub "
            f"and put them in {local.parent}"
        ) from error


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file that holds nothing but tensors.

    Raises:
        InputError: missing, damaged, or something else than weights.
    """
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist: give the path of a released file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:  # what torch's restricted reader raises on anything but weights
        raise InputError(f"{path} holds something else than weights, or is damaged: download it again") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:  # torn files
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is damaged ({reason}): download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict of tensors: give a released file")
    return state
