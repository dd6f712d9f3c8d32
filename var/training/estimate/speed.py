"""How fast this machine multiplies matrices now."""

import time

import torch
from torch import Tensor

LONG_ENOUGH = 0.05  # seconds of a product whose speed is believed
LARGEST_PRODUCT = 8192


def measured_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product there now: the best of three, of matrices large enough to take their time."""
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


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})"
