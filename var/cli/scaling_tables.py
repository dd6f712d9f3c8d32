"""Tables of runs, fitted laws, predictions and back-tests."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.evaluation.scaling.laws import FitResult
    from var.evaluation.scaling.power_law import Interval
    from var.evaluation.scaling.runs import Run

# beta and alpha of the paper (arXiv 2404.02905, section 5.1); X in billions of parameters, or in PFLOP.
PAPER = {
    ("parameters", "loss_last"): (2.0, -0.23),
    ("parameters", "loss_all"): (2.5, -0.20),
    ("parameters", "error_last"): (490.0, -0.016),
    ("parameters", "error_all"): (650.0, -0.010),
    ("compute", "loss_last"): (2.2e-5, -0.13),
    ("compute", "loss_all"): (1.5e-5, -0.16),
}
X = {"parameters": "N", "all_parameters": "N all", "compute": "C"}


def print_report(runs: Sequence["Run"], findings: Sequence["FitResult"]) -> None:
    """Print runs, laws, predictions and back-tests, and a legend."""
    from var.evaluation.scaling.laws import AHEAD, share_of_run_ends, shared_images
    from var.evaluation.scaling.power_law import LEVEL

    curves = [run.curve for run in runs]
    images = shared_images(curves)
    _tell_table(
        f"runs: PFLOP of the whole run, losses after {images:,} images",
        [RUN_COLUMNS, *(_run_row(run, images) for run in runs)],
    )
    _tell_table(f"L = (beta X)^alpha, {LEVEL:.0%} intervals", [LAW_COLUMNS, *map(_law_row, findings)])
    ahead = ["X", "L", *(cell for times in AHEAD for cell in (f"{times:g} x the largest", "(t)"))]
    _tell_table(f"predictions, {LEVEL:.0%} intervals of a measurement", [ahead, *map(_ahead_row, findings)])
    _tell_table("the run with the largest X, predicted from the others", [TEST_COLUMNS, *map(_test_row, findings)])
    frontier = [finding for finding in findings if finding.axis == "compute" and finding.quantity.startswith("loss")]
    ends = share_of_run_ends(curves, [point for finding in frontier for point in finding.points])
    legend = [
        ("N", f"parameters of the blocks (attention, MLP, AdaLN) in billions; L after {images:,} images"),
        ("N all", "the same with embeddings and head"),
        ("C", "PFLOP of training; L on the frontier of all runs"),
        ("", f"{ends:.0%} of the points for losses are ends of their runs: longer runs may be better there"),
        ("[bootstrap]", "percentiles over resampled points; too narrow for fewer than ten or so"),
        ("(t)", "Student's t of the residuals"),
        ("all but one", "alpha when each run in turn is left out"),
        ("the paper", "alpha, beta there, of another tokenizer and data set: signs and order compare, values do not"),
    ]
    _tell_table("legend", legend)


RUN_COLUMNS = ("run", "depth", "width", "N (blocks)", "N all", "GFLOP/image", "PFLOP", "loss, last", "loss, all")
LAW_COLUMNS = (
    *("X", "L", "points", "alpha", "[bootstrap]", "(t)", "all but one"),
    *("log10 beta", "(t)", "Pearson", "R^2", "floor", "the paper"),
)
TEST_COLUMNS = ("X", "L", "run", "points", "predicted", "(t)", "measured", "inside")


def _tell_table(title: str, rows: Iterable[Sequence[str]]) -> None:
    """Print rows, without those that are empty, in columns."""
    typer.echo("\n".join([title, *in_columns([row for row in rows if row]), ""]))


def _run_row(run: "Run", images: int) -> list[str]:
    from var.evaluation.scaling.runs import training_flops

    curve, at = run.curve, list(run.curve.images).index(images)
    return [
        curve.name,
        str(run.config.depth),
        str(run.config.width),
        f"{curve.parameters * 1e9:,.0f}",
        f"{curve.all_parameters * 1e9:,.0f}",
        f"{training_flops(run.config) / 1e9:.4g}",
        f"{curve.compute[-1]:.4g}",
        f"{curve.values['loss_last'][at]:.4f}",
        f"{curve.values['loss_all'][at]:.4f}",
    ]


def _law_row(finding: "FitResult") -> list[str]:
    fit = finding.fit
    theirs = PAPER.get((finding.axis, finding.quantity))
    paper = f"{theirs[1]:g}, {theirs[0]:g}" if theirs else ""
    if fit is None:
        return [*_name(finding), str(len(finding.points)), "too few", *[""] * 8, paper]
    without, floor = list(fit.without.values()), fit.with_floor
    return [
        *_name(finding),
        str(len(finding.points)),
        f"{fit.law.alpha:.4g}",
        f"[{_interval(fit.alpha_bootstrap)}]",
        f"({_interval(fit.errors.alpha)})",
        f"{min(without):.3g} to {max(without):.3g}" if without else "",
        _number(_log10(fit.law.beta), ".3g"),
        f"({_number(_log10(fit.errors.beta.low), '.3g')} to {_number(_log10(fit.errors.beta.high), '.3g')})",
        _number(fit.pearson, ".4f"),
        _number(fit.r_squared, ".4f"),
        "none" if floor is None else f"{floor.floor:.3g} [{_interval(floor.floor_interval)}], alpha {floor.alpha:.3g}",
        paper,
    ]


def _ahead_row(finding: "FitResult") -> list[str]:
    if finding.fit is None:
        return []
    row = _name(finding)
    for prediction in finding.fit.predictions:
        row += [f"{prediction.y:.4g}", f"({_interval(prediction.interval)})"]
    return row


def _test_row(finding: "FitResult") -> list[str]:
    test = finding.fit.back_test if finding.fit else None
    if test is None:
        return []
    predicted, interval = f"{test.predicted.y:.4g}", f"({_interval(test.predicted.interval)})"
    inside = {True: "yes", False: "no", None: "unknown"}[test.inside]
    return [*_name(finding), test.run, str(test.points), predicted, interval, f"{test.measured:.4g}", inside]


def _name(finding: "FitResult") -> list[str]:
    return [X[finding.axis], finding.quantity.replace("_", " ")]


def _interval(interval: "Interval | None") -> str:
    return "unknown" if interval is None else f"{interval.low:.4g} to {interval.high:.4g}"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "unknown"


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan
