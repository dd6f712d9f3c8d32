"""A model over several processes: replicated or sharded, and back to plain tensors under plain names."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

_FLAG = "ACCELERATE_USE_FSDP"  # how `accelerate launch` passes on `distributed_type: FSDP`


def sharding_asked_for() -> bool:
    """Whether `accelerate launch` was told to shard parameters (FSDP), as configs/accelerate/fsdp2.yaml tells it."""
    return parse_flag_from_env(_FLAG, default=False)


@contextmanager
def sharding_left_to_us() -> Iterator[None]:
    """Inside, an Accelerator can be built that replicates all it is given, though it was launched to shard.

    So `shard` is the one way of sharding, the same on CPUs, where accelerate has none, as on GPUs.
    """
    asked = os.environ.pop(_FLAG, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_FLAG] = asked


def shard(model: nn.Module, units: Sequence[str]) -> None:
    """Spread the parameters over all processes in place (FSDP2); those of a named part are gathered for its turn."""
    for unit in units:
        fully_shard(model.get_submodule(unit))
    fully_shard(model)
    # It warns of writing into views that a part returns, which nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module returned a view")


@contextmanager
def unsynchronized(plain: nn.Module, wrapped: nn.Module) -> Iterator[None]:
    """Inside, a backward pass adds to the gradients of this process alone."""
    if isinstance(plain, FSDPModule):
        plain.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            plain.set_requires_gradient_sync(True)
    elif isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    else:
        yield


def unshard(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """The model itself, or if it is sharded a plain one with its weights on the CPU; every process must call this."""
    if not isinstance(model, FSDPModule):
        return model
    state = model_state(model)
    plain = build()
    plain.load_state_dict(state)
    return plain.eval()


def destroy_process_group() -> None:
    """End the group of processes, if there is one, all together; nothing may hold a wrapped model any more."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # gloo's threads need the interpreter to let go of their last work; to end the group before that has both wait
        # for each other, for ever.
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a parameter that this process holds: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a parameter, without gradient, on its device; every process must call this."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def copy_into(target: Tensor, value: Tensor) -> None:
    """Write a whole value into a parameter or buffer, sharded or not."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.detach().copy_(value)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with plain names and whole tensors on the CPU; every process must call this."""
    return {name: full_tensor(value).cpu() for name, value in model.state_dict().items()}


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `model_state` gave, on any number of processes.

    Raises:
        KeyError, ValueError: other names or shapes.
    """
    targets = model.state_dict()
    if unknown := targets.keys() ^ state.keys():
        raise KeyError(f"{len(unknown)} tensors differ, the first is {min(unknown)}")
    for name, target in targets.items():
        if target.shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(target.shape)}")
        copy_into(target, state[name])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """For each parameter's name what the optimizer remembers of it, whole and on the CPU; every process calls this."""
    return {
        name: {key: full_tensor(value).cpu() for key, value in optimizer.state[parameter].items()}
        for name, parameter in _optimized(model, optimizer)
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Load what `optimizer_state` gave, on any number of processes.

    Raises:
        KeyError: of another model.
    """
    parameters = dict(model.named_parameters())
    for name, values in state.items():
        parameter = parameters[name]
        restored: dict[str, Tensor] = {}
        for key, value in values.items():
            if value.shape == parameter.shape:
                restored[key] = torch.zeros_like(parameter)
                copy_into(restored[key], value)
            else:  # the number of steps, one for the whole parameter
                device = parameter.device if value.ndim or _fused(optimizer) else value.device
                restored[key] = value.to(device, copy=True)  # no hold of the file that it may lie in
        optimizer.state[parameter] = restored


def _optimized(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p in optimizer.state)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))
