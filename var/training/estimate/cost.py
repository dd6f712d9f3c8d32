"""Time and memory of a recipe's run, estimated without downloading or writing: `train.py RECIPE --dry-run`."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from var.hub.start import check_start
from var.training.checkpointing import checkpoints
from var.training.config import Recipe
from var.training.distributed import is_sharding_requested, with_launcher_settings
from var.training.estimate.operations import Pass, count_work
from var.training.stages.base import Stage, find_stage
from var.utils.device import choose_device, choose_dtype
from var.utils.text import plural

FLOAT = 4  # bytes of a weight: kept in float32 whatever the precision of the products
LONG_ENOUGH = 0.05  # seconds of a matrix product, from which on its speed is reliable
LARGEST_PRODUCT = 8192
SHARE_OF_PRODUCT = 1 / 1.5  # assumed speed of training, as a share of that of one large matrix product


class Network(NamedTuple):
    """A network that takes part in a step, trained or frozen."""

    name: str
    parameters: int
    trained: int  # of its parameters
    averaged: bool = False
    sharded: bool = False


class Memory(NamedTuple):
    """Bytes on one process, the largest where they differ."""

    weights: float  # of trained networks
    gradients: float
    optimizer: float  # AdamW's two averages
    average: float  # of the weights
    frozen: float
    activations: float  # kept of one micro-batch for the backward pass

    @property
    def total(self) -> float:
        """Bytes of all of it."""
        return sum(self)


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run, as far as they are known."""

    networks: Sequence[Network]  # trained ones, then frozen ones
    images: int  # a step, over all processes
    tokens: int  # a step, over all processes
    parts: int  # micro-batches of a process in a step
    passes: Sequence[Pass]  # the work of the steps
    preparation: float  # FLOPs before the first step, in float32; 0: none
    prepared: str  # name of their result
    memory: Memory  # of one process
    world_size: int  # processes that share a step
    sharded: bool  # they share the parameters too
    length: int | None  # images of an epoch; None: unknown
    steps: int | None  # of the run; None: unknown
    device: str  # where the speeds were measured
    # FLOP/s of a large matrix product on one process; empty: the recipe's precision does not work there
    speeds: Mapping[torch.dtype, float]
    checkpoint: float  # bytes of one on the disk
    checkpoints: int  # at most kept
    notes: Sequence[str]  # assumptions, and why something is unknown

    @property
    def flops(self) -> float:
        """FLOPs of the run's mean step."""
        return sum(part.share * part.flops for part in self.passes)

    @property
    def epochs(self) -> float | None:
        """Passes over the training images; None: unknown."""
        return None if self.steps is None or not self.length else self.steps * self.images / self.length

    @property
    def seconds_a_step(self) -> float | None:
        """Seconds of the run's mean step; None: unknown."""
        if not self.speeds:
            return None
        return sum(part.share * self._seconds(part.flops, part.dtype) for part in self.passes)

    @property
    def seconds(self) -> float | None:
        """Seconds of the preparation and all steps, without validation and sheets; None: unknown."""
        if self.seconds_a_step is None or self.steps is None:
            return None
        before = self._seconds(self.preparation, torch.float32) if self.preparation else 0
        return before + self.steps * self.seconds_a_step

    def _seconds(self, flops: float, dtype: torch.dtype) -> float:
        return flops / (self.world_size * self.speeds[dtype] * SHARE_OF_PRODUCT)


def estimate(recipe: Recipe) -> Estimate:
    """Estimate time and memory of the recipe's run on this machine. Nothing is written or downloaded.

    Speed is measured in a fraction of a second; the number of processes comes from the environment that torchrun or
    `accelerate launch` sets.

    Raises InputError: sizes that cannot work; no tokenizer to train a transformer on; no model to begin with; a
    package that is not installed.
    """
    recipe = with_launcher_settings(recipe)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = world_size > 1 and is_sharding_requested()
    device = choose_device()
    dtype = torch.float16 if recipe.precision == "float16" else choose_dtype(recipe.precision, device)
    micro = math.ceil(recipe.batch_size / (world_size * recipe.micro_batches))

    outline = find_stage(recipe.stage).outline(recipe)
    if recipe.init is not None and not checkpoints(recipe.output / "checkpoints"):
        check_start(recipe.init, outline.stage.phases[0].model)
    with torch.device("meta"):
        outline.stage.set_trained()
    images = outline.images
    notes = [images.unknown] if images.unknown else []
    networks, work = _networks(outline.stage, recipe), count_work(outline, micro, dtype)
    works = recipe.precision != "float16" or device.type == "cuda"
    if not works:
        notes.append(f"precision=float16 needs CUDA, this device is {device.type}: the time is unknown")
    kinds = {part.dtype for part in work.passes} | ({torch.float32} if work.preparation else set())
    saved = sum(n.parameters * (2 if n.averaged else 1) + 2 * n.trained for n in networks if n.trained)
    return Estimate(
        networks=networks,
        images=recipe.batch_size,
        tokens=recipe.batch_size * outline.tokens,
        parts=recipe.micro_batches,
        passes=[part._replace(flops=part.flops * recipe.batch_size / micro) for part in work.passes],
        preparation=work.preparation,
        prepared=outline.prepared,
        memory=_memory(networks, work.kept, world_size, sharded),
        world_size=world_size,
        sharded=sharded,
        length=images.number,
        steps=recipe.steps if images.number is None else recipe.total_steps(images.number),
        device=_device_name(device),
        speeds={kind: measure_speed(device, kind) for kind in kinds} if works else {},
        checkpoint=saved * FLOAT,
        checkpoints=recipe.keep_last + 1,
        notes=[*notes, *outline.notes],
    )


def _networks(stage: Stage[Any], recipe: Recipe) -> list[Network]:
    trained = [
        Network(
            phase.name,
            _size(phase.model),
            _size(phase.model, trained=True),
            recipe.ema is not None and i == 0,
            sharded=bool(phase.sharded),
        )
        for i, phase in enumerate(stage.phases)
    ]
    return trained + [Network(name, _size(network), trained=0) for name, network in stage.frozen.items()]


def _size(network: nn.Module, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad or not trained)


def _memory(networks: Sequence[Network], kept: int, world_size: int, sharded: bool) -> Memory:
    weights = gradients = moments = average = 0.0
    for network in (network for network in networks if network.trained):
        here = sharded and network.sharded
        size, trained = (FLOAT * n / (world_size if here else 1) for n in (network.parameters, network.trained))
        weights += size
        # DistributedDataParallel reduces gradients in buckets of their own.
        gradients += trained * (2 if world_size > 1 and not here else 1)
        moments += 2 * trained
        average += size if network.averaged else 0
    frozen = FLOAT * sum(network.parameters for network in networks if not network.trained)
    return Memory(weights, gradients, moments, average, frozen, kept)


def measure_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s of a matrix product on the device: the best of three, with matrices large enough to time."""
    side = 128
    while True:
        matrix = torch.ones(side, side, device=device, dtype=dtype)
        seconds = min(_seconds(matrix) for _ in range(3))
        if seconds > LONG_ENOUGH or side == LARGEST_PRODUCT:
            return 2 * side**3 / seconds
        side *= 2


def _seconds(matrix: Tensor) -> float:
    began = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # which waits for the device
    return time.perf_counter() - began


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({plural(threads, 'thread')})"
