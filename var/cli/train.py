"""The command that trains: `python train.py RECIPE [key=value ...]`."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from var.cli.run import run

if TYPE_CHECKING:
    from var.training.config import Recipe


def main() -> None:
    """Entry point of train.py."""
    run(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/mini_var.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as optimizer.lr=1e-4.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would take: parameters, FLOPs, memory, steps, time.")
    ] = False,
) -> None:
    """Train the stage that RECIPE describes. Run it again to go on where it stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from var.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    if dry_run:
        tell(checked)
        return
    from var.training import loop

    typer.echo(f"model: {loop.train(checked)}")


def tell(recipe: "Recipe") -> None:
    """Print what a run would take, once if there are several processes."""
    from rich.console import Console

    from var.training.estimate.estimate import estimate
    from var.training.estimate.table import show

    found = estimate(recipe)
    if int(os.environ.get("RANK", "0")) == 0:
        Console(soft_wrap=True).print(show(found))
