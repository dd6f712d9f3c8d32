"""One door for files of tensors: read without running what is in them, and loaded whole or not at all."""

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenizer.errors import InputError, abbreviate, one_line
from var.utils.contents import HEAD, find_substitute

StateDict = Mapping[str, Tensor]

WRAPPERS = ("state_dict", "model")  # entries of training checkpoints that hold the state dict of the model
_PARALLEL = "module."  # what torch's DDP puts before the names of tensors
_INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.")  # what its compile and FSDP put into them


def check_weights_exist(path: Path) -> None:
    """Raise InputError unless a file of weights is there."""
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist: give the path of a file, or none for the usual weights")


def read_weights(path: Path, entries: Sequence[str] = ()) -> StateDict:
    """Read the tensors of a .safetensors file, or of a torch file (old or new format).

    Args:
        entries: of a training checkpoint, see `unwrap`.

    Raises InputError: no such file, a damaged one, or one that holds anything else, of which nothing is run.
    """
    check_weights_exist(path)
    try:
        with path.open("rb") as file:
            if substitute := find_substitute(file.read(HEAD)):
                raise OSError(substitute)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign formats, which are refused
            # The old format, no zip, cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (SafetensorError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is damaged or cannot be read ({one_line(error)}): copy or download it again"
        ) from error
    except Exception as error:  # torch's unpickler raises nearly anything on foreign bytes, and advises to run them
        raise InputError(
            f"{path} is damaged or holds something else than weights (nothing in it was run): download it again as "
            "its authors published it, or give .safetensors"
        ) from error
    state = unwrap(state, entries)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            keys = [str(key) for key in state]
            found = f"has the entries {abbreviate(keys)}"
        raise InputError(
            f"{path} is not a state dict of tensors, but {found}: give the file as its authors published it, or "
            "save the state dict inside it alone"
        )
    if other := next((name for name, value in state.items() if value.layout != torch.strided), None):
        raise InputError(f"{path} holds sparse tensors, such as {other}: save them dense (tensor.to_dense())")
    return state


def _check_sums(path: Path) -> None:
    """Raise BadZipFile if a record of a torch file is not what its checksum says, which torch does not compare."""
    with zipfile.ZipFile(path) as file:
        if (damaged := file.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def unwrap(state: object, entries: Sequence[str] = ()) -> object:
    """Return the state dict inside a training checkpoint, under the names that the module itself gives its tensors.

    Args:
        state: of any type; what is no mapping is returned as it is.
        entries: where the checkpoint may keep the state dict, besides WRAPPERS: one inside another, in any order.

    Raises InputError: two tensors of the same name.
    """
    wrappers = [*entries, *WRAPPERS]
    while isinstance(state, Mapping):
        name = next((name for name in wrappers if isinstance(state.get(name), Mapping)), None)
        if name is None:
            break
        wrappers.remove(name)  # each counts once: a state dict that holds itself has an end too
        state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return state
    names = {key: reduce(lambda name, inserted: name.replace(inserted, ""), _INSERTED, key) for key in state}
    while names and all(name.startswith(_PARALLEL) for name in names.values()):
        names = {key: name.removeprefix(_PARALLEL) for key, name in names.items()}
    if len(set(names.values())) < len(names):
        raise InputError(
            f"two tensors differ in {' or '.join(map(repr, _INSERTED))} of their names alone: give a state dict of one "
            "module"
        )
    return {name: state[key] for key, name in names.items()}


def check_finite(state: StateDict, name: object) -> None:
    """Raise InputError if a tensor has a value that is NaN or infinite; `name` is that of the file or model."""
    for key, value in state.items():
        if value.is_floating_point() and not value.is_meta and not value.isfinite().all():
            raise InputError(
                f"{name} holds values that are not finite (NaN or infinite), as after a training that diverged, "
                f"the first in {key}: take weights from before that"
            )


def check_kinds(state: StateDict, expected: StateDict, name: object) -> None:
    """Raise InputError if whole or complex numbers stand where a module has floating-point ones; see `check_finite`."""
    for key, value in expected.items():
        if key in state and value.is_floating_point() and not state[key].is_floating_point():
            raise InputError(
                f"{name} has numbers of type {str(state[key].dtype).removeprefix('torch.')} in {key}, where "
                "floating-point ones belong: give the weights as they were trained"
            )


class _WithoutInitialization(TorchFunctionMode):
    """Leave tensors on the meta device as they are where `torch.nn.init` would fill, or a factor scale them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__ or func in (Tensor.mul_, Tensor.div_):
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """Build modules on the meta device, for `load_strict` to give them their tensors.

    Nothing initializes their weights: it would have no effect, yet the first normal distribution on that device imports
    torch's compiler, and the first quotient sympy, which take as long as all of torch.
    """
    with torch.device("meta"), _WithoutInitialization():
        yield


def load_strict(module: nn.Module, state: StateDict, file: object, misfit: str) -> None:
    """Give a module built `on_meta` all of its tensors, each in the dtype that the module has.

    Raises InputError: tensors that are missing, left over or of another shape: the file, and the misfit, such as "is
    not of this network".
    """
    expected = module.state_dict()
    wrong = sorted(expected.keys() ^ state.keys()) or [k for k, v in state.items() if v.shape != expected[k].shape]
    if wrong:
        raise InputError(f"{file} {misfit}: {len(wrong)} tensors differ, the first is {wrong[0]}")
    check_kinds(state, expected, file)
    state = {key: value.to(expected[key].dtype) for key, value in state.items()}
    module.load_state_dict(state, strict=True, assign=True)
