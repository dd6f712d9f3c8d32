"""What the machine can do at best: a matrix product, a convolution as in the tokenizer, a copy."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from var.bench.timing import measure_seconds
from var.models.int8 import Int8Linear
from var.utils.device import dtype_beside_int8

SIDE = 4096  # of the matrices
CHANNELS, IMAGE_SIDE = 160, 256  # of the convolution: the widest maps of the released tokenizer
COPIED = 2**27  # bytes
LONGEST = 1.0  # seconds of a call: what would take longer is made smaller
SHORTEST = 0.05  # seconds of a turn: shorter calls are repeated in it
SMALLEST = 16  # side, at which a size is tried first

PRODUCT, INT8_PRODUCT = "product", "int8 product"
CONVOLUTION, CHANNELS_LAST, COPY = "convolution", "convolution, channels last", "copy"


class Ceiling(NamedTuple):
    """Work that does nothing else, and how much of it a turn does."""

    name: str
    size: str  # for people
    amount: float  # FLOPs of a turn, or bytes read and written
    run: Callable[[], None]  # a turn


def prepare_ceilings(device: torch.device, dtype: torch.dtype) -> list[Ceiling]:
    """Build what is timed in turns with the works; sizes and repetitions are chosen for the device's speed.

    With int8 there are its products, and all ceilings of the type in which the works have the rest.
    """
    if dtype == torch.int8:
        return [
            _fit(INT8_PRODUCT, SIDE, 3, lambda side: _int8_product(side, device), device),
            *prepare_ceilings(device, dtype_beside_int8()),
        ]
    plain, last = torch.contiguous_format, torch.channels_last
    return [
        _fit(PRODUCT, SIDE, 3, lambda side: _product(side, device, dtype), device),
        _fit(CONVOLUTION, IMAGE_SIDE, 2, lambda side: _convolution(side, device, dtype, plain), device),
        _fit(CHANNELS_LAST, IMAGE_SIDE, 2, lambda side: _convolution(side, device, dtype, last), device),
        _fit(COPY, COPIED, 1, lambda size: _copy(size, device, dtype), device),
    ]


class _Call(NamedTuple):
    size: str
    amount: float
    run: Callable[[], object]


def _product(side: int, device: torch.device, dtype: torch.dtype) -> _Call:
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return _Call(f"{side} x {side}", 2 * side**3, lambda: a @ b)


def _int8_product(side: int, device: torch.device) -> _Call:
    x, weight = torch.randn(2, side, side, device=device)
    layer = Int8Linear(weight, None)
    return _Call(f"{side} x {side}", 2 * side**3, lambda: layer(x[None]))


def _convolution(side: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> _Call:
    images = torch.randn(1, CHANNELS, side, side, device=device).to(dtype=dtype, memory_format=layout)
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device).to(dtype=dtype, memory_format=layout)
    size = f"3 x 3, {CHANNELS} channels, {side} px"
    return _Call(size, 2 * 9 * CHANNELS**2 * side**2, lambda: F.conv2d(images, kernel, padding=1))


def _copy(size: int, device: torch.device, dtype: torch.dtype) -> _Call:
    source, target = torch.ones(2, size // dtype.itemsize, dtype=dtype, device=device)
    return _Call(f"{size / 2**20:g} MiB", 2 * size, lambda: target.copy_(source))


def _fit(name: str, largest: int, power: int, build: Callable[[int], _Call], device: torch.device) -> Ceiling:
    """Double a size, with whose `power` the time grows, up to the largest whose call is not too long."""
    size = min(SMALLEST, largest)
    with torch.inference_mode():
        while True:
            call = build(size)
            call.run()
            seconds = measure_seconds(call.run, device)
            if 2 * size > largest or seconds * 2**power > LONGEST:
                break
            size *= 2
    times = max(1, round(SHORTEST / seconds))

    @torch.inference_mode()
    def turn() -> None:
        for _ in range(times):
            call.run()

    return Ceiling(name, call.size, times * call.amount, turn)
