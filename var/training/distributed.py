"""A model over several processes: replicated or sharded, and back to plain tensors under plain names."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env, patch_environment
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tokenizer.errors import InputError
from var.training.config import Recipe
from var.utils.device import choose_device, choose_dtype

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # which only the main process gets

_FLAG = "ACCELERATE_USE_FSDP"  # how `accelerate launch` passes on `distributed_type: FSDP`


def sharding_asked_for() -> bool:
    """Whether `accelerate launch` was told to shard parameters (FSDP), as configs/accelerate/fsdp2.yaml tells it."""
    return parse_flag_from_env(_FLAG, default=False)


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device of a run, in the recipe's precision.

    Raises InputError: a precision that does not go with the device or with sharding; fewer images in a batch than parts
    that share them.
    """
    device = choose_device()
    if recipe.precision == "float16" and device.type != "cuda":
        raise InputError(f"precision=float16 needs CUDA, this device is {device.type}: take float32 or bfloat16")
    if recipe.precision == "float16" and sharding_asked_for():
        raise InputError("precision=float16 does not go with sharded parameters: take bfloat16")
    precision = "fp16"
    if recipe.precision != "float16":
        precision = "bf16" if choose_dtype(recipe.precision, device) == torch.bfloat16 else "no"
    # The other processes wait for the slowest one to have encoded its part of a token cache.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    AcceleratorState._reset_state()  # which remembers the precision of a run before this one in the same process
    # It replicates all it is given: `shard` is the one way of sharding, also on CPUs, where accelerate has none.
    with patch_environment(**{_FLAG: "false"}):
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[patience])
    parts = accelerator.num_processes * recipe.accumulate
    if recipe.batch_size < parts:
        raise InputError(
            f"batch_size={recipe.batch_size} leaves some of {parts} parts without an image (processes: "
            f"{accelerator.num_processes}, accumulate={recipe.accumulate}): it must be at least {parts}"
        )
    return accelerator


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
    with ExitStack() as stack:
        if isinstance(plain, FSDPModule):
            plain.set_requires_gradient_sync(False)
            stack.callback(plain.set_requires_gradient_sync, True)
        elif isinstance(wrapped, DistributedDataParallel):
            stack.enter_context(wrapped.no_sync())
        yield


def unshard(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
    """The model, or if it is sharded a plain one with its weights on the CPU, of which only the main process gets one.

    Every process must call this.
    """
    if not isinstance(model, FSDPModule):
        return model
    state = model_state(model)
    if not state:
        return None
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


def model_state(model: nn.Module) -> dict[str, Any]:
    """The model's state with plain names and whole tensors on the CPU of the main process, {} on the others.

    Every process must call this.
    """
    return get_model_state_dict(model, options=WHOLE)


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `model_state` gave, which all processes have read, on any number of them.

    Not by torch's set_model_state_dict: it writes into the state given, and tells what does not fit after having loaded
    the rest.

    Raises KeyError, ValueError: other names or shapes.
    """
    targets = model.state_dict()
    if unknown := targets.keys() ^ state.keys():
        raise KeyError(f"{len(unknown)} tensors differ, the first is {min(unknown)}")
    for name, target in targets.items():
        if target.shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(target.shape)}")
        copy_into(target, state[name])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """For each parameter's name what the optimizer remembers of it, whole, as `model_state`."""
    if not optimizer.state:
        return {}  # torch would take a step to have something to tell
    found: Any = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    return found.get("state", {})


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Load what `optimizer_state` gave, which all processes have read, on any number of them.

    Not by torch's set_optimizer_state_dict: an optimizer that never stepped would remember one step.

    Raises KeyError: of another model.
    """
    parameters, fused = dict(model.named_parameters()), optimizer.param_groups[0].get("fused")
    for name, values in state.items():
        parameter = parameters[name]
        restored: dict[str, Tensor] = {}
        for key, value in values.items():
            if value.shape == parameter.shape:
                restored[key] = torch.zeros_like(parameter)
                copy_into(restored[key], value)
            else:  # the number of steps, one for the whole parameter
                device = parameter.device if value.ndim or fused else value.device
                restored[key] = value.to(device, copy=True)  # no hold of the file that it may lie in
        optimizer.state[parameter] = restored
