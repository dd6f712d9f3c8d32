"""Scaling laws: L = (beta * X)^alpha, a straight line in log-log (VAR, arXiv 2404.02905, section 5.1). Pure functions.

X is a size or an amount of compute, L a loss or an error rate; n points, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tokenizer.errors import InputError

LEVEL = 0.95  # of all intervals
FEWEST = 3  # points of a fit: two lie on a line whatever they are
A_DECADE = 4  # points of the frontier at most, in a factor of ten of compute
AHEAD = (2.0, 10.0)  # what is predicted, in multiples of the largest X
FEWEST_WITH_FLOOR = 6  # points, or the corrected criterion of Akaike is not defined
FLAT = 1e-6  # a floor below that is none
FLOORS = (0.0, 0.5, 0.9)  # where the search for a floor begins, as shares of the lowest value

Axis = Literal["parameters", "all_parameters", "compute"]
Quantity = Literal["loss_last", "loss_all", "error_last", "error_all"]
AXES: tuple[Axis, ...] = ("parameters", "all_parameters", "compute")
QUANTITIES: tuple[Quantity, ...] = ("loss_last", "loss_all", "error_last", "error_all")
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
        return _beta(self.alpha, self.constant)

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


class WithFloor(NamedTuple):
    """L = floor + (beta * X)^alpha; intervals over resampled points."""

    floor: float
    alpha: float
    beta: float
    floor_interval: Interval
    alpha_interval: Interval


class Point(NamedTuple):
    """One measurement."""

    run: str
    x: float
    y: float


class Prediction(NamedTuple):
    """Of a law, beyond the points that it was fitted to."""

    x: float
    y: float
    interval: Interval | None  # where a new measurement is expected; None: two points tell of no deviation
    law: Interval  # where the law itself is, over resampled points


class LeaveLargestOut(NamedTuple):
    """What the other runs said of the one with the largest X."""

    run: str
    points: int  # that the prediction rests on
    predicted: Prediction
    measured: float

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies in its interval."""
        interval = self.predicted.interval
        return None if interval is None else interval.low <= self.measured <= interval.high


@dataclass(frozen=True)
class Curve:
    """The validations of a run, in the order of its steps.

    Attributes:
        name: of the run.
        parameters: of its blocks, in billions.
        all_parameters: in billions.
        images: seen before each validation.
        compute: spent before each validation, in PFLOP.
        values: of each quantity at each validation.
    """

    name: str
    parameters: float
    all_parameters: float
    images: Sequence[int]
    compute: Sequence[float]
    values: Mapping[Quantity, Sequence[float]]


@dataclass(frozen=True)
class Fit:
    """A power law through points.

    Attributes:
        pearson: correlation of log X and log L.
        r_squared: share of the variance of log L.
        alpha_bootstrap, beta_bootstrap: percentiles over resampled points; too narrow for fewer than ten or so.
        errors: what holds for few points too, if residuals are as it supposes.
        predictions: at AHEAD times the largest X.
        without: alpha when a run is left out.
        back_test: None where fewer than two points are left without the largest.
        with_floor: a law with an irreducible term, if the points tell one.
        no_floor: why there is none.
    """

    law: PowerLaw
    pearson: float
    r_squared: float
    alpha_bootstrap: Interval
    beta_bootstrap: Interval
    errors: Errors
    predictions: Sequence[Prediction]
    without: Mapping[str, float]
    back_test: LeaveLargestOut | None
    with_floor: WithFloor | None
    no_floor: str


