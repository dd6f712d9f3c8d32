"""Power laws L = (beta * X)^alpha, straight lines in log-log (VAR, arXiv 2404.02905, section 5.1). Pure functions.

X is a size or an amount of compute, L a loss or an error rate; n points, R resamples.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tokenizer.errors import InputError

LEVEL = 0.95  # of all intervals
FEWEST = 3  # points of a fit: two lie on a line whatever they are
FEWEST_WITH_FLOOR = 6  # points, or the corrected criterion of Akaike is not defined
FLAT = 1e-6  # a floor below that is none
FLOORS = (0.0, 0.5, 0.9)  # where the search for a floor begins, as shares of the lowest value

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
        return float(beta_of(self.alpha, self.constant))

    def at(self, x: float) -> float:
        return math.exp(self.constant + self.alpha * math.log(x))


class Errors(NamedTuple):
    """Errors of a line, if its residuals are independent, normal, of one size in log L."""

    deviation: float  # of a point from the line, in log L
    alpha: Interval
    beta: Interval  # by the delta method on log beta


class Resamples(NamedTuple):
    """Lines through points drawn with replacement, (R,) each."""

    alpha: Floats
    constant: Floats


class WithFloor(NamedTuple):
    """L = floor + (beta * X)^alpha; intervals over resampled points."""

    floor: float
    alpha: float
    beta: float
    floor_interval: Interval
    alpha_interval: Interval


class Prediction(NamedTuple):
    """Of a law, beyond the points that it was fitted to."""

    x: float
    y: float
    interval: Interval | None  # where a new measurement is expected; None: two points tell of no deviation
    law: Interval  # where the law itself is, over resampled points


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log y over log x.

    Raises InputError: fewer than two different x, or a value that is not positive and finite.
    """
    line = stats.linregress(*_logarithms(x, y))
    return PowerLaw(float(line.slope), float(line.intercept))


def errors(law: PowerLaw, x: Sequence[float], y: Sequence[float]) -> Errors:
    """Intervals of alpha and beta by Student's t. Raises InputError for fewer than three points."""
    u, v = _logarithms(x, y)
    n = len(u)
    if n < FEWEST:
        raise InputError(f"{n} points leave nothing to tell an error from: at least {FEWEST} are needed")
    deviation = math.sqrt(float(np.square(v - law.constant - law.alpha * u).sum()) / (n - 2))
    spread = float(np.square(u - u.mean()).sum())
    reach = _students_t(n) * deviation
    wide = reach / math.sqrt(spread)
    # log beta = level / alpha - mean of log x, with the level of log y at that mean, which is independent of the slope:
    # its derivatives are 1 / alpha and -level / alpha^2.
    alpha, level = np.float64(law.alpha), v.mean()
    with np.errstate(all="ignore"):
        beta_wide = reach * np.sqrt(1 / alpha**2 / n + level**2 / alpha**4 / spread)
        low, high = np.exp(law.constant / alpha + beta_wide * np.array([-1, 1]))
    return Errors(deviation, Interval(law.alpha - wide, law.alpha + wide), Interval(float(low), float(high)))


def resample(x: Sequence[float], y: Sequence[float], resamples: int, seed: int) -> Resamples:
    """Lines through n of the n points drawn with replacement; draws with a single x, through which none goes, again."""
    u, v = _logarithms(x, y)
    return Resamples(*_fit_lines(u, v, _draw_with_replacement(u, resamples, seed)))


def predict(law: PowerLaw, x: Sequence[float], y: Sequence[float], lines: Resamples, at: float) -> Prediction:
    """What a law says of another X, given the points that it was fitted to and their resampled lines."""
    u, _ = _logarithms(x, y)
    n, place = len(u), math.log(at)
    interval = None
    with np.errstate(over="ignore"):
        if n >= FEWEST:
            spread = np.square(u - u.mean()).sum()
            far = np.sqrt(1 + 1 / n + (place - u.mean()) ** 2 / spread)
            reach = _students_t(n) * errors(law, x, y).deviation * far
            interval = Interval(float(law.at(at) * np.exp(-reach)), float(law.at(at) * np.exp(reach)))
        there = percentiles(np.exp(lines.constant + lines.alpha * place))
    return Prediction(at, law.at(at), interval, there)


