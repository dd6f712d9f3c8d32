"""Log-log figures of scaling laws against parameters and against compute (VAR paper, section 5.1)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from var.evaluation.scaling.laws import QUANTITIES, Axis, Curve, FitResult, Quantity
from var.utils.files import atomic_write

NAMES: dict[Quantity, str] = {
    "loss_last": "loss, last scale",
    "loss_all": "loss, all scales",
    "error_last": "token error, last scale",
    "error_all": "token error, all scales",
}
LAW = "#c0392b"  # color of the fit; runs are colored from dark to light by size


def draw_parameters(findings: Sequence[FitResult], curves: Sequence[Curve], file: Path) -> None:
    """Draw losses and errors against parameters, with their fits and predictions for twice the largest size.

    Raises InputError: the file cannot be written.
    """
    colors = _assign_colors(curves)
    with _panel_grid(findings, "parameters", "parameters of the blocks", file) as panels:
        for panel, finding in panels:
            _draw_law(panel, finding, unit=1e9)
            for point in finding.points:
                panel.plot(point.x * 1e9, point.y, "o", color=colors[point.run], markeredgecolor="black", zorder=3)


def draw_compute(findings: Sequence[FitResult], curves: Sequence[Curve], file: Path) -> None:
    """Draw the training curves against compute, colored by size, with the frontier's points and its fit.

    Raises InputError: the file cannot be written.
    """
    colors = _assign_colors(curves)
    with _panel_grid(findings, "compute", "training compute, PFLOP", file) as panels:
        for panel, finding in panels:
            for curve in curves:
                parameters = float(f"{curve.parameters * 1e9:.3g}")
                label = f"{curve.name} ({EngFormatter(sep='')(parameters)})"  # 1.23M
                style = {"color": colors[curve.name], "linewidth": 1, "markersize": 3, "label": label}
                panel.plot(curve.compute, curve.values[finding.quantity], ".-", **style)
            _draw_law(panel, finding, unit=1)
            for point in finding.points:
                panel.plot(point.x, point.y, "o", color=LAW, markerfacecolor="white", zorder=3)
        panels[0][0].legend(fontsize=7, title="run (parameters)", title_fontsize=7, frameon=False)


@contextmanager
def _panel_grid(findings: Sequence[FitResult], axis: Axis, x: str, file: Path) -> Iterator[list[tuple[Any, FitResult]]]:
    """Yield a panel for the fit of each quantity along the axis, to draw in; then write the figure."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    by_quantity = {finding.quantity: finding for finding in findings if finding.axis == axis}
    panels = [(panel, by_quantity[q]) for panel, q in zip(figure.subplots(2, 2).flat, QUANTITIES, strict=True)]
    for panel, finding in panels:
        panel.set(xscale="log", yscale="log", xlabel=x, ylabel=NAMES[finding.quantity])
    yield panels
    for panel, finding in panels:
        _finish(panel, finding)
    with atomic_write(file) as beside:
        figure.savefig(beside, format="png", dpi=130)


def _draw_law(panel: Any, finding: FitResult, unit: float) -> None:
    """Draw the fitted law, dashed beyond the points, with the prediction interval of a new measurement there."""
    if finding.fit is None:
        return
    law, ahead = finding.fit.law, finding.fit.predictions[0]
    first, last = finding.points[0].x, finding.points[-1].x
    for ends, style in (((first, last), "-"), ((last, ahead.x), "--")):
        x = np.geomspace(*ends, 50)
        panel.plot(x * unit, [law.at(each) for each in x], style, color=LAW, linewidth=1.2)
    if ahead.interval is not None:
        spread = [[ahead.y - ahead.interval.low], [ahead.interval.high - ahead.y]]
        panel.errorbar([ahead.x * unit], [ahead.y], yerr=spread, color=LAW, capsize=3, linewidth=1)


def _finish(panel: Any, finding: FitResult) -> None:
    if finding.fit is None:
        panel.set_title(f"no fit: too few points ({len(finding.points)})", fontsize=9)
    else:
        letter = {"parameters": "N", "all_parameters": "N", "compute": "C"}[finding.axis]
        beta, alpha = finding.fit.law.beta, finding.fit.law.alpha
        panel.set_title(
            f"L = ({beta:.2g} {letter})^({alpha:.3g}), Pearson {finding.fit.pearson:.4f}", fontsize=9, color=LAW
        )
    low, high = panel.get_ylim()
    # A range below a factor of two has few log ticks: use linear ones.
    panel.yaxis.set_major_locator(MaxNLocator(6) if high / low < 2 else LogLocator(subs=(1, 2, 3, 5, 7)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    panel.grid(which="major", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _assign_colors(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return a color for each run, from dark (small) to light (large)."""
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    return {curve.name: shade for curve, shade in zip(curves, shades, strict=True)}
