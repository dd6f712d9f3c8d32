"""The command that trains several sizes of one recipe: `var scaling train RECIPE --depths 2,4,6`."""

import logging
import os
import sys

import typer

from tokenizer.errors import InputError
from var.cli import options


def train(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    depths: options.Depths = "1,2,3,4,5,6",
    launch: options.Launch = "",
    dry_run: options.DryRun = False,
) -> None:
    """Train RECIPE, of stage var, in one size after the other, each in OUTPUT/d{depth}.

    Run the same command again to go on where it stopped.

    Examples:
      var scaling train configs/tiny_imagenet_scaling.yaml --depths 1,2,4 --dry-run
      var scaling train configs/tiny_imagenet_scaling.yaml data.source=FOLDER --launch 'torchrun --nproc_per_node 2'
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "var scaling train starts the processes of its runs itself: start it once, with --launch 'torchrun ...'"
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
