"""Logs of a run: a live line, TensorBoard, a JSON-lines file of all numbers, sheets, optionally Weights & Biases."""

import importlib.util
import json
import math
import time
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from tokenizer.errors import InputError
from var.training.config import Recipe
from var.training.curves import METRICS, RECIPE
from var.utils.files import atomic_write
from var.utils.images import save_image
from var.utils.json_text import parse_json
from var.utils.progress import PRINTED_EVERY
from var.utils.provenance import sha256


class Clock:
    """Speed since the last call, and of the whole run since it was started or resumed."""

    def __init__(self, start: int, batch_size: int) -> None:
        self.start = self.last_step = start
        self.batch_size = batch_size
        self.began = self.last_time = time.monotonic()

    def rate(self, step: int) -> float:
        """Return the images a second since the last call."""
        now = time.monotonic()
        rate = (step - self.last_step) * self.batch_size / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        return rate

    def estimate_time_left(self, step: int, steps: int) -> timedelta:
        """Estimate the time until the last step, at the pace so far."""
        pace = (time.monotonic() - self.began) / max(step - self.start, 1)
        return timedelta(seconds=round(pace * (steps - step)))


class Report:
    """Write recipe.yaml, metrics.jsonl, tensorboard/ and pictures/ in the output folder; only on the main process."""

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        start: int,
        is_main_process: bool,
        best: str = "loss",
        due: Collection[str] = (),
    ) -> None:
        self.recipe = recipe
        self.steps = steps
        self.is_main_process = is_main_process
        self.best = best  # the validation's number that decides which checkpoint is best
        self.clock = Clock(start, recipe.batch_size)
        self.printed = time.monotonic()  # a step's line, last
        self.console = Console(quiet=not is_main_process)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        live = is_main_process and self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, disable=not live)
        self.task = self.progress.add_task("training", total=steps, completed=start)
        if is_main_process:
            try:
                recipe.output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"output={str(recipe.output)!r} cannot be made ({error.strerror})"
                raise InputError(f"{reason}: give another folder") from error
            write_recipe(recipe, recipe.output / RECIPE)
            self.writer = SummaryWriter(str(recipe.output / "tensorboard"), purge_step=start + 1)
            self.wandb = open_wandb(recipe) if recipe.wandb_project else None
            self.metrics = recipe.output / METRICS
            forget_after(self.metrics, start, due)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.progress.stop()
        if self.is_main_process:
            self.writer.close()
            if self.wandb is not None:
                self.wandb.finish(exit_code=0 if kind is None else 1)

    def step(self, step: int, values: dict[str, float], counts: dict[str, int]) -> None:
        """Log a training step: its means, and the counts of faults so far."""
        values = values | {"images_per_second": self.clock.rate(step)} | counts
        self._write(step, "train", values)
        shown = f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s"
        shown += "".join(f"  {count} {name.replace('_', ' ')}" for name, count in counts.items())
        self.progress.update(self.task, completed=step, description=shown)
        if not self.console.is_terminal:
            self._print_step(step, f"{shown}  ")

    def advance(self, step: int) -> None:
        """Move the live line to a step; nothing is logged. Where there is no terminal, a long silence is broken."""
        self.progress.update(self.task, completed=step)
        if time.monotonic() - self.printed >= PRINTED_EVERY and not self.console.is_terminal:
            self._print_step(step)

    def _print_step(self, step: int, shown: str = "") -> None:
        self.printed = time.monotonic()
        left = self.clock.estimate_time_left(step, self.steps)
        self.console.print(f"step {step}/{self.steps}  {shown}{left} left", soft_wrap=True)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Log a validation."""
        self._write(step, "validation", values)
        shown = {name: value for name, value in values.items() if "/" not in name or name == self.best}
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self.console.print(f"step {step}  validation  {numbers}", soft_wrap=True)  # each scale's are in the files

    def sheet(self, step: int, sheet: Image.Image) -> None:
        """Save a sheet as PNG and in TensorBoard."""
        save_image(self.recipe.output / "pictures" / f"step-{step:08d}.png", sheet)
        self.writer.add_image("sheet", np.asarray(sheet), step, dataformats="HWC")

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        if not self.is_main_process:
            return
        for name, value in values.items():
            self.writer.add_scalar(f"{split}/{name}", value, step)
        if self.wandb is not None:
            self.wandb.log({"step": step, **{f"{split}/{name}": value for name, value in values.items()}})
        with self.metrics.open("a") as file:
            # JSON has no nan and no infinity: null stands for them.
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")


def check_wandb(recipe: Recipe) -> None:
    """Raise InputError if the recipe asks for Weights & Biases and its package is not installed."""
    if recipe.wandb_project and importlib.util.find_spec("wandb") is None:
        given = f"wandb_project={recipe.wandb_project!r}"
        raise InputError(f"{given} needs the package: pip install 'var-next-scale[wandb]', or set wandb_project=null")


def open_wandb(recipe: Recipe) -> Any:
    """Open the run at Weights & Biases, the same one whenever it is resumed.

    accelerate's trackers are no choice: they cannot mark a run as failed, and only pass on calls to TensorBoard.
    """
    import wandb

    output = recipe.output.absolute()
    run = wandb.init(
        project=recipe.wandb_project,
        name=output.name,
        id=sha256([str(output).encode()])[:16],
        resume="allow",
        dir=str(output),
        config=recipe.model_dump(mode="json"),
    )
    run.define_metric("*", step_metric="step")  # a resumed run logs some steps again, which wandb's own counter refuses
    return run


def write_recipe(recipe: Recipe, file: Path) -> None:
    """Write the whole recipe with its defaults, so that `load_recipe` gives the same one.

    Raises InputError: it cannot be written.
    """
    text = recipe.model_dump_json().replace("${", r"\\${")  # escaped: it would begin an interpolation
    with atomic_write(file) as beside:
        beside.write_text(OmegaConf.to_yaml(OmegaConf.create(json.loads(text))), encoding="utf-8")


def forget_after(metrics: Path, step: int, due: Collection[str] = ()) -> None:
    """Drop the lines that a resumed run will write again: of later steps, and of this step those of the splits due."""
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if _is_kept(line, step, due)]
        with atomic_write(metrics) as beside:
            beside.write_text("".join(f"{line}\n" for line in lines))


def _is_kept(line: str, step: int, due: Collection[str]) -> bool:
    try:
        found = parse_json(line)
        return int(found["step"]) < step or (int(found["step"]) == step and found.get("split") not in due)
    except (ValueError, KeyError, TypeError):  # cut off when the run that wrote it was killed
        return False
