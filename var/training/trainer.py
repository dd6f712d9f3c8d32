"""A training run in memory: its steps, validation, saving and resuming."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import InputError, one_line
from var.data.dataset import Batch
from var.data.loader import validation_loader
from var.sampling.logits import mix_seed
from var.training.checkpointing import checkpoints, load_newest, remove_torn, save_checkpoint
from var.training.config import Recipe
from var.training.distributed import is_sharding_requested, load_model_state, model_state, shard, unshard
from var.training.ema import EMA
from var.training.health import RunHealth
from var.training.origin import describe_origin
from var.training.parts import check_random_is_trained
from var.training.phase_runner import PhaseRunner
from var.training.resuming import check_resumable, fixed_settings, refusing_others
from var.training.rng import StepRNG, Stream
from var.training.stages.base import Stage, find_stage
from var.utils.text import plural

log = logging.getLogger(__name__)

SHEET_BATCH = 8


def build_stage(recipe: Recipe) -> Stage[Any]:
    """Build the recipe's stage, with its data and its initial weights.

    Raises InputError: data, tokenizer or networks that are missing or do not fit.
    """
    torch.manual_seed(mix_seed(Stream.WEIGHTS, recipe.seed))
    return find_stage(recipe.stage).from_recipe(recipe)


class Trainer:
    """A training run in memory: all that its steps change, their validation, saving and resuming."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.stage = stage = build_stage(recipe)
        self.origin = describe_origin(recipe.data, stage.train_data, stage.validation_data, stage.frozen)
        stage.to(accelerator.device)
        for phase in stage.phases:
            phase.model.to(accelerator.device)
        random = []
        if recipe.init is not None and not checkpoints(recipe.output / "checkpoints"):
            random = stage.start_from(recipe.init)
        stage.set_trained()
        if recipe.freezes:
            check_random_is_trained(stage.phases[0].model, random)
        first, sharded = stage.phases[0], accelerator.num_processes > 1 and is_sharding_requested()
        self.ema = EMA(first.model, recipe.ema) if recipe.ema else None
        if self.ema and sharded and first.sharded:
            shard(self.ema.model, first.sharded)
        self.runners = [PhaseRunner(phase, recipe, accelerator, sharded) for phase in stage.phases]
        self.eval_model: nn.Module = self.ema.model if self.ema else first.model  # validated, sampled and exported
        self.health = RunHealth(recipe, accelerator)
        self.step = 0  # steps done
        self.saved_step = 0  # that of the newest checkpoint
        self.in_step = False  # what a step changes is changed in part
        self.failed_together = False  # all processes know of the error of one, see `failing_together`
        self.logs: dict[str, Tensor] = {}  # this process's share of the last step's numbers
        self.due: set[str] = set()  # what has still to follow the last step, see `_due_now`
        self.best: dict[str, float] | None = None  # step and value of the best validation so far

    def take_step(self, batches: Sequence[Batch]) -> None:
        """Run the next step's phases on this process's micro-batches; set `logs`, and `due` to what follows it."""
        self.in_step = True
        recipe, accelerator = self.recipe, self.accelerator
        world, device = accelerator.num_processes, accelerator.device
        stride = world * len(batches)  # between the samples of a micro-batch, as `StepSampler` deals them out
        first_samples = range(accelerator.process_index, stride, world)  # of each micro-batch of this process
        indices = [range(first, recipe.batch_size, stride) for first in first_samples]
        rngs = [StepRNG(recipe.seed, self.step, recipe.batch_size, samples, device) for samples in indices]
        batches = [send_to_device(batch, device) for batch in batches]
        carries: Sequence[Any] = [None] * len(batches)
        logs: dict[str, Tensor] = {}
        model_changed = False
        for runner in self.runners:
            if self.step < runner.phase.start_step:
                continue
            result = runner.step(batches, rngs, carries, self.stage.steps)
            prefix = "" if runner is self.runners[0] else f"{runner.phase.name}/"
            logs |= {**result.logs, f"{prefix}gradient_norm": result.norm / world, f"{prefix}lr": result.lr / world}
            if not result.finite:
                self.health.record_skipped_step(self.step, runner.phase.name, logs, batches)
                break
            carries = result.carries
            model_changed = True  # by the first phase, which is in every step
        else:
            self.health.record_step()
        if model_changed:
            shown = self.stage.after_step(rngs[0], carries, accelerator.reduce)
            logs |= {name: value / world for name, value in shown.items()}
            if self.ema:
                self.ema.update(self.stage.phases[0].model, self.step)
        self.step += 1
        self.logs = {name: value.detach() for name, value in logs.items()}
        self.due = self._due_now()
        self.in_step = False

    def _due_now(self) -> set[str]:
        """Return what follows this step by the recipe: a line of numbers ("train"), "validation", a "sheet"."""
        recipe, last = self.recipe, self.step == self.stage.steps
        every = {"train": recipe.log_every, "validation": recipe.validate_every, "sheet": recipe.sample_every}
        return {name for name, steps in every.items() if last or self.step % steps == 0}

    def mean_logs(self, logs: dict[str, Tensor]) -> dict[str, float]:
        """Sum the shares of all processes; every process must call this with the same names."""
        shares = torch.stack([value.detach().float().to(self.accelerator.device) for value in logs.values()])
        return dict(zip(logs, self.accelerator.reduce(shares).tolist(), strict=True))

    def save(self) -> None:
        """Write a checkpoint; every process must call this, the main one writes."""
        state = {
            "step": self.step,
            "recipe": fixed_settings(self.recipe),
            "origin": self.origin,
            "turns": {runner.phase.name: runner.state_dict() for runner in self.runners},
            "ema": model_state(self.ema.model) if self.ema else None,
            "stage": self.stage.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "guard": self.health.state_dict(),
            "best": self.best,
            "due": sorted(self.due),
            "logs": {name: value.cpu() for name, value in self.logs.items()} if "train" in self.due else {},
        }
        if self.accelerator.is_main_process:
            best = int(self.best["step"]) if self.best else None
            save_checkpoint(self.recipe.output / "checkpoints", self.step, state, self.recipe.keep_last, best)
        self.saved_step = self.step

    @contextmanager
    def saved_if_it_fails(self) -> Iterator[None]:
        """Inside, an error or a stop between two steps saves the last one, if it can; else say what is lost.

        What is still due after that step is saved with it, and done by the run that goes on. Several processes save
        together, which those that wait for one that failed cannot: they do it after `failing_together` alone.
        """
        try:
            yield
        except BaseException as error:
            alone = self.accelerator.num_processes == 1
            if self.step > self.saved_step and not self.in_step and (alone or self.failed_together):
                self._save_in_spite_of(error)
                self.accelerator.wait_for_everyone()  # a launcher ends the others when the first one leaves
            if lost := self.step - self.saved_step:
                kept = f"step {self.saved_step}, the last that was saved" if self.saved_step else "the start"
                log.warning("lost: %s since %s; the same command goes on from there", plural(lost, "step"), kept)
            raise

    def _save_in_spite_of(self, error: BaseException) -> None:
        """Save while an error is under way, which is to be raised even if saving fails too."""
        try:
            self.save()
        except Exception as another:
            if str(another) != str(error):  # such as of a full disk
                log.warning("step %d cannot be saved: %s", self.step, one_line(another))
            return
        if self.accelerator.is_main_process:
            log.warning("step %d was saved: the same command goes on from there", self.step)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Inside, an error of one process, such as the main one drawing alone, ends the run on all of them.

        Every process must call this.

        Raises SystemExit, on those without an error of their own.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.failed_together = self.health.any_process(error is not None)
        if error is not None:
            raise error
        if self.failed_together:
            raise SystemExit(1)

    def resume(self) -> None:
        """Go on from the newest checkpoint in the output folder, if there is one.

        Raises InputError: it is of another stage, model, seed, batch size or use of EMA; or the classes, the images or
        a frozen network, such as the tokenizer, have changed.
        """
        folder = self.recipe.output / "checkpoints"
        if self.accelerator.is_main_process:
            remove_torn(folder)
        state = load_newest(folder)
        if state is None:
            return
        with refusing_others(self.recipe):
            check_resumable(self.recipe, state, self.origin)
            for runner in self.runners:
                runner.load_state_dict(state["turns"][runner.phase.name])
            if self.ema:
                load_model_state(self.ema.model, state["ema"])
            self.stage.load_state_dict(state["stage"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.health.load_state_dict(state["guard"])
            self.step, self.best = int(state["step"]), state["best"]
            self.saved_step = self.step
            self.due = self._due_now() & set(state.get("due", ()))  # older checkpoints do not say
            world = self.accelerator.num_processes  # one alone saves logs that are due, see `saved_if_it_fails`
            self.logs = {name: value / world for name, value in state.get("logs", {}).items()}
        if self.step < self.stage.steps:
            weights = "" if self.recipe.init is None else ": the model has the weights of that step, not those of init"
            log.info("going on from step %d%s", self.step, weights)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return means over the validation images, the same on all processes."""
        accelerator = self.accelerator
        self.eval_model.eval()
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), device=accelerator.device)
        unreadable, last = torch.zeros_like(count), None
        for batch in self._validation_batches(accelerator.process_index, accelerator.num_processes):
            self.health.names.add(batch.unreadable)
            with accelerator.autocast():
                values = self.stage.validate(self.eval_model, batch)
            # A process without an image in the last batch still takes part in the sums below, with zeros.
            sums = {name: sums.get(name, 0) + value.float().sum() for name, value in values.items()}
            count += len(batch.labels)
            unreadable += len(batch.unreadable)
            last = batch.unreadable[-1] if batch.unreadable else last
        count, unreadable = accelerator.reduce(count), accelerator.reduce(unreadable)
        if count == 0:
            told = f", the last was {last}: {last.remedy}" if last else ": give others"
            raise InputError(f"none of the validation images could be read{told}")
        means = {name: (accelerator.reduce(value) / count).item() for name, value in sums.items()}
        return means | ({"unreadable_images": int(unreadable)} if unreadable else {})

    def _validation_batches(self, rank: int, world: int, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or self.recipe.batch_size
        batches = validation_loader(self.stage.validation_data, self.recipe.data, size, rank, world)
        return (send_to_device(batch, self.accelerator.device) for batch in batches)

    def export_if_best(self, validation: dict[str, float]) -> bool:
        """Export the model as "best" if this validation is the best so far, and then remember it; return whether it is.

        Every process must call this.
        """
        value = validation[self.stage.best]
        if not math.isfinite(value) or (self.best is not None and value >= self.best["value"]):
            return False
        self.export("best")
        self.best = {"step": self.step, "value": value}
        return True

    @torch.no_grad()
    def preview(self) -> Image.Image | None:
        """Draw the stage's sheet from the first validation images; every process must call this, the main one draws."""
        model = unshard(self.eval_model, self.stage.rebuild)
        if model is None or not self.accelerator.is_main_process:
            return None
        model.eval()
        batch = next(batch for batch in self._validation_batches(0, 1, SHEET_BATCH) if len(batch.labels))
        return self.stage.preview(model.to(self.accelerator.device), batch)

    def export(self, name: str) -> Path:
        """Write the model as users load it; every process must call this, the main one writes."""
        model = unshard(self.eval_model, self.stage.rebuild)
        if model is not None and self.accelerator.is_main_process:
            with self.accelerator.autocast():  # an export that measures computes as validation does
                self.stage.export(model, self.recipe.output / name)
        return self.recipe.output / name
