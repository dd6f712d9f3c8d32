"""Scaling laws with an irreducible term: L = floor + (beta * X)^alpha. Pure functions.

X is a size or an amount of compute, L a loss or an error rate; n points, R resamples.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from var.evaluation.scaling.power_law import (
    FEWEST,
    Floats,
    Interval,
    PowerLaw,
    beta_of,
    draw_with_replacement,
    fit_lines,
    logarithms,
    percentiles,
    power_law,
)

FEWEST_WITH_FLOOR = 6  # points, or the corrected criterion of Akaike is not defined
FLAT = 1e-6  # a floor below that is none
FLOORS = (0.0, 0.5, 0.9)  # where the search for a floor begins, as shares of the lowest value


class WithFloor(NamedTuple):
    """L = floor + (beta * X)^alpha; intervals over resampled points."""

    floor: float
    alpha: float
    beta: float
    floor_interval: Interval
    alpha_interval: Interval


def fit_with_irreducible_loss(
    x: Sequence[float], y: Sequence[float], resamples: int, seed: int
) -> tuple[WithFloor, str] | tuple[None, str]:
    """L = floor + (beta * X)^alpha by least squares in log L, if the points tell such a floor.

    They do if the corrected criterion of Akaike prefers it to the law without, and if the interval of the floor over
    resampled points is above 0, and that of alpha below 0.

    Returns:
        The law, or None and why there is none.
    """
    u, v = logarithms(x, y)
    n = len(u)
    if n < FEWEST_WITH_FLOOR:
        return None, f"{n} points are too few for three parameters: at least {FEWEST_WITH_FLOOR} are needed"
    line = power_law(x, y)
    starts = [_start(line, u, v, share) for share in FLOORS]
    best = min((_fitted_with_floor(u, v, start) for start in starts), key=lambda found: found.cost)
    straight = float(np.square(v - line.constant - line.alpha * u).sum())
    if _akaike(2 * best.cost, n, 4) >= _akaike(straight, n, 3):
        return None, "it does not fit so much better that its third parameter would be worth it"
    draws = draw_with_replacement(u, resamples, seed, different=FEWEST)
    again = np.array([_fitted_with_floor(u[draw], v[draw], best.x).x for draw in draws])
    lowest = np.array([v[draw].min() for draw in draws])
    floors = percentiles(np.exp(lowest) * again[:, 0])
    alphas = percentiles(again[:, 2])
    if floors.low <= FLAT or alphas.high >= 0:
        return None, "it is not stable: over resampled points its floor reaches 0, or alpha does"
    floor = float(np.exp(v.min()) * best.x[0])
    alpha, constant = float(best.x[2]), float(best.x[1])
    return WithFloor(floor, alpha, beta_of(alpha, constant), floors, alphas), ""


def _start(line: PowerLaw, u: Floats, v: Floats, share: float) -> Floats:
    """Share of the lowest value, then the line through what is above that floor."""
    above = np.log(np.exp(v) - share * np.exp(v.min()))
    alpha, constant = fit_lines(u, above, np.arange(len(u))[None])
    return np.array([share, constant[0], alpha[0]])


def _fitted_with_floor(u: Floats, v: Floats, start: Floats) -> Any:
    """The solution of scipy.optimize: x is (floor as a share of the lowest value, constant, alpha)."""
    lowest = math.exp(v.min())

    def residuals(parameters: Floats) -> Floats:
        share, constant, alpha = parameters
        # Beyond a bound that no data reaches, so that a step too far is refused and does not overflow.
        return np.log(share * lowest + np.exp(np.clip(constant + alpha * u, -300, 300))) - v

    bounds = ([0, -np.inf, -np.inf], [1, np.inf, np.inf])
    return optimize.least_squares(residuals, start, bounds=bounds, x_scale="jac", max_nfev=200)


def _akaike(squares: float, n: int, parameters: int) -> float:
    """Corrected for small n; the deviation counts as a parameter."""
    likelihood = n * math.log(max(squares, 1e-300) / n)
    return likelihood + 2 * parameters + 2 * parameters * (parameters + 1) / (n - parameters - 1)
