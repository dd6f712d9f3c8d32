"""Power laws L = (beta * X)^alpha, straight lines in log-log (VAR, arXiv 2404.02905, section 5.1).

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
FEWEST = 3  # points of a fit: two are always on a line
FEWEST_WITH_FLOOR = 6  # points, below which the corrected Akaike criterion (AICc) is undefined
FLAT = 1e-6  # a smaller floor counts as none
FLOORS = (0.0, 0.5, 0.9)  # initial floors of the fit, as shares of the lowest value

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    low: float
    high: float


class PowerLaw(NamedTuple):
    """L = (beta * X)^alpha, stored as log L = constant + alpha * log X."""

    alpha: float
    constant: float

    @property
    def beta(self) -> float:
        """Scale of X; infinite or 0 if it overflows because alpha is small, NaN if alpha is 0."""
        return float(compute_beta(self.alpha, self.constant))

    def at(self, x: float) -> float:
        return math.exp(self.constant + self.alpha * math.log(x))


class Errors(NamedTuple):
    """Errors of a line, assuming independent normal residuals of one variance in log L."""

    deviation: float  # standard deviation of points from the line, in log L
    alpha: Interval
    beta: Interval  # by the delta method on log beta


class Resamples(NamedTuple):
    """Lines fitted to bootstrap resamples of the points, (R,) each."""

    alpha: Floats
    constant: Floats


class WithFloor(NamedTuple):
    """L = floor + (beta * X)^alpha, with bootstrap intervals."""

    floor: float
    alpha: float
    beta: float
    floor_interval: Interval
    alpha_interval: Interval


class Prediction(NamedTuple):
    """Prediction of a law at another X."""

    x: float
    y: float
    interval: Interval | None  # prediction interval of a new measurement; None for two points
    law: Interval  # bootstrap interval of the law itself


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit log y over log x by least squares.

    Raises InputError: fewer than two different x, or a value that is not positive and finite.
    """
    line = stats.linregress(*_take_logarithms(x, y))
    return PowerLaw(float(line.slope), float(line.intercept))


def errors(law: PowerLaw, x: Sequence[float], y: Sequence[float]) -> Errors:
    """Return intervals of alpha and beta by Student's t. Raises InputError for fewer than three points."""
    u, v = _take_logarithms(x, y)
    n = len(u)
    if n < FEWEST:
        raise InputError(f"errors of a fit need at least {FEWEST} points, not {n}")
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
    """Fit lines to bootstrap resamples of the n points; resamples with a single x, which have no line, are redrawn."""
    u, v = _take_logarithms(x, y)
    return Resamples(*_fit_lines(u, v, _draw_with_replacement(u, resamples, seed)))


def predict(law: PowerLaw, x: Sequence[float], y: Sequence[float], lines: Resamples, at: float) -> Prediction:
    """Predict y at another X, given the points that the law was fitted to and their resampled lines."""
    u, _ = _take_logarithms(x, y)
    n, log_at = len(u), math.log(at)
    interval = None
    with np.errstate(over="ignore"):
        if n >= FEWEST:
            spread = np.square(u - u.mean()).sum()
            far = np.sqrt(1 + 1 / n + (log_at - u.mean()) ** 2 / spread)
            reach = _students_t(n) * errors(law, x, y).deviation * far
            interval = Interval(float(law.at(at) * np.exp(-reach)), float(law.at(at) * np.exp(reach)))
        of_law = percentiles(np.exp(lines.constant + lines.alpha * log_at))
    return Prediction(at, law.at(at), interval, of_law)


def _students_t(n: int) -> float:
    """Return the half-width of an interval of LEVEL, in standard deviations of n points from their line."""
    return float(stats.t.ppf((1 + LEVEL) / 2, n - 2))


def percentiles(values: Floats) -> Interval:
    """Return the interval of the middle LEVEL of the values."""
    tail = round((1 - LEVEL) / 2, 9)
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")  # no interpolation: some may be infinite
    return Interval(float(low), float(high))


