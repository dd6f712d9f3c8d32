"""A series of models of several sizes from one recipe, for scaling laws (var/evaluation/scaling/laws.py)."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from tokenizer.errors import InputError
from var.training.config import Recipe
from var.training.curves import RECIPE
from var.training.logger import write_recipe
from var.training.stages.base import RecipeT, find_stage, stage_names
from var.utils.signals import handle_stop_signals


def series(recipe: RecipeT, depths: Sequence[int]) -> list[RecipeT]:
    """Return the recipe at other depths, in order, each with output folder OUTPUT/d{depth}; see its `at_depth`.

    Raises InputError: a stage without sizes; no depths, one below 1, one given twice, or one that the recipe refuses.
    """
    sized = [name for name in stage_names() if find_stage(name).recipe_type.at_depth is not Recipe.at_depth]
    if recipe.stage not in sized:
        raise InputError(
            f"the recipe has stage={recipe.stage}: the stages with sizes in a series are {', '.join(sized)}"
        )
    if not depths:
        raise InputError("no depths given: give some, such as 2,4,6")
    for depth in depths:
        if depth < 1:
            raise InputError(f"depth {depth} must be at least 1")
        if depths.count(depth) > 1:
            raise InputError(f"depth {depth} is given twice: each size is trained once")
    return [recipe.at_depth(depth) for depth in depths]


def train_series(recipes: Sequence[Recipe], launch: str = "", announce: Callable[[str], None] = print) -> None:
    """Train one after the other, each by `var train` in a process of its own, so that none inherits memory or state.

    Complete runs are only opened: the same call goes on where a series was stopped or killed.

    `launch` is a command that starts a Python module on several processes, such as `torchrun --nproc_per_node 2`;
    empty: this Python. `announce` is called with a line before each size.

    Raises InputError: a launch that cannot be started. Raises SystemExit: a run has failed, with its exit code, after
    its own message; or Ctrl-C, SIGTERM or SIGHUP stopped the series, after the current run was saved.
    """
    try:
        starting = shlex.split(launch) or [sys.executable]
    except ValueError as error:
        raise InputError(f"launch={launch!r} cannot be read ({error}): give it as in a shell") from error
    for recipe in recipes:
        announce(recipe.headline)
        with TemporaryDirectory() as folder:
            file = Path(folder) / RECIPE
            write_recipe(recipe, file)
            code = _run([*starting, "-m", "var", "train", str(file)])
        if code:
            raise SystemExit(code)


def _run(command: Sequence[str]) -> int:
    """Run the command and return its exit code; 128 + the signal's number if a signal stopped this process.

    A run that a signal stops saves first. A terminal sends Ctrl-C to all processes in its foreground, the run's
    included; SIGTERM is passed on.
    """
    received: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number != signal.SIGINT:
            for process in started:
                process.send_signal(number)

    try:
        with handle_stop_signals(remember):
            started.append(subprocess.Popen(command))
            code = started[0].wait()
    except OSError as error:
        raise InputError(f"{command[0]} cannot be started ({error.strerror}): name a command to launch with") from error
    if received:
        return 128 + received[0]
    return code if code >= 0 else 128 - code
