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
_whole: set[tuple[Path, int, int]] = set()  # checkpoints that this process wrote or verified, see `_state_of`


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"step-{'[0-9]' * 8}.pt"))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep_last: int, best: int | None = None) -> Path:
    """Write the state after `step` steps; then remove all but `keep_last` of the checkpoints, and that of step `best`.

    Kept are this one and the newest of the others, of which whole ones go before damaged ones of later steps. The file
    gets its name only when it is complete and on the disk, after its checksum.

    Raises InputError: the disk is full or not writable; earlier checkpoints are kept.
    """
    path = checkpoint_path(folder, step)
    beside = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.new"):  # of a run that was killed while it saved
            torn.unlink()
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
        kept = [found.name for found in checkpoints(folder)]
        raise InputError(
            f"the checkpoint of step {step} cannot be written to {folder} ({one_line(error)}): make room there, then "
            f"the same command goes on from {kept[-1] if kept else 'the start'}"
        ) from error
    return path


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
            log.warning("checkpoint %s is damaged (%s): trying the one before", path, one_line(error))
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
    beside = path.with_suffix(CHECKSUM + ".new")
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
                old.unlink()
    for checksum in folder.glob(f"step-*{CHECKSUM}"):
        if not checksum.with_suffix(".pt").exists():
            checksum.unlink()
