"""The processes that share a piece of work."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from tokenizer.errors import InputError
from var.utils.locks import locked


def is_first_process() -> bool:
    """Return whether this process is alone, or the first one that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


class Ranks(NamedTuple):
    """A process among others, and how they wait for one another."""

    rank: int = 0  # of this process
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None  # returns when all have called it
    all_gather: Callable[[int], list[int]] = lambda number: [number]  # of each process one; those of all, by rank

    @property
    def is_main(self) -> bool:
        """True on the process of rank 0."""
        return self.rank == 0

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Go on from the end of the block when all processes have come to it, or on none of them.

        Raises:
            InputError: what the block raised, on the first process where it did.
            SystemExit: on all others then: they report nothing more.
        """
        refusal: InputError | None = None
        try:
            yield
        except InputError as error:
            refusal = error
        refused = [rank for rank, failed in enumerate(self.all_gather(refusal is not None)) if failed]
        if refusal is not None and self.rank == refused[0]:
            raise refusal
        if refused:
            raise SystemExit(2)

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Keep a folder to these processes inside the block, by `files.locked`; all of them call this.

        Raises InputError, on the first of them, or SystemExit: another process has the folder; it cannot be written.
        """
        with ExitStack() as held:
            with self.in_step():
                if self.is_main:
                    held.enter_context(locked(folder))
            yield

    @classmethod
    def of(cls, state: Any) -> Self:
        """Return the ranks of an accelerate.PartialState or Accelerator."""
        from accelerate.utils import gather_object

        ranks = (state.process_index, state.num_processes, state.wait_for_everyone)
        return cls(*ranks, all_gather=lambda number: gather_object([number]))


ALONE = Ranks()
