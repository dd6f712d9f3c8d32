"""Faults that a run tolerates, counted and bounded: unreadable images, steps that are not finite."""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from tokenizer.errors import InputError
from var.data.dataset import Batch, UnreadableLog
from var.training.config import Recipe
from var.utils.text import plural

FEW_SAMPLES = 1000  # least denominator of the share of unreadable images


class RunHealth:
    """Counts of one process, bounded by a check in every step; those of skipped steps are the same on all processes."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.unreadable = self.seen = 0  # images that could not be read, and that the batches needed, on this process
        self.names = UnreadableLog()
        self.skipped_steps = 0  # with a phase whose loss or gradient was not finite, so that it changed nothing
        self.skipped_in_a_row = 0  # since the last good step

    def any_process(self, flag: bool) -> bool:
        """Return whether the flag is set on any process: all must stop when one of them receives a signal."""
        return self._sum(int(flag)) > 0

    def _sum(self, count: int) -> int:
        """Sum over all processes, each of which must call this."""
        if self.accelerator.num_processes == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device)))

    def check_readable(self, batches: Sequence[Batch]) -> None:
        """Count unreadable images; raise InputError if they exceed the recipe's bound or one had no substitute."""
        found = [entry for batch in batches for entry in batch.unreadable]
        wanted = len(range(self.accelerator.process_index, self.recipe.batch_size, self.accelerator.num_processes))
        self.names.add(found)
        unreadable, seen = self.unreadable + len(found), self.seen + wanted
        if sum(len(batch.labels) for batch in batches) < wanted:
            raise InputError(
                f"neither {found[-1]} nor any of the substitutes tried for it could be read: {found[-1].remedy}"
            )
        allowed = self.recipe.data.max_unreadable
        if found and unreadable > allowed * max(seen, FEW_SAMPLES):
            raise InputError(
                f"{unreadable} of {plural(seen, 'image')} wanted could not be read, more than data.max_unreadable="
                f"{allowed:g} allows; the last was {found[-1]}: {found[-1].remedy} (removing images changes the data, "
                "and the run could not be resumed)"
            )
        self.unreadable, self.seen = unreadable, seen

    def record_step(self) -> None:
        """Record a good step."""
        self.skipped_in_a_row = 0

    def record_skipped_step(self, step: int, phase: str, logs: Mapping[str, Tensor], batches: Sequence[Batch]) -> None:
        """Count a step that is not finite; after max_skipped in a row, write its batch to a file, raise InputError."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row < self.recipe.max_skipped:
            return
        path = self.recipe.output / "not_finite" / f"step-{step:08d}-process-{self.accelerator.process_index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        locations = [location for batch in batches for location in batch.locations]
        labels = [label for batch in batches for label in batch.labels.tolist()]
        numbers = {name: repr(float(value)) for name, value in logs.items()}  # JSON itself has no nan
        record = {"step": step, "turn": phase, "numbers": numbers, "places": locations, "labels": labels}
        path.write_text(json.dumps(record, indent=2) + "\n")
        raise InputError(
            f"loss or gradient were not finite in {plural(self.skipped_in_a_row, 'step')} in a row, the last of them "
            f"{step} (its batch is in {path}): lower optimizer.lr={self.recipe.optimizer.lr:g} or set "
            f"optimizer.grad_clip, then the same command goes on from the last checkpoint in {self.recipe.output}"
        )

    def counts(self) -> dict[str, int]:
        """Return the counts above 0, over all processes, each of which must call this."""
        counts = {"skipped_steps": self.skipped_steps, "unreadable_images": self._sum(self.unreadable)}
        return {name: count for name, count in counts.items() if count}

    def state_dict(self) -> dict[str, int]:
        """Return the counts over all processes, each of which must call this."""
        return {
            "unreadable": self._sum(self.unreadable),
            "seen": self._sum(self.seen),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the result of `state_dict`; the main process takes over the counts of the others."""
        if self.accelerator.is_main_process:
            self.unreadable, self.seen = state["unreadable"], state["seen"]
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]


@contextmanager
def disk_full_as_input_error(recipe: Recipe) -> Iterator[None]:
    """Turn the error of a full disk, raised anywhere inside, into an InputError that says how the run goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"the disk of {recipe.output} is full ({error.strerror}): make room there, then the same command goes on "
            "from the last checkpoint"
        ) from error