@dataclass(frozen=True)
class FitResult:
    """What was measured of a quantity along an axis; no fit where there are too few points."""

    axis: Axis
    quantity: Quantity
    points: Sequence[Point]
    fit: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        fit: dict[str, Any] | None = None
        if self.fit is not None:
            fit = {key: _plain(value) for key, value in vars(self.fit).items()}
            fit["law"] |= {"beta": _plain(self.fit.law.beta)}
            if self.fit.back_test is not None:
                fit["back_test"]["inside"] = self.fit.back_test.inside
        return {**asdict(self), "points": _plain(self.points), "fit": fit}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- one fit


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log y over log x.

    Raises:
        InputError: fewer than two different x, or a value that is not positive and finite.
    """
    u, v = _logarithms(x, y)
    alpha, constant = _lines(u, v, np.arange(len(u))[None])
    return PowerLaw(float(alpha[0]), float(constant[0]))


def errors(law: PowerLaw, x: Sequence[float], y: Sequence[float]) -> Errors:
    """Intervals of alpha and beta by Student's t; for three points or more.

    Raises:
        InputError: fewer points.
    """
    u, v = _logarithms(x, y)
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
    middle = _divided(law.constant, law.alpha)
    beta_wide = reach * math.sqrt(_divided(1, law.alpha**2) / n + _divided(level**2, law.alpha**4) / spread)
    return Errors(
        deviation,
        Interval(law.alpha - wide, law.alpha + wide),
        Interval(_exp(middle - beta_wide), _exp(middle + beta_wide)),
    )


def resample(x: Sequence[float], y: Sequence[float], resamples: int, seed: int) -> Resamples:
    """Lines through n of the n points drawn with replacement; draws with a single x, through which none goes, again."""
    u, v = _logarithms(x, y)
    chosen = _drawn(u, resamples, seed)
    return Resamples(*_lines(u, v, chosen))


def predict(law: PowerLaw, x: Sequence[float], y: Sequence[float], lines: Resamples, at: float) -> Prediction:
    """What a law fitted to points says of another X.

    Args:
        law: power_law(x, y).
        x, y: the points.
        lines: resample(x, y, ...).
        at: the other X.
    """
    u, _ = _logarithms(x, y)
    n, place = len(u), math.log(at)
    interval = None
    if n >= FEWEST:
        spread = float(np.square(u - u.mean()).sum())
        far = math.sqrt(1 + 1 / n + (place - float(u.mean())) ** 2 / spread)
        reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 2)) * errors(law, x, y).deviation * far
        interval = Interval(law.at(at) * _exp(-reach), law.at(at) * _exp(reach))
    with np.errstate(over="ignore"):
        there = percentiles(np.exp(lines.constant + lines.alpha * place))
    return Prediction(at, law.at(at), interval, there)


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
    starts = [_start(line, u, v, share) for share in FLOORS]
    best = min((_fitted_with_floor(u, v, start) for start in starts), key=lambda found: found.cost)
    straight = float(np.square(v - line.constant - line.alpha * u).sum())
    if _akaike(2 * best.cost, n, 4) >= _akaike(straight, n, 3):
        return None, "it does not fit so much better that its third parameter would be worth it"
    draws = _drawn(u, resamples, seed, different=FEWEST)
    again = np.array([_fitted_with_floor(u[draw], v[draw], best.x).x for draw in draws])
    lowest = np.array([v[draw].min() for draw in draws])
    floors = percentiles(np.exp(lowest) * again[:, 0])
    alphas = percentiles(again[:, 2])
    if floors.low <= FLAT or alphas.high >= 0:
        return None, "it is not stable: over resampled points its floor reaches 0, or alpha does"
    floor = float(np.exp(v.min()) * best.x[0])
    alpha, constant = float(best.x[2]), float(best.x[1])
    return WithFloor(floor, alpha, _beta(alpha, constant), floors, alphas), ""


def _start(line: PowerLaw, u: Floats, v: Floats, share: float) -> Floats:
    """Share of the lowest value, then the line through what is above that floor."""
    above = np.log(np.exp(v) - share * np.exp(v.min()))
    alpha, constant = _lines(u, above, np.arange(len(u))[None])
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


def _logarithms(x: Sequence[float], y: Sequence[float]) -> tuple[Floats, Floats]:
    u, v = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("X", u), ("L", v)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            wrong = values[~(np.isfinite(values) & (values > 0))][0]
            raise InputError(f"{name}={wrong:g} has no logarithm: a power law is fitted to positive numbers")
    if len(np.unique(u)) < 2:
        raise InputError("a power law needs points with at least two different X")
    return np.log(u), np.log(v)


def _drawn(u: Floats, resamples: int, seed: int, different: int = 2) -> NDArray[np.int64]:
    """(R, n) indices of points, each row with so many different X (or all that there are)."""
    generator = np.random.default_rng(seed)
    different = min(different, len(np.unique(u)))
    kept: list[NDArray[np.int64]] = []
    while len(kept) < resamples:
        draws = generator.integers(len(u), size=(resamples, len(u)))
        kept += [draw for draw in draws if len(np.unique(u[draw])) >= different]
    return np.stack(kept[:resamples])


def _lines(u: Floats, v: Floats, chosen: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Slope and constant (R,) of the least-squares lines through the chosen points (R, n)."""
    u, v = u[chosen], v[chosen]
    level_u, level_v = u.mean(axis=1, keepdims=True), v.mean(axis=1, keepdims=True)
    slope = ((u - level_u) * (v - level_v)).sum(axis=1) / np.square(u - level_u).sum(axis=1)
    return slope, level_v[:, 0] - slope * level_u[:, 0]


def _beta(alpha: float, constant: float) -> float:
    return _exp(_divided(constant, alpha))


def _divided(a: float, b: float) -> float:
    return a / b if b else math.nan if a == 0 else math.copysign(math.inf, a)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.nan if math.isnan(x) else math.inf


# --- the frontier


