"""The commands about the recipes that come with the package: `var recipes list|show|copy`."""

from pathlib import Path

import typer

from tokenizer.errors import InputError
from var.cli import options
from var.cli.run import Group, in_columns


def list_recipes(word: options.RecipeWord = "") -> None:
    """List the recipes, each with a line.

    Examples:
      var recipes list
      var recipes list imagenet
    """
    from var.utils.recipes import describe_recipe, recipe_names, recipes_folder

    rows = [(name, describe_recipe(recipes_folder() / f"{name}.yaml")) for name in recipe_names() if word in name]
    if not rows:
        raise InputError(f"no recipe has {word!r} in its name: `var recipes list` lists all")
    for line in in_columns(rows):
        typer.echo(line)


def show(name: options.RecipeName) -> None:
    """Print the recipe NAME.

    Examples:
      var recipes show mini_var
      var recipes show own_folder_tokenizer
    """
    from var.utils.recipes import require_recipe

    typer.echo(require_recipe(name).read_text(encoding="utf-8"), nl=False)


def copy(name: options.RecipeName, to: options.RecipeTarget = Path()) -> None:
    """Copy the recipe NAME, and what it is based on, to change it.

    Examples:
      var recipes copy mini_var
      var recipes copy own_folder_var my_recipes
    """
    from var.utils.recipes import copy_recipe

    for path in copy_recipe(name, to):
        typer.echo(path)


RECIPES = Group(
    "recipes",
    """List, show and copy the recipes that come with the package; `var train NAME` takes their names.

    Examples:
      var recipes list
      var recipes copy mini_var my_recipes
    """,
    {"list": list_recipes, "show": show, "copy": copy},
)
