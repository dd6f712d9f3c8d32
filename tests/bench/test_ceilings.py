"""Ceilings: their sizes follow the device's speed, their amounts the sizes."""

import math

import pytest
import torch

from var.bench import ceilings
from var.bench.ceilings import CHANNELS_LAST, CONVOLUTION, COPY, PRODUCT, prepare_ceilings


def amounts(monkeypatch: pytest.MonkeyPatch, longest: float) -> dict[str, tuple[str, float]]:
    for name, value in {"SIDE": 32, "IMAGE_SIDE": 32, "COPIED": 1024, "LONGEST": longest, "SHORTEST": 0.0}.items():
        monkeypatch.setattr(ceilings, name, value)
    found = prepare_ceilings(torch.device("cpu"), torch.float32)
    for ceiling in found:
        ceiling.run()
    return {ceiling.name: (ceiling.size, ceiling.amount) for ceiling in found}


@pytest.mark.parametrize(("longest", "side", "size"), [(math.inf, 32, 1024), (0.0, 16, 16)])
def test_sizes_are_the_largest_that_are_not_too_long(
    monkeypatch: pytest.MonkeyPatch, longest: float, side: int, size: int
) -> None:
    convolution = (f"3 x 3, 160 channels, {side} px", 2 * 9 * 160 * 160 * side * side)
    assert amounts(monkeypatch, longest) == {
        PRODUCT: (f"{side} x {side}", 2 * side**3),
        CONVOLUTION: convolution,
        CHANNELS_LAST: convolution,
        COPY: (f"{size / 2**20:g} MiB", 2 * size),
    }


def test_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "measure_seconds", lambda *_: 0.01)
    monkeypatch.setattr(ceilings, "LONGEST", 0.0)
    product, *_ = prepare_ceilings(torch.device("cpu"), torch.float32)
    assert product.amount == 5 * 2 * 16**3