def envelope(points: Sequence[Point]) -> list[Point]:
    """Those that no point with less or equal X is below, by ascending X; of equal ones the first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not kept or point.y < kept[-1].y:
            kept.append(point)
    return kept


def thin(points: Sequence[Point], a_decade: int = A_DECADE) -> list[Point]:
    """Points of a frontier at least a factor of 10^(1 / a_decade) apart in X, taken from the largest X down.

    Neighboring validations of one run say nearly the same: all of them in a fit would count one measurement many
    times.
    """
    step = 10 ** (1 / a_decade) * (1 - 1e-9)  # a point at just that distance counts, whatever the rounding
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: -point.x):
        if not kept or point.x * step <= kept[-1].x:
            kept.append(point)
    return kept[::-1]


# --- the whole of it


def shared_images(curves: Sequence[Curve]) -> int:
    """The largest number of images after which every run was validated.

    Raises:
        InputError: there is none.
    """
    shared = set.intersection(*(set(curve.images) for curve in curves))
    if not shared:
        raise InputError(
            "the runs have no validation after the same number of images: train them with one validate_every and "
            "at least that many steps"
        )
    return max(shared)


def measured(curves: Sequence[Curve], axis: Axis, quantity: Quantity, images: int) -> list[Point]:
    """The points that a law is fitted to.

    Args:
        curves: of runs that can be compared.
        axis: `compute` takes the frontier of all curves, thinned; the others each run after `images` images.
    """
    if axis == "compute":
        points = [
            Point(curve.name, x, y)
            for curve in curves
            for x, y in zip(curve.compute, curve.values[quantity], strict=True)
        ]
        return thin(envelope(points))
    points = [Point(c.name, getattr(c, axis), c.values[quantity][list(c.images).index(images)]) for c in curves]
    return sorted(points, key=lambda point: point.x)


def ends_of_runs(curves: Sequence[Curve], points: Sequence[Point]) -> float:
    """Share of the points, of a frontier, that are their runs' last validations.

    Where a run ends it might have gone on to be better than the next size: so a frontier of ends is not of the best use
    of compute, but of runs of that length.
    """
    last = {curve.name: curve.compute[-1] for curve in curves}
    return sum(point.x == last[point.run] for point in points) / len(points)


def analyze(curves: Sequence[Curve], resamples: int, seed: int) -> list[FitResult]:
    """Every quantity along every axis.

    Raises:
        InputError: runs without a common number of images; a value that is not positive.
    """
    images = shared_images(curves)
    return [find(curves, axis, quantity, images, resamples, seed) for axis in AXES for quantity in QUANTITIES]


def find(curves: Sequence[Curve], axis: Axis, quantity: Quantity, images: int, resamples: int, seed: int) -> FitResult:
    """One quantity along one axis; see `measured`."""
    points = measured(curves, axis, quantity, images)
    if len(points) < FEWEST:
        return FitResult(axis, quantity, points, None)
    x, y = [point.x for point in points], [point.y for point in points]
    law, lines = power_law(x, y), resample(x, y, resamples, seed)
    u, v = np.log(x), np.log(y)
    flat = float(np.ptp(v)) == 0
    pearson = math.nan if flat else float(np.corrcoef(u, v)[0, 1])
    betas = np.array([_beta(alpha, constant) for alpha, constant in zip(*lines, strict=True)])
    others = {curve.name: [other for other in curves if other is not curve] for curve in curves}
    without = {name: measured(rest, axis, quantity, images) for name, rest in others.items()}
    floor, no_floor = fit_with_irreducible_loss(x, y, resamples // 10, seed)
    fit = Fit(
        law=law,
        pearson=pearson,
        r_squared=pearson**2,
        alpha_bootstrap=percentiles(lines.alpha),
        beta_bootstrap=percentiles(betas),
        errors=errors(law, x, y),
        predictions=[predict(law, x, y, lines, times * max(x)) for times in AHEAD],
        without={name: _law(rest).alpha for name, rest in without.items() if len(rest) > 1},
        back_test=_back_test(points[-1], without[points[-1].run], resamples, seed),
        with_floor=floor,
        no_floor=no_floor,
    )
    return FitResult(axis, quantity, points, fit)


def _law(points: Sequence[Point]) -> PowerLaw:
    return power_law([point.x for point in points], [point.y for point in points])


def _back_test(last: Point, rest: Sequence[Point], resamples: int, seed: int) -> LeaveLargestOut | None:
    if len(rest) < 2:
        return None
    x, y = [point.x for point in rest], [point.y for point in rest]
    said = predict(power_law(x, y), x, y, resample(x, y, resamples, seed), last.x)
    return LeaveLargestOut(last.run, len(rest), said, last.y)
