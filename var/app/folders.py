"""Folders that the page shows: chosen from lists, and nothing outside the one that the command named."""

from collections.abc import Callable
from pathlib import Path

from tokenizer.errors import InputError, abbreviate
from var.utils.paths import subfolders

WHOLE = "."  # the folder itself, in lists
MAX_LISTED = 500  # folders


def inside(root: Path, path: Path) -> bool:
    """Return whether a path, with its links followed, is in a folder."""
    return path.resolve().is_relative_to(root.resolve())


def list_folders(root: Path, wanted: Callable[[Path], bool], levels: int = 3) -> list[str]:
    """List the folders in a folder, itself first, that are wanted; hidden ones and links that lead outside are not.

    Raises InputError: the folder cannot be read.
    """
    found: list[str] = []

    def visit(folder: Path, level: int) -> None:
        if len(found) == MAX_LISTED:
            return
        if wanted(folder):
            found.append(folder.relative_to(root).as_posix())
        if level < levels:
            for name in subfolders(folder):
                if inside(root, folder / name):
                    visit(folder / name, level + 1)

    try:
        if root.is_dir():
            visit(root, 0)
    except OSError as error:
        raise InputError(f"cannot read a folder: {error.strerror}") from error
    return found


def choose_folder(root: Path, listed: list[str], given: object) -> Path:
    """Return the folder that was chosen from a list. Raises InputError: none, or one that is not listed."""
    if not listed:
        raise InputError("there is no folder to choose from")
    if given not in listed:
        raise InputError(f"folder {abbreviate(given)} is not one of those listed: choose one of them")
    return root / str(given)
