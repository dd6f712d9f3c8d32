"""Noisy measurements of a power law."""

import math
from collections.abc import Sequence

import numpy as np

from var.evaluation.scaling.power_law import Interval

X = tuple(np.geomspace(2e-5, 8e-3, 6))


def noisy(
    seed: int, x: Sequence[float] = X, alpha: float = -0.2, beta: float = 2.0, noise: float = 0.02
) -> list[float]:
    drawn = np.random.default_rng(seed).normal(0, noise, len(x))
    return [float((beta * place) ** alpha * math.exp(error)) for place, error in zip(x, drawn, strict=True)]


def covers(interval: Interval | None, value: float) -> bool:
    assert interval is not None
    return interval.low <= value <= interval.high