def fit_with_irreducible_loss(
    x: Sequence[float], y: Sequence[float], resamples: int, seed: int
) -> tuple[WithFloor, str] | tuple[None, str]:
    """Fit L = floor + (beta * X)^alpha by least squares in log L, if the points support a floor.

    They do if the corrected Akaike criterion prefers it to the law without, and if the bootstrap interval of the floor
    is above 0, and that of alpha below 0.

    Returns:
        The law, or None and the reason.
    """
    u, v = _take_logarithms(x, y)
    n = len(u)
    if n < FEWEST_WITH_FLOOR:
        return None, f"{n} points are too few for three parameters: at least {FEWEST_WITH_FLOOR} are needed"
    line = fit_power_law(x, y)
    starts = (_guess_start(u, v, share) for share in FLOORS)
    best = min((_fit_with_floor(u, v, start) for start in starts), key=lambda found: found.cost)
    straight = float(np.square(v - line.constant - line.alpha * u).sum())
    if _akaike(2 * best.cost, n, 4) >= _akaike(straight, n, 3):
        return None, "the third parameter does not improve the fit enough (corrected Akaike criterion)"
    draws = _draw_with_replacement(u, resamples, seed, different=FEWEST)
    again = np.array([_fit_with_floor(u[draw], v[draw], best.x).x for draw in draws])
    lowest = np.array([v[draw].min() for draw in draws])
    floors = percentiles(np.exp(lowest) * again[:, 0])
    alphas = percentiles(again[:, 2])
    if floors.low <= FLAT or alphas.high >= 0:
        return None, "not stable: over resampled points the floor or alpha reaches 0"
    share, constant, alpha = map(float, best.x)
    return WithFloor(math.exp(v.min()) * share, alpha, float(compute_beta(alpha, constant)), floors, alphas), ""


def _guess_start(u: Floats, v: Floats, share: float) -> Floats:
    """Return initial parameters: the floor's share of the lowest value, then the line through the rest."""
    line = stats.linregress(u, np.log(np.exp(v) - share * np.exp(v.min())))
    return np.array([share, line.intercept, line.slope])


def _fit_with_floor(u: Floats, v: Floats, start: Floats) -> Any:
    """Return scipy's solution, whose x is (floor as a share of the lowest value, constant, alpha)."""
    lowest = math.exp(v.min())

    def residuals(parameters: Floats) -> Floats:
        share, constant, alpha = parameters
        # Clipped beyond the range of any data, so that a step too far is rejected and does not overflow.
        return np.log(share * lowest + np.exp(np.clip(constant + alpha * u, -300, 300))) - v

    bounds = ([0, -np.inf, -np.inf], [1, np.inf, np.inf])
    return optimize.least_squares(residuals, start, bounds=bounds, x_scale="jac", max_nfev=200)


def _akaike(squares: float, n: int, parameters: int) -> float:
    """Return the Akaike criterion, corrected for small n; the deviation counts as a parameter."""
    likelihood = n * math.log(max(squares, 1e-300) / n)
    return likelihood + 2 * parameters + 2 * parameters * (parameters + 1) / (n - parameters - 1)


def _take_logarithms(x: Sequence[float], y: Sequence[float]) -> tuple[Floats, Floats]:
    u, v = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("X", u), ("L", v)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            wrong = values[~(np.isfinite(values) & (values > 0))][0]
            raise InputError(f"{name}={wrong:g} has no logarithm: a power law is fitted to positive numbers")
    if len(np.unique(u)) < 2:
        raise InputError("a power law needs points with at least two different X: give runs of several sizes")
    return np.log(u), np.log(v)


def _draw_with_replacement(u: Floats, resamples: int, seed: int, different: int = 2) -> NDArray[np.int64]:
    """Return (R, n) indices of points, each row with at least `different` different X (or all that exist)."""
    generator = np.random.default_rng(seed)
    different = min(different, len(np.unique(u)))
    kept: list[NDArray[np.int64]] = []
    while len(kept) < resamples:
        draws = generator.integers(len(u), size=(resamples, len(u)))
        kept += [draw for draw in draws if len(np.unique(u[draw])) >= different]
    return np.stack(kept[:resamples])


def _fit_lines(u: Floats, v: Floats, chosen: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return slope and constant (R,) of the least-squares lines through the chosen points (R, n)."""
    u, v = u[chosen], v[chosen]
    level_u, level_v = u.mean(axis=1, keepdims=True), v.mean(axis=1, keepdims=True)
    slope = ((u - level_u) * (v - level_v)).sum(axis=1) / np.square(u - level_u).sum(axis=1)
    return slope, level_v[:, 0] - slope * level_u[:, 0]


def compute_beta(alpha: float | Floats, constant: float | Floats) -> Floats:
    """Return beta of one law or of arrays of laws; infinite, 0 or NaN for flat ones."""
    with np.errstate(all="ignore"):
        return np.exp(np.divide(constant, alpha))
