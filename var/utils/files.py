"""Writing to disk without losing what is there: checked beforehand, locked, written under another name, renamed."""

import logging
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

from tokenizer.errors import InputError, abbreviate, one_line

LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes, of Linux

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8}|\d+)\.new", re.DOTALL)  # with a number: of an earlier version
_LONGEST_STEM = 200  # bytes of a name that its temporary name repeats; file systems allow 255
_held: set[int] = set()  # descriptors of this process's locks


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
    if _descriptor_of(file) is not None:
        return True
    try:
        mode = file.stat().st_mode
    except OSError:  # there is none yet, or writing it will report the error
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{file} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}: give the name of a file")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _descriptor_of(file: Path) -> int | None:
    """The descriptor that /dev/stdout, /dev/fd/N or a link to one of them stands for; None: another path."""
    for _ in range(40):  # as many links as the system follows
        parent = os.path.realpath(file.parent)
        if parent in ("/dev/fd", f"/proc/{os.getpid()}/fd") and file.name.isdecimal():
            return int(file.name)
        if not file.is_symlink():
            return None
        file = Path(parent) / file.readlink()
    return None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder whose files take the places of those of the same names in the target when the block ends.

    A target that does not exist appears whole. In one that exists, other files stay as they are, and all files that
    are replaced leave before the first new one arrives: killed in between, the folder does not load, where old and new
    ones together might. If the block raises, the target stays as it was.

    Raises InputError: the folder cannot be written, or has folders under the names of files.
    """
    folder = follow_links(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder")
    room = folder if folder.is_dir() else folder.parent
    try:
        room.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(room, folder.name)
        with _temporary(room, folder.name, _make_folder) as new:
            yield new
            if folder.is_dir():
                _move_files(new, folder)
            else:
                new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}: give a folder that can be written") from error


def _move_files(new: Path, folder: Path) -> None:
    """Move all files below a folder to the same places below another; if that fails, its own return."""
    files = [path.relative_to(new) for path in new.rglob("*") if not path.is_dir()]
    if taken := [folder / file for file in files if (folder / file).is_dir()]:
        raise InputError(f"cannot write {taken[0]}: it is a folder: move it away, or give another folder")
    old = new / ".old"
    away: list[Path] = []
    arrived: list[Path] = []
    try:
        for file in files:
            if os.path.lexists(folder / file):
                (old / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).rename(old / file)
                away.append(file)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).rename(folder / file)
            arrived.append(file)
    except BaseException:
        for file in arrived:
            (folder / file).unlink()
        for file in away:
            (old / file).rename(folder / file)
        raise


@contextmanager
def atomic_write(
    file: Path, remedy: str = "make room there or write elsewhere", durable: bool = True
) -> Iterator[Path]:
    """Give a path beside the file, renamed to it when the block ends; whoever reads the file finds it whole.

    Of a link the target is replaced. Into a device or a pipe the content is copied when the block ends. A durable file
    is on the disk then, so whole after a loss of power too. Raises InputError where it cannot be written, with the
    remedy.
    """
    try:
        if is_stream(file):
            with tempfile.TemporaryDirectory() as room:
                yield Path(room) / "content"
                _copy_into_stream(Path(room) / "content", file)
            return
        target = follow_links(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            _remove_abandoned(target.parent, target.name)
        with _temporary(target.parent, target.name, _make_file) as beside:
            yield beside
            if durable:
                with beside.open("rb+") as written:
                    os.fsync(written.fileno())
            beside.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {file}: {one_line(error)}: {remedy}") from error


def _copy_into_stream(content: Path, stream: Path) -> None:
    descriptor = _descriptor_of(stream)
    for printed in (sys.stdout, sys.stderr):
        printed.flush()
    # Neither made nor cut off: it is there, and may be a file that others write too.
    target = os.open(stream, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
    with content.open("rb") as source, os.fdopen(target, "wb") as opened:
        shutil.copyfileobj(source, opened)


# --- locks and temporary names


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
        descriptor = _lock(file, lambda path: os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
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
                _remove_abandoned(Path(parent))
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            with suppress(OSError):
                file.unlink()
            _unlock(descriptor)
            for path in made:
                with suppress(OSError):
                    path.rmdir()


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
def _temporary(folder: Path, name: str, make: Callable[[Path], int]) -> Iterator[Path]:
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


def _make_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _make_folder(path: Path) -> int:
    path.mkdir(exist_ok=True)
    return os.open(path, os.O_RDONLY)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # it is there only if something failed, and then that error is the one to show
            path.unlink()


def _remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in a folder under temporary names, of one file or of all; not below it."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.name.startswith(_stem(name) if name else "."):
            with suppress(OSError):  # that of a living process, or of another user
                descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
                try:
                    if _flock(descriptor):
                        _remove(path)
                finally:
                    os.close(descriptor)


def check_no_other_files(folder: Path, entries: Collection[str], remedy: str = "give a new folder") -> None:
    """Raise InputError if the folder, which need not exist, holds anything but these and hidden files."""
    if not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if foreign := [name for name in others if name not in entries]:
        raise InputError(f"{folder} holds other files, such as {foreign[0]}: {remedy}")


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
