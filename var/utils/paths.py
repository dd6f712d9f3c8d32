"""Paths that users give: read, followed and checked before hours are spent; nothing is written here."""

import os
import stat
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from tokenizer.errors import InputError, abbreviate, one_line

# Folders that no user has made, in any case of letters: of a Mac's archives, of Synology, of Windows, of a Linux disk.
ADDED_BY_SYSTEMS = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
)

LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes, of Linux


def cache_folder() -> Path:
    """The folder of converted models: $VAR_CACHE, else var-next-scale in the user's cache folder.

    Raises InputError: a home folder is needed and not known.
    """
    if folder := os.environ.get("VAR_CACHE"):
        return to_path(folder, "VAR_CACHE")
    return to_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "var-next-scale"


def to_path(given: str | os.PathLike[str], name: str) -> Path:
    """Return what an argument gives as a path, with ~ as the user's home.

    Raises InputError: neither text nor a path, empty, or what no file can be called; a ~ that stands for no home.
    """
    try:
        text: object = os.fspath(given)
    except TypeError:
        text = None
    if not isinstance(text, str):  # or bytes
        raise InputError(f"{name}={abbreviate(given)} must be a path or a name, as text or as pathlib.Path")
    if not text:
        raise InputError(f"{name}='' is empty: give a path or a name")
    try:
        path = Path(text).expanduser()
        encoded = os.fsencode(path)
    except RuntimeError as error:
        raise InputError(f"{name}={abbreviate(text)}: no home folder is known for ~: give the whole path") from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}={abbreviate(text)} has characters that no file name can have: give another"
        ) from error
    if b"\0" in encoded:
        raise InputError(f"{name}={abbreviate(text)} has a NUL character, which no file name can have: give another")
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise InputError(f"{name}={abbreviate(text)} is too long, {len(encoded)} bytes: no file can be called so")
    return path


def check_writable(folder: Path) -> None:
    """Raise InputError if the folder could not be made or written; nothing is made yet."""
    existing = folder
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(f"cannot write {folder}: {existing} is a file: give another folder")
        with tempfile.TemporaryFile(dir=existing):  # permission bits do not say it of /proc or for root
            pass
    except OSError as error:
        reason = f"{existing} takes no files ({one_line(error)})"
        raise InputError(f"cannot write {folder}: {reason}: give another folder") from error


def check_target(file: Path, example: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise InputError if the file could not be written, or would replace what is read; nothing is made yet.

    Args:
        file: to be written by `atomic_write`.
        example: how such a file may be called.
        inputs: files and folders that are read; None and what is no path, such as a model's name, do not matter. In a
            folder, where anything may be read, the target needs the suffix of the example, which images do not have.
    """
    if is_stream(file):
        return
    check_writable(follow_links(file).parent)
    if file.is_dir():
        raise InputError(f"{file} is a folder: give the name of a file, such as {file / example}")
    for path in (to_path(given, "input") for given in inputs if given is not None):
        if path.exists() and file.exists() and path.samefile(file):
            raise InputError(f"{file} would replace {path}, which is read: give another name, such as {example}")
        inside = path.is_dir() and file.resolve().is_relative_to(path.resolve())
        if inside and file.suffix.lower() != Path(example).suffix:
            raise InputError(
                f"{file} is inside {path}, whose files are read: write it elsewhere, or give a name such as {example}"
            )


def check_regular(file: Path) -> None:
    """Raise InputError for what is there and no regular file, nor a link to one.

    Opening a pipe would wait for whoever writes into it, without end, and devices may have no end.
    """
    try:
        mode = file.stat().st_mode
    except OSError:  # opening it will report the error
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise InputError(f"cannot read {file}: it is {kind}: give a regular file")


def follow_links(path: Path) -> Path:
    """Return the path, absolute, that a link leads to. Raises InputError: links that lead to one another."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{path} is a link that leads in a circle: remove it, or give another name")
    return target


def is_stream(file: Path) -> bool:
    """Return whether a path is written into, not replaced: a device, a pipe, or standard output by its name.

    Raises InputError: a disk or a socket, which no file should be written into.
    """
    if descriptor_of(file) is not None:
        return True
    try:
        mode = file.stat().st_mode
    except OSError:  # there is none yet, or writing it will report the error
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{file} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}: give the name of a file")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def descriptor_of(file: Path) -> int | None:
    """The descriptor that /dev/stdout, /dev/fd/N or a link to one of them stands for; None: another path."""
    for _ in range(40):  # as many links as the system follows
        parent = os.path.realpath(file.parent)
        if parent in ("/dev/fd", f"/proc/{os.getpid()}/fd") and file.name.isdecimal():
            return int(file.name)
        if not file.is_symlink():
            return None
        file = Path(parent) / file.readlink()
    return None


def check_no_other_files(folder: Path, entries: Collection[str], remedy: str = "give a new folder") -> None:
    """Raise InputError if the folder, which need not exist, holds anything but these and hidden files."""
    if not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))
    if foreign := [name for name in others if name not in entries]:
        raise InputError(f"{folder} holds other files, such as {foreign[0]}: {remedy}")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is passed over: a hidden one, or what systems add of their own."""
    return name.startswith(".") or name.lower() in ADDED_BY_SYSTEMS


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
