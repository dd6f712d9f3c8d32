"""A work measured beside the ceilings of the machine: its time over the floor that they set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from var.bench.ceilings import CHANNELS_LAST, CONVOLUTION, INT8_PRODUCT, PRODUCT, Ceiling, prepare_ceilings
from var.bench.counting import Operations, count_operations
from var.bench.sizes import ModelSizes
from var.bench.timing import Spread, peak_memory, reset_peak_memory, take_turns
from var.bench.works import Setting, build_work
from var.utils.device import cpu_capabilities
from var.utils.provenance import device_name, versions

WARM_UP, COMPILED_WARM_UP = 1, 3  # calls before those that count; a compiler compiles, and records graphs, in some


class Speed(NamedTuple):
    """What a ceiling reached."""

    size: str  # of its work
    per_second: Spread  # FLOP/s, or bytes/s read and written


@dataclass(frozen=True)
class Result:
    """A work that was measured."""

    work: str
    setting: Setting
    seconds: Spread  # of a batch
    peak_memory: int  # bytes, in the calls before those that were timed
    operations: Operations  # of a batch
    ceilings: Mapping[str, Speed]  # in turns with the work

    @property
    def images_per_second(self) -> float:
        """Images in a second, at the median time."""
        return self.setting.batch / self.seconds.median

    @property
    def floor(self) -> float:
        """Seconds that the products and convolutions of a batch would take at the ceilings, and nothing else."""
        speed = {name: ceiling.per_second.median for name, ceiling in self.ceilings.items()}
        convolutions = self.operations.convolutions / max(speed[CONVOLUTION], speed[CHANNELS_LAST])
        seconds = self.operations.products / speed[PRODUCT] + convolutions
        int8 = self.operations.int8_products
        return seconds + int8 / speed[INT8_PRODUCT] if int8 else seconds

    @property
    def time_over_floor(self) -> float:
        """The median time over the floor; 1 is the best there can be."""
        return self.seconds.median / self.floor

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON, times in seconds."""
        return {
            "work": self.work,
            "batch": self.setting.batch,
            "dtype": dtype_name(self.setting.dtype),
            "compiled": self.setting.compiled,
            "seconds": self.seconds._asdict(),
            "images_per_second": self.images_per_second,
            "peak_memory": self.peak_memory,
            "flops": self.operations._asdict(),
            "ceilings": {name: {"size": c.size, **c.per_second._asdict()} for name, c in self.ceilings.items()},
            "floor": self.floor,
            "time_over_floor": self.time_over_floor,
        }


def measure(work: str, sizes: ModelSizes, settings: Sequence[Setting], repeats: int) -> list[Result]:
    """Measure a work of the model in several settings of one dtype and device, in turns with the ceilings of these."""
    dtype, device = settings[0].dtype, settings[0].device
    actions: list[Callable[[], object]] = []
    operations: list[Operations] = []
    memory: list[int] = []
    for setting in settings:
        reset_peak_memory(device)
        action = build_work(work, sizes, setting)
        operations.append(count_operations(action))
        for _ in range(COMPILED_WARM_UP if setting.compiled else WARM_UP):
            action()
        actions.append(action)
        memory.append(peak_memory(device))
    ceilings = prepare_ceilings(device, dtype)
    times = take_turns([*(ceiling.run for ceiling in ceilings), *actions], repeats, device)
    speeds = {ceiling.name: _speed(ceiling, seconds) for ceiling, seconds in zip(ceilings, times, strict=False)}
    measured = zip(settings, map(Spread.of, times[len(ceilings) :]), memory, operations, strict=True)
    return [Result(work, *of_setting, ceilings=speeds) for of_setting in measured]


def _speed(ceiling: Ceiling, seconds: Sequence[float]) -> Speed:
    return Speed(ceiling.size, Spread.of([ceiling.amount / each for each in seconds]))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what a speed depends on: processor, its instructions that matter, threads, versions, settings of torch."""
    capabilities = cpu_capabilities()
    return {
        "device": device_name(device),
        "processor": capabilities.get("cpu_name", "unknown"),
        "flags": [name for name in FLAGS if capabilities.get(name)],
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **versions(),
    }


# Instructions for products, by torch's names.
FLAGS = (
    *("avx2", "avx_vnni", "avx512_f", "avx512_bf16", "avx512_fp16", "avx512_vnni"),
    *("amx_tile", "amx_bf16", "amx_fp16", "amx_int8"),
    *("neon", "bf16", "dot", "i8mm", "sve", "sve2"),  # of Arm
)
