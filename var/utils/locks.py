"""One process at a time in a folder, and temporary names that no other process has or removes."""

import logging
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tokenizer.errors import InputError, one_line
from var.utils.paths import check_writable, follow_links

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8}|\d+)\.new", re.DOTALL)  # with a number: of an earlier version
_LONGEST_STEM = 200  # bytes of a name that its temporary name repeats; file systems allow 255
REPLACED = ".old"  # in a temporary folder: what its files replace; with it they are whole, and were being moved
_TURN = 0.1  # seconds between two attempts
_held: set[int] = set()  # descriptors of this process's locks


@contextmanager
def locked(folder: Path, name: str = LOCK, remedy: str = "give another folder") -> Iterator[None]:
    """Keep a folder to this process inside the block; it is made if it is missing.

    The system itself ends the lock of a process that is killed. What such a process left half-written below the folder
    is removed first. If the folder is still empty at the end, it is removed if it was made here.

    Args:
        name: of the lock's file; locks of different names do not exclude each other.

    Raises InputError: another process has the lock, with its number and host; the folder cannot be written.
    """
    check_writable(folder)
    folder = follow_links(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(file, _open_or_make)
        if descriptor is None:
            holder = _read_holder(file)
            raise InputError(f"{folder} is in use by {holder}: wait until it ends, stop it, or {remedy}")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}: {remedy}") from error
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
        for parent, _, _ in os.walk(folder):
            with suppress(OSError):  # removed just now, or of another user
                remove_abandoned(Path(parent))
        yield
    finally:
        if _release(file, descriptor):
            for path in made:
                with suppress(OSError):
                    path.rmdir()


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for this file, which is made for it and removed at the end.

    Raises InputError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _lock(file, _open_or_make)) is None:
            time.sleep(_TURN)
    except OSError as error:
        raise InputError(f"cannot write {file}: {one_line(error)}: make room there or write elsewhere") from error
    try:
        yield
    finally:
        _release(file, descriptor)


def _release(file: Path, descriptor: int) -> bool:
    """Remove a lock's file and end the lock; return False in a forked process, which does not hold it."""
    if descriptor not in _held:
        return False
    with suppress(OSError):
        file.unlink()
    _unlock(descriptor)
    return True


def _open_or_make(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _read_holder(file: Path) -> str:
    try:
        number, host = file.read_text().split()
    except (OSError, ValueError):  # it has just come or gone
        return "another process"
    return f"process {number} on {host}"


def _lock(path: Path, opened: Callable[[Path], int]) -> int | None:
    """Open and lock a path; return the descriptor, or None where another process has the lock. Raises OSError."""
    while True:
        descriptor = opened(path)
        try:
            if not _flock(descriptor):
                _warn_unlocked(os.fstat(descriptor).st_dev, path.parent)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):  # whoever had the lock may have removed the file since it was opened
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                _held.add(descriptor)
                return descriptor
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Lock an open file or folder; return False on a system without locks. Raises BlockingIOError: it is locked."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some network file systems
            return False
        return True
    return False


@cache
def _warn_unlocked(device: int, folder: Path) -> None:
    log.warning("the file system of %s has no locks: do not start two processes that write there", folder)


def _unlock(descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _forget_locks() -> None:
    """Close what a forked process, such as a reader of data, inherited: it would keep locks that are not its own."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def temporary(folder: Path, name: str, make: Callable[[Path], int]) -> Iterator[Path]:
    """Give an empty file or folder under a name that no other process has; it is locked, and removed at the end."""
    path, descriptor = folder / name, None
    while descriptor is None:
        path = folder / f"{_stem(name)}{secrets.token_hex(4)}.new"
        descriptor = _lock(path, make)
    try:
        yield path
    finally:
        _remove(path)
        _unlock(descriptor)


def _stem(name: str) -> str:
    """Return how the temporary names of a file begin."""
    return f".{os.fsdecode(os.fsencode(name)[:_LONGEST_STEM])}."


def make_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def make_folder(path: Path) -> int:
    path.mkdir(exist_ok=True)
    return os.open(path, os.O_RDONLY)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # it is there only if something failed, and then that error is the one to show
            path.unlink()


def _finish_move(new: Path, folder: Path) -> None:
    for path in list(new.rglob("*")):
        file = path.relative_to(new)
        if file.parts[0] != REPLACED and not path.is_dir():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            path.replace(folder / file)


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in a folder under temporary names, of one file or of all; not below it.

    Files of a temporary folder that were on the move to this one arrive first.
    """
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.name.startswith(_stem(name) if name else "."):
            with suppress(OSError):  # that of a living process, or of another user
                descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
                try:
                    if _flock(descriptor):
                        if (path / REPLACED).is_dir():
                            _finish_move(path, folder)
                        _remove(path)
                finally:
                    os.close(descriptor)
