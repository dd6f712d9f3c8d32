"""Scaling laws: L = (beta * X)^alpha, a straight line in log-log (VAR, arXiv 2404.02905, section 5.1). Pure functions.

X is a size or an amount of compute, L a loss or an error rate; n points, R resamples.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tokenizer.errors import InputError

LEVEL = 0.95  # of all intervals
FEWEST = 3  # points of a fit: two lie on a line whatever they are

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    low: float
    high: float


class PowerLaw(NamedTuple):
    """L = (beta * X)^alpha, held as log L = constant + alpha * log X."""

    alpha: float
    constant: float

    @property
    def beta(self) -> float:
        """Infinite or 0 where alpha is so small that it has no place among the numbers; NaN where alpha is 0."""
        return beta_of(self.alpha, self.constant)

    def at(self, x: float) -> float:
        return math.exp(self.constant + self.alpha * math.log(x))


class Errors(NamedTuple):
    """What the residuals of a line say of it: independent, normal, of one size in log L."""

    deviation: float  # of a point from the line, in log L
    alpha: Interval
    beta: Interval  # by the delta method on log beta


class Resamples(NamedTuple):
    """Lines through points drawn with replacement, (R,) each."""

    alpha: Floats
    constant: Floats


class Prediction(NamedTuple):
    """Of a law, beyond the points that it was fitted to."""

    x: float
    y: float
    interval: Interval | None  # where a new measurement is expected; None: two points tell of no deviation
    law: Interval  # where the law itself is, over resampled points


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log y over log x.

    Raises:
        InputError: fewer than two different x, or a value that is not positive and finite.
    """
    u, v = logarithms(x, y)
    alpha, constant = fit_lines(u, v, np.arange(len(u))[None])
    return PowerLaw(float(alpha[0]), float(constant[0]))


def errors(law: PowerLaw, x: Sequence[float], y: Sequence[float]) -> Errors:
    """Intervals of alpha and beta by Student's t; for three points or more.

    Raises:
        InputError: fewer points.
    """
    u, v = logarithms(x, y)
    n = len(u)
    if n < FEWEST:
        raise InputError(f"{n} points leave nothing to tell an error from: at least {FEWEST} are needed")
    deviation = math.sqrt(float(np.square(v - law.constant - law.alpha * u).sum()) / (n - 2))
    spread = float(np.square(u - u.mean()).sum())
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 2)) * deviation
    wide = reach / math.sqrt(spread)
    # log beta = level / alpha - mean of log x, with the level of log y at that mean, which is independent of the slope:
    # its derivatives are 1 / alpha and -level / alpha^2.
    level = float(v.mean())
    middle = divide(law.constant, law.alpha)
    beta_wide = reach * math.sqrt(divide(1, law.alpha**2) / n + divide(level**2, law.alpha**4) / spread)
    return Errors(
        deviation,
        Interval(law.alpha - wide, law.alpha + wide),
        Interval(safe_exp(middle - beta_wide), safe_exp(middle + beta_wide)),
    )


def resample(x: Sequence[float], y: Sequence[float], resamples: int, seed: int) -> Resamples:
    """Lines through n of the n points drawn with replacement; draws with a single x, through which none goes, again."""
    u, v = logarithms(x, y)
    chosen = draw_with_replacement(u, resamples, seed)
    return Resamples(*fit_lines(u, v, chosen))


def predict(law: PowerLaw, x: Sequence[float], y: Sequence[float], lines: Resamples, at: float) -> Prediction:
    """What a law fitted to points says of another X.

    Args:
        law: power_law(x, y).
        x, y: the points.
        lines: resample(x, y, ...).
        at: the other X.
    """
    u, _ = logarithms(x, y)
    n, place = len(u), math.log(at)
    interval = None
    if n >= FEWEST:
        spread = float(np.square(u - u.mean()).sum())
        far = math.sqrt(1 + 1 / n + (place - float(u.mean())) ** 2 / spread)
        reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 2)) * errors(law, x, y).deviation * far
        interval = Interval(law.at(at) * safe_exp(-reach), law.at(at) * safe_exp(reach))
    with np.errstate(over="ignore"):
        there = percentiles(np.exp(lines.constant + lines.alpha * place))
    return Prediction(at, law.at(at), interval, there)


def percentiles(values: Floats) -> Interval:
    """The middle LEVEL of them."""
    tail = round((1 - LEVEL) / 2, 9)
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")  # no means: some may be infinite
    return Interval(float(low), float(high))


def logarithms(x: Sequence[float], y: Sequence[float]) -> tuple[Floats, Floats]:
    u, v = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("X", u), ("L", v)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            wrong = values[~(np.isfinite(values) & (values > 0))][0]
            raise InputError(f"{name}={wrong:g} has no logarithm: a power law is fitted to positive numbers")
    if len(np.unique(u)) < 2:
        raise InputError("a power law needs points with at least two different X")
    return np.log(u), np.log(v)


def draw_with_replacement(u: Floats, resamples: int, seed: int, different: int = 2) -> NDArray[np.int64]:
    """(R, n) indices of points, each row with so many different X (or all that there are)."""
    generator = np.random.default_rng(seed)
    different = min(different, len(np.unique(u)))
    kept: list[NDArray[np.int64]] = []
    while len(kept) < resamples:
        draws = generator.integers(len(u), size=(resamples, len(u)))
        kept += [draw for draw in draws if len(np.unique(u[draw])) >= different]
    return np.stack(kept[:resamples])


def fit_lines(u: Floats, v: Floats, chosen: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Slope and constant (R,) of the least-squares lines through the chosen points (R, n)."""
    u, v = u[chosen], v[chosen]
    level_u, level_v = u.mean(axis=1, keepdims=True), v.mean(axis=1, keepdims=True)
    slope = ((u - level_u) * (v - level_v)).sum(axis=1) / np.square(u - level_u).sum(axis=1)
    return slope, level_v[:, 0] - slope * level_u[:, 0]


def beta_of(alpha: float, constant: float) -> float:
    return safe_exp(divide(constant, alpha))


def divide(a: float, b: float) -> float:
    return a / b if b else math.nan if a == 0 else math.copysign(math.inf, a)


def safe_exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.nan if math.isnan(x) else math.inf
