"""The commands of scaling laws: `var scaling train|fit`."""

import json
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from tokenizer.errors import InputError, abbreviate
from var.cli import options
from var.cli.run import Group
from var.cli.scaling_tables import PAPER, print_report

if TYPE_CHECKING:
    from var.evaluation.scaling.laws import FitResult
    from var.evaluation.scaling.runs import Run


def train(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    depths: options.Depths = "1,2,3,4,5,6",
    launch: options.Launch = "",
    dry_run: options.DryRun = False,
) -> None:
    """Train RECIPE, of stage var, raster or mar, in one size after the other, each in OUTPUT/d{depth}.

    Run the same command again to resume. `var scaling fit` reads runs of stage var alone: its laws are VAR's.

    Examples:
      var scaling train configs/tiny_imagenet_scaling.yaml --depths 1,2,4 --dry-run
      var scaling train configs/tiny_imagenet_scaling.yaml data.source=FOLDER --launch 'torchrun --nproc_per_node 2'
    """
    logging.getLogger().setLevel(logging.INFO)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "var scaling train starts the processes of its runs itself: start it once, with --launch 'torchrun ...'"
        )
    wanted = options.whole_numbers(depths, f"--depths {abbreviate(depths)} must be whole numbers such as 1,2,4")
    from var.training.recipe import load_recipe
    from var.training.series import series as sizes
    from var.training.series import train_series

    recipes = sizes(load_recipe(recipe, overrides or []), wanted)
    if dry_run:
        from var.cli.train import print_estimate

        for size in recipes:
            typer.echo(size.headline)
            print_estimate(size)
        return
    train_series(recipes, launch, typer.echo)
    typer.echo("series: " + " ".join(str(size.output) for size in recipes))


def fit(
    runs: options.Runs,
    out: options.LawsFolder,
    as_json: options.PrintJson = False,
    resamples: options.Resamples = 2000,
    seed: options.BootstrapSeed = 0,
) -> None:
    """Fit L = (beta * X)^alpha to runs of several sizes: losses and token errors against parameters and compute.

    Examples:
      var scaling fit runs/d1 runs/d2 runs/d4 --out laws
      var scaling fit runs/d1 runs/d2 runs/d4 --out laws --json
    """
    from var.evaluation.scaling.figures import draw_compute, draw_parameters
    from var.evaluation.scaling.laws import analyze
    from var.evaluation.scaling.runs import read_runs
    from var.utils.files import atomic_write
    from var.utils.paths import check_writable

    check_writable(out)
    read = read_runs(runs)
    curves = [run.curve for run in read]
    findings = analyze(curves, resamples, seed)
    text = json.dumps(results(read, findings, resamples, seed), indent=2, allow_nan=False) + "\n"
    with atomic_write(out / "scaling.json") as beside:
        beside.write_text(text)
    draw_parameters(findings, curves, out / "parameters.png")
    draw_compute(findings, curves, out / "compute.png")
    if as_json:
        typer.echo(text, nl=False)
    else:
        print_report(read, findings)
        typer.echo(f"scaling: {out / 'scaling.json'}, parameters.png, compute.png")


def results(runs: Sequence["Run"], findings: Sequence["FitResult"], resamples: int, seed: int) -> dict[str, Any]:
    """Content of scaling.json: where the numbers come from, every run's curves, and the findings."""
    from var.evaluation.scaling.laws import A_DECADE, shared_images
    from var.evaluation.scaling.power_law import LEVEL
    from var.evaluation.scaling.runs import forward_flops, training_flops
    from var.utils.version import version

    return {
        "versions": {name: version(name) for name in ("var-next-scale", "numpy", "scipy", "torch")},
        "form": "L = (beta * X)^alpha, least squares in log L",
        "units": {"parameters": "billions", "all_parameters": "billions", "compute": "PFLOP"},
        "intervals": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "frontier_points_per_decade": A_DECADE,
        "images_shared": shared_images([run.curve for run in runs]),
        "runs": [
            {
                "folder": str(run.folder),
                "model": run.config.to_dict(),
                "lr": run.recipe.optimizer.lr,
                "batch_size": run.recipe.batch_size,
                "data": run.recipe.data.source,
                "tokenizer_sha256": run.tokenizer,
                "metrics_sha256": run.metrics,
                "forward_flops_per_image": forward_flops(run.config),
                "training_flops_per_image": training_flops(run.config),
                **vars(run.curve),
            }
            for run in runs
        ],
        "findings": [finding.to_dict() for finding in findings],
        "paper": [
            {"axis": axis, "quantity": quantity, "beta": beta, "alpha": alpha}
            for (axis, quantity), (beta, alpha) in PAPER.items()
        ],
    }


SCALING = Group(
    "scaling",
    """Train one recipe in several sizes, and fit scaling laws to the runs.

    Examples:
      var scaling train configs/tiny_imagenet_scaling.yaml --depths 1,2,4
      var scaling fit runs/scaling/d1 runs/scaling/d2 runs/scaling/d4 --out laws
    """,
    {"train": train, "fit": fit},
)
