"""A live line on standard error that counts images."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

PRINTED_EVERY = 10.0  # seconds, where there is no terminal
Progress = Callable[[float, int], None]  # called with the number done, parts of those at work counted, and the total


@contextmanager
def open_progress(progress: bool | Progress | None) -> Iterator[Progress | None]:
    """Give what is called with (done, total): a function as it is, a bar for True, None for False."""
    if callable(progress):
        yield progress
    elif progress:
        with live_bar() as show:
            yield show
    else:
        yield None


@contextmanager
def live_bar(noun: str = "images") -> Iterator[Progress]:
    """A line on standard error with number, rate and time left; a new one now and then where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_jupyter:  # rich's own way needs ipywidgets; a notebook shows a line that is rewritten as it is
        console = Console(stderr=True, force_jupyter=False, force_terminal=True, width=100)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began = printed = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(noun, total=None)

        def show(done: float, total: int) -> None:
            nonlocal printed
            now = time.perf_counter()
            rate = done / (now - began)
            bar.update(task, completed=done, total=total, description=f"{rate:.1f} {noun}/s")
            if not console.is_terminal and now - printed >= PRINTED_EVERY and 0 < done < total:
                printed = now
                left = timedelta(seconds=round((total - done) / rate))
                console.print(f"{int(done)} of {total} {noun}  {rate:.1f} {noun}/s  {left} left", soft_wrap=True)

        yield show
