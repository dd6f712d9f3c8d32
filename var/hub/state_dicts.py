"""State dicts of released files: the sizes read off them, and strict loading into our modules."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.utils.weights import StateDict, check_finite, check_kinds, on_meta, unwrap

Network = TypeVar("Network", bound=nn.Module)


def load_converted(
    kind: Callable[[Any], Network],
    config: Any,
    state: StateDict,
    official_key: Callable[[str], str],
    derived: StateDict | None = None,
) -> Network:
    """Build a module with the tensors of a released file, in float32 and evaluation mode.

    Args:
        official_key: the file's name of one of the module's tensors.
        derived: buffers that follow from the sizes: the file may have them, and then they must be these.

    Raises InputError: keys missing or left over, shapes that do not fit: nothing is dropped silently. Values that are
    not finite.
    """
    with on_meta():
        module = kind(config)
    ours, derived = module.state_dict(), derived or {}
    names = {key: official_key(key) for key in ours}
    missing = sorted(set(names.values()) - set(state))
    unknown = sorted(set(state) - set(names.values()) - set(derived))
    if missing or unknown:
        raise InputError(
            f"not a released {type(module).__name__} file: {len(missing)} keys missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    for name in sorted(set(state) & set(derived)):  # nothing is left out that says something else than the sizes do
        if not torch.equal(state[name].to(derived[name]), derived[name]):
            raise InputError(
                f"{name} is not what the sizes and scales of this model give: pass the scales of its training"
            )
    check_kinds(state, {name: ours[key] for key, name in names.items()}, f"the released {type(module).__name__} file")
    converted = {}
    for key, name in names.items():
        value = state[name]
        if value.numel() != ours[key].numel() or value.squeeze().shape != ours[key].squeeze().shape:
            raise InputError(f"{name} has shape {tuple(value.shape)}, {tuple(ours[key].shape)} expected")
        converted[key] = value.reshape(ours[key].shape).to(ours[key].dtype)
    check_finite(converted, f"the released {type(module).__name__} file")
    module.load_state_dict(converted, strict=True, assign=True)
    return module.eval().requires_grad_(True)


def rename(key: str, names: Mapping[str, str]) -> str:
    """The other name of a tensor, by that of the whole key or of what stands before its last dot."""
    part, _, tensor = key.rpartition(".")
    return names[key] if key in names else f"{names[part]}.{tensor}"


def find_state(state: object, entries: Sequence[str] = ()) -> StateDict:
    """Return the state dict that is given or inside a training checkpoint, see `unwrap`; all values are tensors.

    Raises InputError: anything else.
    """
    state = unwrap(state, entries)
    if not isinstance(state, Mapping):
        raise InputError(f"not a released file: a {type(state).__name__} is no state dict of tensors by name")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            found = f"{key!r} is the key of a {type(value).__name__}"
            raise InputError(f"not a released file: it must hold tensors by name, and {found}")
    return state


def shape_of(state: StateDict, key: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor that determines sizes. Raises InputError if it is missing or has others."""
    if key not in state:
        raise InputError(f"not a released file: the key {key!r} is missing")
    if state[key].ndim != dimensions:
        raise InputError(f"{key} has {state[key].ndim} dimensions, {dimensions} expected: not a released file")
    return tuple(state[key].shape)


def count_numbers(state: StateDict, pattern: str) -> int:
    """Count the different numbers that stand in the pattern's group, over all keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
