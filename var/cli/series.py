"""The command that trains several sizes of one recipe: `var series RECIPE --depths 2,4,6 [key=value ...]`."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenizer.errors import InputError


def series(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe of a VAR stage: the reference size.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as steps=500.")] = None,
    depths: Annotated[
        str, typer.Option(help="Such as 1,2,4: width and heads in proportion, learning rate in inverse proportion.")
    ] = "1,2,3,4,5,6",
    launch: Annotated[
        str, typer.Option(help="What starts each run on several processes, such as 'torchrun --nproc_per_node 2'.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what each size would take: parameters, FLOPs, memory, time.")
    ] = False,
) -> None:
    """Train one size after the other, each in OUTPUT/d{depth}. Run it again to go on where it stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "var series starts the processes of its runs itself: start it once, with --launch 'torchrun ...'"
        )
    wanted = depths_of(depths)
    from var.training.recipe import load_recipe
    from var.training.series import series as sizes
    from var.training.series import train_series

    recipes = sizes(load_recipe(recipe, overrides or []), wanted)
    if dry_run:
        from var.cli.train import tell

        for size in recipes:
            typer.echo(size.headline)
            tell(size)
        return
    train_series(recipes, launch, typer.echo)
    typer.echo("series: " + " ".join(str(size.output) for size in recipes))


def depths_of(text: str) -> list[int]:
    """`1,2,4` -> numbers."""
    try:
        return [int(depth) for depth in text.split(",")]
    except ValueError as error:
        raise InputError(f"--depths {text!r} must be whole numbers such as 1,2,4") from error
