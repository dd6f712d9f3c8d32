"""Scaling laws of runs: selection of points, and fits of every quantity along every axis."""

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
    compute_beta,
    errors,
    fit_power_law,
    fit_with_irreducible_loss,
    percentiles,
    predict,
    resample,
)

A_DECADE = 4  # most points of the frontier per decade of compute
AHEAD = (2.0, 10.0)  # X of the predictions, in multiples of the largest X

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
    """Prediction of the run with the largest X from the others."""

    run: str
    points: int  # that the prediction is fitted to
    predicted: Prediction
    measured: float

    @property
    def inside(self) -> bool | None:
        """Whether the measurement is inside its prediction interval; None without one."""
        interval = self.predicted.interval
        return None if interval is None else interval.low <= self.measured <= interval.high


@dataclass(frozen=True)
class Curve:
    """Validations of a run, in the order of its steps."""

    name: str
    parameters: float  # of its blocks, in billions
    all_parameters: float  # in billions
    images: Sequence[int]  # seen up to each validation
    compute: Sequence[float]  # used up to each validation, in PFLOP
    values: Mapping[Quantity, Sequence[float]]  # of each quantity at each validation


@dataclass(frozen=True)
class Fit:
    """A power law fitted to points, with its uncertainties."""

    law: PowerLaw
    pearson: float  # correlation of log X and log L
    r_squared: float  # explained share of the variance of log L
    alpha_bootstrap: Interval  # percentiles over resampled points; too narrow below about ten points
    beta_bootstrap: Interval
    errors: Errors  # valid for few points too, under its assumption on the residuals
    predictions: Sequence[Prediction]  # at AHEAD times the largest X
    without: Mapping[str, float]  # alpha without each run
    back_test: LeaveLargestOut | None  # None if fewer than two points remain without the largest
    with_floor: WithFloor | None  # a law with irreducible loss, if the points support it
    no_floor: str  # reason for none


@dataclass(frozen=True)
class FitResult:
    """Points and fit of a quantity along an axis; no fit for too few points."""

    axis: Axis
    quantity: Quantity
    points: Sequence[Point]
    fit: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON; numbers that are not finite become None."""
        fit: dict[str, Any] | None = None
        if self.fit is not None:
            fit = {key: _to_plain(value) for key, value in vars(self.fit).items()}
            fit["law"] |= {"beta": _to_plain(self.fit.law.beta)}
            if self.fit.back_test is not None:
                fit["back_test"]["inside"] = self.fit.back_test.inside
        return {"axis": self.axis, "quantity": self.quantity, "points": _to_plain(self.points), "fit": fit}


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def envelope(points: Sequence[Point]) -> list[Point]:
    """Return the lower envelope (Pareto frontier): points below all with less or equal X, by ascending X."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not kept or point.y < kept[-1].y:
            kept.append(point)
    return kept


def thin(points: Sequence[Point], a_decade: int = A_DECADE) -> list[Point]:
    """Select points of a frontier that are at least a factor of 10^(1 / a_decade) apart in X, from the largest X down.

    Neighboring validations of one run are nearly the same measurement: a fit to all would count it many times.
    """
    step = 10 ** (1 / a_decade) * (1 - 1e-9)  # with a tolerance for points at exactly that distance
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: -point.x):
        if not kept or point.x * step <= kept[-1].x:
            kept.append(point)
    return kept[::-1]


def shared_images(curves: Sequence[Curve]) -> int:
    """Return the largest number of images after which every run was validated. Raises InputError if none."""
    shared = set.intersection(*(set(curve.images) for curve in curves))
    if not shared:
        raise InputError(
            "the runs have no validation after the same number of images: train them with one validate_every and "
            "at least that many steps"
        )
    return max(shared)


def select_points(curves: Sequence[Curve], axis: Axis, quantity: Quantity, images: int) -> list[Point]:
    """Select the points that a law is fitted to.

    Args:
        curves: of comparable runs.
        axis: `compute` selects the thinned frontier of all curves; the others each run after `images` images.
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
    """Return the share of a frontier's points that are the last validations of their runs.

    A longer run might have beaten the next size there: a frontier of run ends is not compute-optimal, but only shows
    runs of that length.
    """
    last = {curve.name: curve.compute[-1] for curve in curves}
    return sum(point.x == last[point.run] for point in points) / len(points)


def analyze(curves: Sequence[Curve], resamples: int, seed: int) -> list[FitResult]:
    """Fit every quantity along every axis.

    Raises InputError: runs without a common number of images; a value that is not positive.
    """
    images = shared_images(curves)
    return [fit_quantity(curves, axis, quantity, images, resamples, seed) for axis in AXES for quantity in QUANTITIES]


def fit_quantity(
    curves: Sequence[Curve], axis: Axis, quantity: Quantity, images: int, resamples: int, seed: int
) -> FitResult:
    """Fit one quantity along one axis; see `select_points`."""
    points = select_points(curves, axis, quantity, images)
    if len(points) < FEWEST:
        return FitResult(axis, quantity, points, None)
    x, y = _split_xy(points)
    law, lines = fit_power_law(x, y), resample(x, y, resamples, seed)
    pearson = math.nan if np.ptp(np.log(y)) == 0 else float(np.corrcoef(np.log(x), np.log(y))[0, 1])
    others = {curve.name: [other for other in curves if other is not curve] for curve in curves}
    without = {name: select_points(rest, axis, quantity, images) for name, rest in others.items()}
    floor, no_floor = fit_with_irreducible_loss(x, y, resamples // 10, seed)
    fit = Fit(
        law=law,
        pearson=pearson,
        r_squared=pearson**2,
        alpha_bootstrap=percentiles(lines.alpha),
        beta_bootstrap=percentiles(compute_beta(lines.alpha, lines.constant)),
        errors=errors(law, x, y),
        predictions=[predict(law, x, y, lines, times * max(x)) for times in AHEAD],
        without={name: fit_power_law(*_split_xy(rest)).alpha for name, rest in without.items() if len(rest) > 1},
        back_test=_back_test(points[-1], without[points[-1].run], resamples, seed),
        with_floor=floor,
        no_floor=no_floor,
    )
    return FitResult(axis, quantity, points, fit)


def _split_xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.x for point in points], [point.y for point in points]


def _back_test(last: Point, rest: Sequence[Point], resamples: int, seed: int) -> LeaveLargestOut | None:
    if len(rest) < 2:
        return None
    x, y = _split_xy(rest)
    predicted = predict(fit_power_law(x, y), x, y, resample(x, y, resamples, seed), last.x)
    return LeaveLargestOut(last.run, len(rest), predicted, last.y)
