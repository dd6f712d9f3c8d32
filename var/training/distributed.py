"""A model over several processes: replicated or sharded, and back to plain tensors under plain names."""

import logging
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs, parse_flag_from_env, patch_environment
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from tokenizer.errors import InputError, abbreviate, check_whole_number
from var.data.config import LARGEST_COUNT
from var.training.config import Recipe
from var.training.stages.base import RecipeT
from var.utils.device import choose_device, choose_dtype

SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")  # which FSDP2 calls; not in PyTorch 2.6
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the main process alone

# How `accelerate launch` passes on its settings.
_FLAG = "ACCELERATE_USE_FSDP"  # `distributed_type: FSDP`
_MIXED_PRECISION, _ACCUMULATE = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_DYNAMO = "ACCELERATE_DYNAMO_BACKEND"  # by which accelerate compiles what it wraps: replicated models
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}

log = logging.getLogger(__name__)


def is_sharding_requested() -> bool:
    """Return whether `accelerate launch` is configured to shard (FSDP), as by configs/accelerate/fsdp2.yaml.

    Raises InputError: its variable in the environment is neither true nor false.
    """
    try:
        return parse_flag_from_env(_FLAG, default=False)
    except ValueError as error:
        raise InputError(
            f"{_FLAG}={abbreviate(os.environ[_FLAG])} must be true or false: correct or unset it"
        ) from error


def with_launcher_settings(recipe: RecipeT) -> RecipeT:
    """Return the recipe with precision and accumulate of `accelerate launch` where it leaves them open.

    Both are logged, and so is a setting of the recipe that differs from the launcher's, over which it wins.

    Raises InputError: a precision that training does not have, a number of micro-batches that no recipe may have.
    """
    launched = os.environ.get(_MIXED_PRECISION)
    if launched is None:
        return recipe
    flags = _launcher_flags()
    steps = os.environ.get(_ACCUMULATE) or flags.gradient_accumulation_steps
    accumulate = None if steps is None else _parse_micro_batches(steps)
    given = {"precision": PRECISIONS.get(launched, launched), "accumulate": accumulate}
    if launched == "no" and flags.mixed_precision is None:  # what the launcher says when nobody chose
        del given["precision"]
    changes = {}
    for name, value in given.items():
        ours = getattr(recipe, name)
        if ours in ("auto", None) and value is not None:
            changes[name] = value
            _log_once(f"{name}={value}, as accelerate launch says")
        elif value not in (ours, None):
            _log_once(f"{name}={ours} of the recipe wins over accelerate launch, which says {value}", logging.WARNING)
    if changes.get("precision") == launched:
        known = ", ".join(PRECISIONS)
        raise InputError(
            f"accelerate launch says mixed_precision={launched}, which training does not have: give {known}"
        )
    return recipe.model_copy(update=changes)


def _parse_micro_batches(given: str | int) -> int:
    """Return what the launcher says as a number of micro-batches, in the range of the recipe's accumulate."""
    name = "gradient_accumulation_steps of accelerate launch"
    try:
        number = int(given)
    except ValueError as error:  # text from the environment
        raise InputError(f"{name}={abbreviate(given)} must be a whole number in 1..{LARGEST_COUNT}") from error
    return check_whole_number(name, number, 1, LARGEST_COUNT)


def _launcher_flags() -> Namespace:
    """Return mixed_precision and gradient_accumulation_steps as on the launcher's command line; None: not there.

    It passes the latter on to DeepSpeed alone, and a precision that nobody chose like one that was. So they are read
    from the command line of the parent process, where the system shows that.
    """
    unknown = Namespace(mixed_precision=None, gradient_accumulation_steps=None)
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    except (OSError, UnicodeDecodeError):
        return unknown
    arguments = _launcher_arguments(command)
    if arguments is None:
        return unknown
    from accelerate.commands.launch import launch_command_parser  # slow, and rarely needed

    try:
        with redirect_stderr(StringIO()):
            return launch_command_parser().parse_args(arguments)
    except SystemExit:  # another program after all: accelerate itself would not have come this far
        return unknown


def _launcher_arguments(command: Sequence[str]) -> list[str] | None:
    """Return the arguments of `accelerate launch` in a command line that runs it; None: it runs something else."""
    for i, part in enumerate(command):
        name, following = Path(part).name, command[i + 1 : i + 2]
        module = part if command[i - 1 : i] == ["-m"] else ""
        if (name == "accelerate" or module == "accelerate.commands.accelerate_cli") and following == ["launch"]:
            return list(command[i + 2 :])
        if name == "accelerate-launch" or "accelerate.commands.launch" in (module, _as_module(part)):
            return list(command[i + 1 :])
    return None


def _as_module(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts[-3:]) if path.endswith(".py") else ""


def _log_once(message: str, level: int = logging.INFO) -> None:
    """Log on the main process of a launch alone."""
    if os.environ.get("RANK", "0") == "0":
        log.log(level, message)


