"""Time and memory of pieces of work that take turns."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
_RESET_PEAK = "5"


class Spread(NamedTuple):
    """A median with the values around it."""

    median: float
    lowest: float
    highest: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize one value or more."""
        return cls(statistics.median(values), min(values), max(values), tuple(values))


def measure_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Time of one call, until the device has finished."""
    synchronize(device)
    began = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def take_turns(actions: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Time each action so many times, one after the other in every round, so that all see the same load of the machine.

    Returns the seconds of each action.
    """
    rounds = [[measure_seconds(action, device) for action in actions] for _ in range(repeats)]
    return [list(times) for times in zip(*rounds, strict=True)]


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew with what `peak_memory` measures, where the system allows it (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        _RESET.write_text(_RESET_PEAK)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes since `reset_peak_memory`: on CUDA of tensors there, elsewhere of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _RESET.exists():
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
