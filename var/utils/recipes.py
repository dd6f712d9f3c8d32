"""The recipes that come with the package, by name: configs/ of a clone, var/configs of an installed wheel."""

import shutil
from pathlib import Path

import yaml

from tokenizer.errors import InputError, did_you_mean
from var.utils.paths import check_writable

_HERE = Path(__file__).parents[1]


def recipes_folder() -> Path:
    """Return the folder of the recipes."""
    installed = _HERE / "configs"
    return installed if installed.is_dir() else _HERE.parent / "configs"


def recipe_names() -> list[str]:
    """List the recipes' names, without .yaml."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def find_recipe(given: Path) -> Path:
    """Return a recipe's file by its path, or by the name of one that comes with the package; others unchanged."""
    shipped = recipes_folder() / f"{given.name.removesuffix('.yaml')}.yaml"
    return shipped if _is_name(given) and not given.exists() and shipped.is_file() else given


def suggest_recipe(given: Path) -> str:
    """Return what to add to the refusal of a recipe that does not exist: the nearest name, if there is one."""
    return did_you_mean(given.name.removesuffix(".yaml"), recipe_names())


def require_recipe(name: str) -> Path:
    """Return the file of the recipe that has this name. Raises InputError: there is none."""
    found = find_recipe(Path(name))
    if not found.is_file():
        raise InputError(f"recipe {name!r} is unknown{suggest_recipe(found)}: var recipes lists them")
    return found


def describe_recipe(file: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    for line in lines:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or text.startswith(("Command:", "Data:")):
            break
        comment.append(text)
    return " ".join(comment).partition(". ")[0].rstrip(".")


def copy_recipe(name: str, target: Path) -> list[Path]:
    """Copy a recipe and those that are its base into a folder, or it to a file if it has no base; replace nothing.

    Returns:
        The new files, the recipe first.

    Raises:
        InputError: no recipe of that name, a file that exists, one for a recipe with a base.
    """
    file = require_recipe(name)
    files = [file]
    while base := yaml.safe_load(files[-1].read_text(encoding="utf-8")).get("base"):
        files.append(files[-1].parent / base)
    if target.suffix in (".yaml", ".yml"):
        if len(files) > 1:
            raise InputError(f"{name} has a base, {files[1].name}, which is copied too: give a folder, not {target}")
        copies = [target]
    else:
        copies = [target / each.name for each in files]
    for copy in copies:
        check_writable(copy.parent)
        if copy.exists():
            raise InputError(f"{copy} exists: give another folder or file, or remove it")
    for source, copy in zip(files, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return copies


def _is_name(given: Path) -> bool:
    return given.name == str(given) and given.suffix in ("", ".yaml")
