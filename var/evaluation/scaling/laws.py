"""Scaling laws of runs: the points they are fitted to, every quantity along every axis, and their fits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tokenizer.errors import InputError
from var.evaluation.scaling.power_law import (
    FEWEST,
    Errors,
    Interval,
    PowerLaw,
    Prediction,
    WithFloor,
    beta_of,
    errors,
    fit_with_irreducible_loss,
    percentiles,
    power_law,
    predict,
    resample,
)

A_DECADE = 4  # points of the frontier at most, in a factor of ten of compute
AHEAD = (2.0, 10.0)  # what is predicted, in multiples of the largest X

Axis = Literal["parameters", "all_parameters", "compute"]
Quantity = Literal["loss_last", "loss_all", "error_last", "error_all"]
AXES: tuple[Axis, ...] = ("parameters", "all_parameters", "compute")
QUANTITIES: tuple[Quantity, ...] = ("loss_last", "loss_all", "error_last", "error_all")


class Point(NamedTuple):
    """One measurement."""

    run: str
    x: float
    y: float


class LeaveLargestOut(NamedTuple):
    """Prediction of the run with the largest X by the others."""

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
    """The validations of a run, in the order of its steps."""

    name: str
    parameters: float  # of its blocks, in billions
    all_parameters: float  # in billions
    images: Sequence[int]  # seen before each validation
    compute: Sequence[float]  # spent before each validation, in PFLOP
    values: Mapping[Quantity, Sequence[float]]  # of each quantity at each validation


@dataclass(frozen=True)
class Fit:
    """A power law through points."""

    law: PowerLaw
    pearson: float  # correlation of log X and log L
    r_squared: float  # share of the variance of log L
    alpha_bootstrap: Interval  # percentiles over resampled points; too narrow for fewer than ten or so
    beta_bootstrap: Interval
    errors: Errors  # what holds for few points too, if residuals are as it supposes
    predictions: Sequence[Prediction]  # at AHEAD times the largest X
    without: Mapping[str, float]  # alpha when a run is left out
    back_test: LeaveLargestOut | None  # None where fewer than two points are left without the largest
    with_floor: WithFloor | None  # a law with an irreducible term, if the points tell one
    no_floor: str  # why there is none


@dataclass(frozen=True)
class FitResult:
    """The points and the law of a quantity along an axis; no fit where there are too few points."""

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
        return {"axis": self.axis, "quantity": self.quantity, "points": _plain(self.points), "fit": fit}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def shared_images(curves: Sequence[Curve]) -> int:
    """The largest number of images after which every run was validated. Raises InputError if there is none."""
    shared = set.intersection(*(set(curve.images) for curve in curves))
    if not shared:
        raise InputError(
            "the runs have no validation after the same number of images: train them with one validate_every and "
            "at least that many steps"
        )
    return max(shared)


def select_points(curves: Sequence[Curve], axis: Axis, quantity: Quantity, images: int) -> list[Point]:
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


def share_of_run_ends(curves: Sequence[Curve], points: Sequence[Point]) -> float:
    """Share of the points, of a frontier, that are their runs' last validations.

    Where a run ends it might have gone on to be better than the next size: so a frontier of ends is not of the best use
    of compute, but of runs of that length.
    """
    last = {curve.name: curve.compute[-1] for curve in curves}
    return sum(point.x == last[point.run] for point in points) / len(points)


def analyze(curves: Sequence[Curve], resamples: int, seed: int) -> list[FitResult]:
    """Every quantity along every axis.

    Raises InputError: runs without a common number of images; a value that is not positive.
    """
    images = shared_images(curves)
    return [fit_quantity(curves, axis, quantity, images, resamples, seed) for axis in AXES for quantity in QUANTITIES]


def fit_quantity(
    curves: Sequence[Curve], axis: Axis, quantity: Quantity, images: int, resamples: int, seed: int
) -> FitResult:
    """One quantity along one axis; see `select_points`."""
    points = select_points(curves, axis, quantity, images)
    if len(points) < FEWEST:
        return FitResult(axis, quantity, points, None)
    x, y = _coordinates(points)
    law, lines = power_law(x, y), resample(x, y, resamples, seed)
    pearson = math.nan if np.ptp(np.log(y)) == 0 else float(np.corrcoef(np.log(x), np.log(y))[0, 1])
    others = {curve.name: [other for other in curves if other is not curve] for curve in curves}
    without = {name: select_points(rest, axis, quantity, images) for name, rest in others.items()}
    floor, no_floor = fit_with_irreducible_loss(x, y, resamples // 10, seed)
    fit = Fit(
        law=law,
        pearson=pearson,
        r_squared=pearson**2,
        alpha_bootstrap=percentiles(lines.alpha),
        beta_bootstrap=percentiles(beta_of(lines.alpha, lines.constant)),
        errors=errors(law, x, y),
        predictions=[predict(law, x, y, lines, times * max(x)) for times in AHEAD],
        without={name: power_law(*_coordinates(rest)).alpha for name, rest in without.items() if len(rest) > 1},
        back_test=_back_test(points[-1], without[points[-1].run], resamples, seed),
        with_floor=floor,
        no_floor=no_floor,
    )
    return FitResult(axis, quantity, points, fit)


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.x for point in points], [point.y for point in points]


def _back_test(last: Point, rest: Sequence[Point], resamples: int, seed: int) -> LeaveLargestOut | None:
    if len(rest) < 2:
        return None
    x, y = _coordinates(rest)
    said = predict(power_law(x, y), x, y, resample(x, y, resamples, seed), last.x)
    return LeaveLargestOut(last.run, len(rest), said, last.y)
