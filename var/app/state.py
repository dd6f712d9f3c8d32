"""What the tabs of the page share, and the bounds of what is asked of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

from var.pipeline import VARPipeline

MAX_IMAGES = 16  # drawn at once
MODEL_QUEUE = "model"  # events of this name run one after the other

T = TypeVar("T")


@dataclass(frozen=True)
class AppState:
    """The model and the folders of the page.

    Attributes:
        pipe: in use by one at a time, who holds `lock`.
        model: its name, for the commands that are shown.
        folder: the page's own, for what is downloaded.
        runs: folder of the runs whose training is shown.
        images: folder in which folders of images are chosen; None: there is none.
        encoder: name of the model of features; None: the pipeline's own.
    """

    pipe: VARPipeline
    model: str
    folder: Path
    runs: Path
    images: Path | None = None
    encoder: str | None = None
    lock: Lock = field(default_factory=Lock)


class _ClosedError(Exception):
    """Nobody waits for the results any more."""


def as_they_come(work: Callable[[Callable[[T], None]], T]) -> Iterator[T]:
    """Run `work` in a thread; yield each value that it gives to its argument, then what it returns.

    When the iterator is closed the work ends at the next value that it gives.

    Raises: what `work` raises.
    """
    results: SimpleQueue[tuple[bool, T | BaseException]] = SimpleQueue()
    closed = Event()

    def give(value: T) -> None:
        if closed.is_set():
            raise _ClosedError
        results.put((False, value))

    def run() -> None:
        try:
            results.put((True, work(give)))
        except BaseException as error:  # raised again below
            results.put((True, error))

    Thread(target=run, daemon=True).start()
    try:
        last = False
        while not last:
            last, value = results.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        closed.set()
