"""Writing to disk without losing what is there: under another name, then renamed."""

import errno
import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tokenizer.errors import InputError, one_line
from var.utils.locks import REPLACED, make_file, make_folder, remove_abandoned, temporary
from var.utils.paths import descriptor_of, follow_links, is_stream

log = logging.getLogger(__name__)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder whose files take the places of those of the same names in the target when the block ends.

    A target that does not exist appears whole. In one that exists, other files stay as they are, and all files that
    are replaced leave before the first new one arrives: killed in between, the folder does not load, where old and new
    ones together might, until whoever writes there next lets the rest arrive (`remove_abandoned`). If the block raises,
    the target stays as it was.

    Raises InputError: the folder cannot be written, or has folders under the names of files.
    """
    folder = follow_links(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder")
    room = folder if folder.is_dir() else folder.parent
    try:
        room.mkdir(parents=True, exist_ok=True)
        remove_abandoned(room, folder.name)
        with temporary(room, folder.name, make_folder) as new:
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
    old = new / REPLACED
    old.mkdir()
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
            remove_abandoned(target.parent, target.name)
        with temporary(target.parent, target.name, make_file) as beside:
            yield beside
            if durable:
                with beside.open("rb+") as written:
                    os.fsync(written.fileno())
            beside.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {file}: {one_line(error)}: {remedy}") from error


def _open_stream(stream: Path) -> int:
    """Open a device or pipe for writing. A pipe that nobody reads is waited for, and the log says so."""
    try:
        descriptor = os.open(stream, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO or not stat.S_ISFIFO(stream.stat().st_mode):
            raise
        log.warning("%s is a pipe that nobody reads: waiting for a reader", stream)
        return os.open(stream, os.O_WRONLY)
    os.set_blocking(descriptor, True)
    return descriptor


def _copy_into_stream(content: Path, stream: Path) -> None:
    descriptor = descriptor_of(stream)
    for printed in (sys.stdout, sys.stderr):
        printed.flush()
    # Neither made nor cut off: it is there, and may be a file that others write too.
    target = _open_stream(stream) if descriptor is None else os.dup(descriptor)
    with content.open("rb") as source, os.fdopen(target, "wb") as opened:
        shutil.copyfileobj(source, opened)
