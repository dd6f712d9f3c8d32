"""Checkpoints of a run: written under a temporary name, renamed when complete, verified by a checksum."""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tokenizer.errors import InputError, one_line
from var.utils.provenance import file_sha256

log = logging.getLogger(__name__)

CHECKSUM = ".sha256"
NEW = ".new"  # while it is written
_whole: set[tuple[Path, int, int]] = set()  # checkpoints that this process wrote or verified, see `_state_of`


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return _files(folder, ".pt")


def _files(folder: Path, suffix: str) -> list[Path]:
    """Return the files that have names of ours, by step; whatever else is in the folder is of others."""
    return sorted(path for path in folder.glob(f"step-{'[0-9]' * 8}{suffix}") if path.is_file())


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep_last: int, best: int | None = None) -> Path:
    """Write the state after `step` steps; then remove all but `keep_last` of the checkpoints, and that of step `best`.

    Kept are this one and the newest of the others, of which whole ones go before damaged ones of later steps. The file
    gets its name only when it is complete and on the disk, after its checksum.

    Raises InputError: the disk is full or not writable, or a folder has the file's name; earlier checkpoints are kept.
    """
    path = checkpoint_path(folder, step)
    beside = path.with_suffix(NEW)
    for own in (path, beside, path.with_suffix(CHECKSUM), path.with_suffix(CHECKSUM + NEW)):
        if own.is_dir():
            raise InputError(
                f"the checkpoint of step {step} cannot be written: {own} is a folder: move it away, then the same "
                f"command goes on from {_last_name(folder)}"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_torn(folder)
        with beside.open("wb") as file:
            hashing = _HashingFile(file)
            torch.save(state, hashing)  # type: ignore[arg-type]  # it only writes, front to back
            _to_disk(file)
        _write_checksum(path, hashing.hash.hexdigest())
        beside.replace(path)
        _sync_folder(folder)
        _whole.add(_state_of(path))
        _remove_old(path, keep_last, best)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a write fails inside its own code
        with suppress(OSError):  # it may not exist, or the disk may have become read-only
            beside.unlink()
        raise InputError(
            f"the checkpoint of step {step} cannot be written to {folder} ({one_line(error)}): make room there, then "
            f"the same command goes on from {_last_name(folder)}"
        ) from error
    return path


def _last_name(folder: Path) -> str:
    found = checkpoints(folder)
    return found[-1].name if found else "the start"


def remove_torn(folder: Path) -> None:
    """Remove what a run that was killed while it saved left half-written."""
    for suffix in (NEW, CHECKSUM + NEW):
        for torn in _files(folder, suffix):
            _remove(torn)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # no reason to end a run
        log.warning("%s is not needed any more and cannot be removed: %s", path, one_line(error))


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Read the newest intact checkpoint, on the CPU; None in a new run. Damaged ones are skipped with a warning.

    Raises InputError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            _verify(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a torn file makes torch.load raise nearly anything
            then = "" if path == found[0] else ": trying the one before"
            log.warning("checkpoint %s is damaged (%s)%s", path, one_line(error), then)
    if found:
        raise InputError(f"no checkpoint in {folder} can be read (of {len(found)}): move them away to start anew")
    return None


class _HashingFile:
    """A file written from start to end, with the checksum of its content so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_checksum(path: Path, digest: str) -> None:
    beside = path.with_suffix(CHECKSUM + NEW)
    with beside.open("w") as file:
        file.write(digest + "\n")
        _to_disk(file)
    beside.replace(path.with_suffix(CHECKSUM))


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the renaming itself to the disk (a power loss could undo it otherwise)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _state_of(path: Path) -> tuple[Path, int, int]:
    """Return what changes when a file is written: its size and time."""
    found = path.stat()
    return path, found.st_size, found.st_mtime_ns


def _verify(path: Path) -> None:
    """Raise ValueError or OSError if a checkpoint is damaged."""
    state = _state_of(path)
    if file_sha256(path) != path.with_suffix(CHECKSUM).read_text().strip():
        raise ValueError("its checksum differs")
    _whole.add(state)


def _is_whole(path: Path) -> bool:
    try:
        if _state_of(path) not in _whole:
            _verify(path)
    except (OSError, ValueError):
        return False
    return True


def _remove_old(newest: Path, keep_last: int, best: int | None) -> None:
    folder = newest.parent
    others = [path for path in checkpoints(folder) if path != newest]
    if len(others) >= keep_last:
        others.sort(key=lambda path: (_is_whole(path), path), reverse=True)
        for old in others[keep_last - 1 :]:
            if best is None or old != checkpoint_path(folder, best):
                _remove(old)
    for checksum in _files(folder, CHECKSUM):
        if not checksum.with_suffix(".pt").exists():
            _remove(checksum)
