"""The command that trains: `python train.py RECIPE [key=value ...]`."""

import logging
import os
from typing import TYPE_CHECKING

import typer

from var.cli import options
from var.cli.run import run

if TYPE_CHECKING:
    from var.training.config import Recipe


def main() -> None:
    """Entry point of train.py."""
    run(train)


def train(recipe: options.Recipe, overrides: options.Overrides = None, dry_run: options.DryRun = False) -> None:
    """Train the stage that RECIPE describes. Run the same command again to resume.

    Examples:
      var train configs/mini_var.yaml --dry-run
      var train configs/mini_var.yaml data.source=FOLDER optimizer.lr=1e-4
      torchrun --nproc_per_node 8 -m var train configs/mini_var.yaml
    """
    logging.getLogger().setLevel(logging.INFO)
    from var.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    if dry_run:
        print_estimate(checked)
        return
    from var.training import loop
    from var.training.stages.base import find_stage

    exported = loop.train(checked)
    typer.echo(f"model: {exported}")
    if is_main_process():
        typer.echo(f"next: {find_stage(checked.stage).next_command(checked)}", err=True)


def print_estimate(recipe: "Recipe") -> None:
    """Print the estimate of a run, on the first process only."""
    from rich.console import Console

    from var.training.estimate.cost import estimate
    from var.training.estimate.table import show

    found = estimate(recipe)
    if is_main_process():
        Console(soft_wrap=True).print(show(found))


def is_main_process() -> bool:
    """Return whether this is the first of the processes that a launcher has started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