def _students_t(n: int) -> float:
    """Reach of an interval of LEVEL, in deviations of n points from their line."""
    return float(stats.t.ppf((1 + LEVEL) / 2, n - 2))


def percentiles(values: Floats) -> Interval:
    """The middle LEVEL of them."""
    tail = round((1 - LEVEL) / 2, 9)
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")  # no means: some may be infinite
    return Interval(float(low), float(high))


def fit_with_irreducible_loss(
    x: Sequence[float], y: Sequence[float], resamples: int, seed: int
) -> tuple[WithFloor, str] | tuple[None, str]:
    """L = floor + (beta * X)^alpha by least squares in log L, if the points tell such a floor.

    They do if the corrected criterion of Akaike prefers it to the law without, and if the interval of the floor over
    resampled points is above 0, and that of alpha below 0.

    Returns:
        The law, or None and why there is none.
    """
    u, v = _logarithms(x, y)
    n = len(u)
    if n < FEWEST_WITH_FLOOR:
        return None, f"{n} points are too few for three parameters: at least {FEWEST_WITH_FLOOR} are needed"
    line = power_law(x, y)
    starts = (_start(u, v, share) for share in FLOORS)
    best = min((_fitted_with_floor(u, v, start) for start in starts), key=lambda found: found.cost)
    straight = float(np.square(v - line.constant - line.alpha * u).sum())
    if _akaike(2 * best.cost, n, 4) >= _akaike(straight, n, 3):
        return None, "it does not fit so much better that its third parameter would be worth it"
    draws = _draw_with_replacement(u, resamples, seed, different=FEWEST)
    again = np.array([_fitted_with_floor(u[draw], v[draw], best.x).x for draw in draws])
    lowest = np.array([v[draw].min() for draw in draws])
    floors = percentiles(np.exp(lowest) * again[:, 0])
    alphas = percentiles(again[:, 2])
    if floors.low <= FLAT or alphas.high >= 0:
        return None, "it is not stable: over resampled points its floor reaches 0, or alpha does"
    share, constant, alpha = map(float, best.x)
    return WithFloor(math.exp(v.min()) * share, alpha, float(beta_of(alpha, constant)), floors, alphas), ""


def _start(u: Floats, v: Floats, share: float) -> Floats:
    """Share of the lowest value, then the line through what is above that floor."""
    line = stats.linregress(u, np.log(np.exp(v) - share * np.exp(v.min())))
    return np.array([share, line.intercept, line.slope])


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


def _logarithms(x: Sequence[float], y: Sequence[float]) -> tuple[Floats, Floats]:
    u, v = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("X", u), ("L", v)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            wrong = values[~(np.isfinite(values) & (values > 0))][0]
            raise InputError(f"{name}={wrong:g} has no logarithm: a power law is fitted to positive numbers")
    if len(np.unique(u)) < 2:
        raise InputError("a power law needs points with at least two different X")
    return np.log(u), np.log(v)


def _draw_with_replacement(u: Floats, resamples: int, seed: int, different: int = 2) -> NDArray[np.int64]:
    """(R, n) indices of points, each row with so many different X (or all that there are)."""
    generator = np.random.default_rng(seed)
    different = min(different, len(np.unique(u)))
    kept: list[NDArray[np.int64]] = []
    while len(kept) < resamples:
        draws = generator.integers(len(u), size=(resamples, len(u)))
        kept += [draw for draw in draws if len(np.unique(u[draw])) >= different]
    return np.stack(kept[:resamples])


def _fit_lines(u: Floats, v: Floats, chosen: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Slope and constant (R,) of the least-squares lines through the chosen points (R, n)."""
    u, v = u[chosen], v[chosen]
    level_u, level_v = u.mean(axis=1, keepdims=True), v.mean(axis=1, keepdims=True)
    slope = ((u - level_u) * (v - level_v)).sum(axis=1) / np.square(u - level_u).sum(axis=1)
    return slope, level_v[:, 0] - slope * level_u[:, 0]


def beta_of(alpha: float | Floats, constant: float | Floats) -> Floats:
    """Beta of one law, or of as many as the arrays hold; of a flat one it is infinite, 0 or NaN."""
    with np.errstate(all="ignore"):
        return np.exp(np.divide(constant, alpha))