def build_accelerator(recipe: Recipe, device: torch.device | None = None) -> Accelerator:
    """Build the Accelerator of a run: its processes, its device (None: the machine's best), the recipe's precision.

    Raises InputError: a precision that the device or sharding does not support; a compiler that is unknown; fewer
    images in a batch than micro-batches of all processes.
    """
    device = choose_device() if device is None else device
    if recipe.precision == "float16" and device.type != "cuda":
        raise InputError(f"precision=float16 needs CUDA, this device is {device.type}: take float32 or bfloat16")
    if recipe.precision == "float16" and is_sharding_requested():
        raise InputError("precision=float16 does not go with sharded parameters: take bfloat16")
    precision = "fp16"
    if recipe.precision != "float16":
        precision = "bf16" if choose_dtype(recipe.precision, device) == torch.bfloat16 else "no"
    backend, known = os.environ.get(_DYNAMO, "no"), [known.value.lower() for known in DynamoBackend]
    if backend.lower() not in known:
        raise InputError(f"{_DYNAMO}={abbreviate(backend)} is none of {', '.join(known)}: correct it")
    # Processes wait until the slowest one has encoded its part of a token cache.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    AcceleratorState._reset_state()  # it keeps the precision of an earlier run in the same process
    # Accelerate only replicates here: `shard` does the sharding, also on CPUs, where accelerate has none; micro-batches
    # are weighted by `PhaseRunner`, and accelerate would divide each loss by their number again.
    with patch_environment(**{_FLAG: "false", _ACCUMULATE: "1"}):
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[patience])
    if backend.lower() != "no" and accelerator.num_processes > 1 and is_sharding_requested():
        _log_once(
            f"dynamo_backend={backend.lower()} of accelerate launch is not used with sharded parameters: compile=true "
            "compiles them", logging.WARNING,
        )  # fmt: skip
    parts = accelerator.num_processes * recipe.micro_batches
    if recipe.batch_size < parts:
        raise InputError(
            f"batch_size={recipe.batch_size} leaves some of {parts} parts without an image (processes: "
            f"{accelerator.num_processes}, accumulate={recipe.micro_batches}): it must be at least {parts}"
        )
    return accelerator


def shard(model: nn.Module, units: Sequence[str]) -> None:
    """Shard the parameters over all processes in place (FSDP2); those of each unit are gathered when it runs.

    Raises InputError: the model is on a CPU, and this PyTorch cannot shard there.
    """
    if next(model.parameters()).device.type == "cpu" and not SHARDS_ON_CPU:
        raise InputError(
            f"PyTorch {torch.__version__} cannot shard parameters on CPUs: take a newer one, or launch without FSDP"
        )
    for unit in units:
        fully_shard(model.get_submodule(unit))
    fully_shard(model)
    # FSDP2 warns about in-place writes to views that a unit returns; nothing here does that.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module returned a view")


@contextmanager
def no_sync(plain: nn.Module, wrapped: nn.Module) -> Iterator[None]:
    """Inside, backward passes accumulate gradients without synchronizing them between processes."""
    with ExitStack() as stack:
        if isinstance(plain, FSDPModule):
            plain.set_requires_gradient_sync(False)
            stack.callback(plain.set_requires_gradient_sync, True)
        elif isinstance(wrapped, DistributedDataParallel):
            stack.enter_context(wrapped.no_sync())
        yield


def unshard(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
    """Return the model itself, or of a sharded one a plain copy on the CPU: on the main process, None on the others.

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
    """End the process group, if there is one, on all processes together; no wrapped model may be alive any more."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # gloo's threads need the interpreter lock to release their last work; ending the group before that deadlocks.
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's part of a parameter: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole parameter, without gradient, on its device; every process must call this."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def copy_into(target: Tensor, value: Tensor) -> None:
    """Write a whole value into a parameter or buffer, sharded or not."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        mesh = target.device_mesh
        everywhere = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
        value = everywhere.redistribute(mesh, target.placements)  # each process takes its part, without communication
    target.detach().copy_(value)


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return the model's state, plain names and whole tensors, on the CPU of the main process; {} on the others.

    Every process must call this.
    """
    return get_model_state_dict(model, options=WHOLE)


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the result of `model_state`, which all processes have read, on any number of processes.

    torch's set_model_state_dict is no choice: it writes into the given state, and reports mismatches only after loading
    the rest.

    Raises KeyError, ValueError: other names or shapes.
    """
    targets = model.state_dict()
    if unknown := targets.keys() ^ state.keys():
        raise KeyError(f"tensors differ ({len(unknown)}), the first is {min(unknown)}")
    for name, target in targets.items():
        if target.shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(target.shape)}")
        copy_into(target, state[name])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state of each parameter, by its name, whole; as in `model_state`."""
    if not optimizer.state:
        return {}  # torch would take a step to create it
    found: Any = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    return found.get("state", {})


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Load the result of `optimizer_state`, which all processes have read, on any number of processes.

    torch's set_optimizer_state_dict is no choice: an optimizer without steps would then count one.

    Raises KeyError: it is of another model.
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
                restored[key] = value.to(device, copy=True)  # a view would keep the checkpoint file mapped
        optimizer.state[parameter] = restored
