"""Progress and stopping of commands that take long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import NoReturn

from var.utils.signals import handle_stop_signals

LONGEST_WAIT = timedelta(hours=12)  # for the other processes: the last share of one may take long on a CPU


@contextmanager
def progress_bar(done_word: str, is_main_process: bool = True, world: int = 1) -> Iterator[Callable[[int, int], None]]:
    """A live line that counts images, or a line for every twentieth part where there is no terminal.

    Args:
        done_word: what was done to them, such as "encoded".
        is_main_process: whether this process shows anything.
        world: number of processes; counts are of one of them, and the bar shows that many times as much.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    printed = 0
    began = time.perf_counter()

    with Progress(*columns, console=console, disable=not (is_main_process and console.is_terminal)) as bar:
        task = bar.add_task("images", total=None)

        def show(done: int, total: int) -> None:
            nonlocal printed
            seconds = time.perf_counter() - began
            rate = f"{done * world / seconds:.1f} images/s"
            bar.update(task, completed=done * world, total=total * world, description=rate)
            if is_main_process and not console.is_terminal and 20 * done // total > printed:
                printed = 20 * done // total
                left = timedelta(seconds=round(seconds / done * (total - done)))
                console.print(f"{done_word} {done * world} of {total * world}  {rate}  {left} left", soft_wrap=True)

        yield show


@contextmanager
def stopping(
    describe: Callable[[], str] = lambda: "the same command goes on with what is missing", is_main_process: bool = True
) -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end the process at once in one line: what is done is kept anyway.

    Args:
        describe: what is said.
        is_main_process: whether this process says anything.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if is_main_process:
            print(f"stopped: {describe()}", file=sys.stderr)
        raise SystemExit(128 + number)

    with handle_stop_signals(stop):
        yield
