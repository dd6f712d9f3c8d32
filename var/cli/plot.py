"""The command that draws the curves of a run: `var plot RUN`."""

import typer

from var.cli import options


def plot(run: options.RunFolder, out: options.PlotFile = None) -> None:
    """Draw the numbers of a RUN, as training logs them, against its steps.

    Examples:
      var plot runs/mini_var
      var plot runs/mini_var --out curves.png
    """
    from var.training.curves import draw_curves, read_metrics
    from var.utils.paths import check_target

    metrics = read_metrics(run)
    target = run / "curves.png" if out is None else out
    check_target(target, "curves.png")
    draw_curves(metrics, target, run.name)
    typer.echo(f"plot: {target}")
