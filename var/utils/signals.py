"""SIGTERM and Ctrl-C, handled for the time of a block."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C call the handler, as `signal.signal` takes it."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def catch_interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and Ctrl-C only set a flag, which the value returns: the step under way is finished first."""
    received: list[int] = []
    with handle_stop_signals(lambda number, frame: received.append(number)):
        yield lambda: bool(received)


def ignore_stop_signals(worker: int) -> None:
    """Leave SIGTERM and Ctrl-C to the parent of this process, a DataLoader's worker."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
