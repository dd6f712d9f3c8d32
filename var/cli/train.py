"""The command that trains: `python train.py RECIPE [key=value ...]`."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from var.cli.run import run


def main() -> None:
    """Entry point of train.py."""
    run(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/mini_var.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as optimizer.lr=1e-4.")] = None,
) -> None:
    """Train the stage that RECIPE describes. Run it again to go on where it stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from var.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    from var.training import loop

    typer.echo(f"model: {loop.train(checked)}")
