"""One door for files of tensors: read without running what is in them, and loaded whole or not at all."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tokenizer.errors import InputError, one_line

StateDict = Mapping[str, Tensor]


def check_weights_exist(path: Path) -> None:
    """Raise InputError unless a file of weights is there."""
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist: give the path of a file, or none for the usual weights")


def read_weights(path: Path) -> StateDict:
    """Read the tensors of a .safetensors file, or of a torch file (old or new format) that holds nothing else.

    Raises InputError: no such file, a damaged one, or one that holds anything else, of which nothing is run.
    """
    check_weights_exist(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign formats, which are refused
            # The old format, no zip, cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged or cannot be read ({one_line(error)}): copy or download it again"
        ) from error
    except Exception as error:  # torch's unpickler raises nearly anything on foreign bytes, and advises to run them
        raise InputError(
            f"{path} is damaged or holds something else than weights (nothing in it was run): download it again as "
            "its authors published it, or give .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict of tensors: give the file as its authors published it")
    return state


def load_strict(module: nn.Module, state: StateDict, misfit: str) -> None:
    """Give a module on the meta device all of its tensors, each in the dtype that the module has.

    Raises InputError: tensors that are missing, left over or of another shape; it begins with the misfit, such as
    "a.pth is not of this network".
    """
    expected = module.state_dict()
    wrong = sorted(expected.keys() ^ state.keys()) or [k for k, v in state.items() if v.shape != expected[k].shape]
    if wrong:
        raise InputError(f"{misfit}: {len(wrong)} tensors differ, the first is {wrong[0]}")
    state = {key: value.to(expected[key].dtype) for key, value in state.items()}
    module.load_state_dict(state, strict=True, assign=True)
