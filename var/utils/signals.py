"""Signals that ask a process to stop, handled for the time of a block; processes that end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# A terminal that is closed sends SIGHUP, which Windows does not have.
STOP_SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGINT", "SIGHUP"))
ONE_REQUEST = 0.5  # seconds in which signals count as one: a launcher passes on what the terminal sends to all
PATIENCE = 2.0  # seconds until a second signal ends a process whose main thread does not come back to Python


@contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, SIGTERM, Ctrl-C and SIGHUP call the handler, as `signal.signal` takes it.

    A SIGHUP that is ignored, as `nohup` does, stays so. Only a main thread can have handlers: on another one nothing
    changes.
    """
    before: dict[signal.Signals, Any] = {}
    if _on_main_thread():
        for number in STOP_SIGNALS:
            if not (number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Interrupts:
    """The stop signals that a process has received; true after the first.

    Attributes:
        work: what is finished before the process stops, for the message.
        number: of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.work = "the work under way"
        self.number: int | None = None
        self._is_urgent = False  # a second one was received
        self._obeyed = threading.Event()  # and the main thread has left its work

    def __bool__(self) -> bool:
        return self.number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal on the main thread: the first sets the flag, the second raises SystemExit."""
        self.number = self.number or number
        if self._is_urgent and not self._obeyed.is_set():
            self._obeyed.set()
            raise SystemExit(128 + number)

    def watch(self, pipe: int) -> None:
        """Count the signals that arrive in the pipe, until it is closed, whatever the main thread is waiting for."""
        count, last = 0, -ONE_REQUEST
        while received := os.read(pipe, 1):
            number, now = received[0], time.monotonic()
            if number not in STOP_SIGNALS or now - last < ONE_REQUEST:
                continue
            count, last = count + 1, now
            name = signal.Signals(number).name
            if count == 1:
                _say(f"{name}: stopping after {self.work}; the next signal stops at once")
            elif count == 2:
                self._is_urgent = True
                signal.pthread_kill(threading.main_thread().ident or 0, number)  # it may have run its handler already
                threading.Thread(target=self._end_if_stuck, args=(number,), daemon=True).start()
            else:
                os._exit(128 + number)

    def _end_if_stuck(self, number: int) -> None:
        if not self._obeyed.wait(PATIENCE):
            _say(f"{signal.Signals(number).name}: stopped while waiting for {self.work}, without saving")
            os._exit(128 + number)


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Inside, a first SIGTERM, Ctrl-C or SIGHUP only sets a flag, and a second one raises SystemExit.

    A process that does not leave its work then, or receives a third signal, ends where it is.
    """
    interrupts = Interrupts()
    if not _on_main_thread():
        yield interrupts
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=interrupts.watch, args=(read,), daemon=True)
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher.start()
    try:
        with handle_stop_signals(interrupts.handle):
            yield interrupts
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write)  # ends the watcher
        watcher.join()
        os.close(read)


def follow_parent(worker: int = 0) -> None:
    """Leave stop signals to the process that started this one, and end when it does (on Linux, however it ends)."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before that
        os._exit(1)


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _say(message: str) -> None:
    """Write to standard error past its locks, which the main thread may hold."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{message}\n".encode())
