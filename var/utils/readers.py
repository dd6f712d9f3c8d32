"""Threads that read files, for none of which a process waits when it ends."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Readers:
    """Threads that call functions one after the other, until the `with` block ends; what has not begun is dropped then.

    concurrent.futures has such threads too, but joins them at the exit of the process: a read that hangs, as on a
    network disk, would keep a process alive that was asked to stop.

    Args:
        threads: their number, 1 or more.
    """

    def __init__(self, threads: int) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = threads
        self._ended = False
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        for _ in range(self._threads):
            self._tasks.put(None)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function in one of the threads; the future has its result or what it raises."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._tasks.put(call)
        return future

    def map(self, function: Callable[..., T], items: Iterable[Any]) -> list[T]:
        """Return the function's results for all items, in order; raises what the first of them raises."""
        return [future.result() for future in [self.submit(function, item) for item in items]]

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._ended:
            task()
