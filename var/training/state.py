"""What a run needs to go on where it stopped, on disk."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from tokenizer.errors import InputError

log = logging.getLogger(__name__)

PATTERN = re.compile(r"step-(\d{8})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if PATTERN.fullmatch(path.name))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps beside its place, rename it into place, remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob("step-*.new"):  # of a run that was killed while it saved
        torn.unlink()
    path = folder / f"step-{step:08d}.pt"
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None in a new run. Damaged ones are skipped with a warning.

    Raises:
        InputError: there are checkpoints and none can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a torn file makes torch.load raise nearly anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("checkpoint %s is damaged (%s): trying the one before", path, reason)
            continue
        return state
    if found:
        raise InputError(f"none of the {len(found)} checkpoints in {folder} can be read: move them away to start anew")
    return None
