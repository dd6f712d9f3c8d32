"""Writing to disk without losing what is there: checked beforehand, written under another name, renamed."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from tokenizer.errors import InputError, one_line


def cache_folder() -> Path:
    """The folder of converted models: $VAR_CACHE, else var-next-scale in the user's cache folder."""
    if folder := os.environ.get("VAR_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "var-next-scale"


def to_path(given: str | os.PathLike[str], name: str) -> Path:
    """Return what an argument gives as a path, with ~ as the user's home.

    Raises InputError: neither text nor a path.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{name}={given!r} must be a path or a name, as text or as pathlib.Path")
    return Path(given).expanduser()


def check_writable(folder: Path) -> None:
    """Raise InputError if the folder could not be made or written; nothing is made yet."""
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(f"cannot write {folder}: {existing} is a file: give another folder")
        with tempfile.TemporaryFile(dir=existing):  # permission bits do not say it of /proc or for root
            pass
    except OSError as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}: give another folder") from error


def check_target(file: Path, example: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise InputError if the file could not be written, or would replace what is read; nothing is made yet.

    Args:
        example: how such a file may be called.
        inputs: files and folders that are read; None and what is no path, such as a model's name, do not matter. In a
            folder, where anything may be read, the target needs the suffix of the example, which images do not have.
    """
    check_writable(file.parent)
    if file.is_dir():
        raise InputError(f"{file} is a folder: give the name of a file, such as {file / example}")
    for path in (Path(given).expanduser() for given in inputs if given is not None):
        if path.exists() and file.exists() and path.samefile(file):
            raise InputError(f"{file} would replace {path}, which is read: give another name, such as {example}")
        inside = path.is_dir() and file.resolve().is_relative_to(path.resolve())
        if inside and file.suffix.lower() != Path(example).suffix:
            raise InputError(
                f"{file} is inside {path}, whose files are read: write it elsewhere, or give a name such as {example}"
            )


@contextmanager
def atomic_folder(folder: Path, entries: Collection[str]) -> Iterator[Path]:
    """Give a new folder beside the target, renamed to it when the block ends and removed if it raises.

    Raises InputError: the folder cannot be written, or holds something else than these entries, which it will hold.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder")
    check_no_other_files(folder, entries)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}: give a folder that can be written") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_write(
    file: Path, remedy: str = "make room there or write elsewhere", durable: bool = True
) -> Iterator[Path]:
    """Give a path beside the file, renamed to it when the block ends; whoever reads the file finds it whole.

    A durable file is on the disk then, so whole after a loss of power too. Raises InputError where it cannot be
    written, with the remedy.
    """
    beside = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if durable:
            with beside.open("rb+") as written:
                os.fsync(written.fileno())
        beside.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {one_line(error)}: {remedy}") from error
    finally:
        with suppress(OSError):  # it is there only if something failed, and then that error is the one to show
            beside.unlink()


def check_no_other_files(folder: Path, entries: Collection[str], remedy: str = "give a new folder") -> None:
    """Raise InputError if the folder, which need not exist, holds anything but these and what a killed write left."""
    if not folder.is_dir():
        return
    ours = {*entries, *(f".{name}.new" for name in entries)}
    if foreign := sorted({path.name for path in folder.iterdir()} - ours):
        raise InputError(f"{folder} holds other files, such as {foreign[0]}: {remedy}")


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
