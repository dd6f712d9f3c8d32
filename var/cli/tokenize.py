"""The command that fills the token cache: `var tokenize RECIPE [key=value ...]`."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from tokenizer.errors import InputError
from var.cli.run import run

LONGEST_WAIT = timedelta(hours=12)  # for the other processes: the last shard of one may take long on a CPU


def main() -> None:
    """This command alone."""
    run(tokenize)


def tokenize(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe of a VAR stage, such as configs/mini_var.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as tokens=runs/tokens.")] = None,
) -> None:
    """Encode the images of RECIPE once, so that training needs no encoder. Run it again to go on where it stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from var.training.config import VARRecipe
    from var.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    if not isinstance(checked, VARRecipe):
        raise InputError(f"recipe {recipe} has stage={checked.stage}: only stage var trains on tokens")
    if checked.tokens is None:
        raise InputError(f"recipe {recipe} has no tokens: say where they go, with tokens=FOLDER")
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from var.device import choose_device
    from var.training.parallel import leave
    from var.training.stages.var import open_tokenizer
    from var.training.tokens import Processes, write_tokens

    state = PartialState(cpu=choose_device().type == "cpu", timeout=LONGEST_WAIT)
    vqvae = open_tokenizer(checked.tokenizer).to(state.device)
    processes = Processes(state.process_index, state.num_processes, state.wait_for_everyone)
    began = time.perf_counter()
    with stopping(speaks=state.is_main_process), progress_bar(processes.world, state.is_main_process) as progress:
        summary = write_tokens(checked, vqvae, processes, progress)
    encoded = sum(gather_object([summary.encoded]))
    seconds = time.perf_counter() - began
    leave()
    if not state.is_main_process:
        return
    now = f"{encoded} now, {encoded / seconds:.0f} images/s" if encoded else "all of them there already"
    unreadable = f"; {summary.unreadable} images could not be read" if summary.unreadable else ""
    size = f"{summary.bytes / 1e6:.1f} MB"
    typer.echo(f"tokens: {checked.tokens} holds {summary.samples} encoded images in {size}, {now}{unreadable}")


@contextmanager
def progress_bar(world: int, speaks: bool) -> Iterator[Callable[[int, int], None]]:
    """A live line, or a line for every twentieth part where there is no terminal.

    What it is told of is one process's share; it shows what that means for so many processes.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    told = 0
    began = time.perf_counter()

    with Progress(*columns, console=console, disable=not (speaks and console.is_terminal)) as bar:
        task = bar.add_task("encoding", total=None)

        def show(done: int, total: int) -> None:
            nonlocal told
            seconds = time.perf_counter() - began
            rate = f"{done * world / seconds:.0f} images/s"
            bar.update(task, completed=done * world, total=total * world, description=rate)
            if not console.is_terminal and 20 * done // total > told:
                told = 20 * done // total
                left = timedelta(seconds=round(seconds / done * (total - done)))
                console.print(f"encoded {done * world} of {total * world}  {rate}  {left} left", soft_wrap=True)

        yield show


@contextmanager
def stopping(speaks: bool) -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end the process at once in one line: whole shards are kept anyway."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if speaks:
            print("stopped: the same command goes on with what is missing", file=sys.stderr)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
