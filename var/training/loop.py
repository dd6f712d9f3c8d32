"""The one training loop: any stage, any number of processes, resumed by the same command."""

import logging
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, send_to_device
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.data.dataset import Batch, open_dataset
from var.data.listing import SPLIT_NAMES
from var.data.loader import StepSampler, loader, validation_loader
from var.data.token_cache import MANIFEST
from var.data.tokenize import Processes, write_tokens
from var.features.sources import load_features
from var.hub.checkpoint import load_weights
from var.sampling.logits import mix_seed
from var.training.checkpointing import checkpoints, load_newest, save_checkpoint
from var.training.config import AIMRecipe, AnyRecipe, ProbeRecipe, Recipe, TokenizerRecipe, VARRecipe
from var.training.distributed import (
    destroy_process_group,
    load_model_state,
    model_state,
    shard,
    sharding_asked_for,
    sharding_left_to_us,
    unshard,
)
from var.training.ema import EMA
from var.training.health import RunHealth, disk_full_as_input_error
from var.training.logger import Report, check_wandb
from var.training.phase_runner import PhaseRunner
from var.training.rng import StepRNG
from var.training.stages import Stage
from var.training.stages.aim import AIMStage
from var.training.stages.probe import ProbeStage
from var.training.stages.tokenizer import TokenizerStage, frozen_networks
from var.training.stages.var import VARStage, check_labels, open_split, open_tokenizer
from var.utils.device import choose_device, choose_dtype
from var.utils.files import check_writable
from var.utils.signals import catch_interrupts

log = logging.getLogger(__name__)

_WEIGHTS = 0  # first word of the random stream of the initial weights
PICTURE_BATCH = 8


def build_stage(recipe: AnyRecipe) -> Stage:
    """The stage that a recipe asks for, with its data and its initial weights.

    Raises:
        InputError: data, tokenizer or networks that are not there or do not fit.
    """
    torch.manual_seed(mix_seed(_WEIGHTS, recipe.seed))
    if isinstance(recipe, TokenizerRecipe):
        side, seed = recipe.model.image_side, recipe.seed
        images = [open_dataset(recipe.data, split, side, seed) for split in SPLIT_NAMES]
        return TokenizerStage(recipe, frozen_networks(recipe), *images)
    if isinstance(recipe, AIMRecipe):
        images = [open_dataset(recipe.data, split, recipe.model.image_size, recipe.seed) for split in SPLIT_NAMES]
        return AIMStage(recipe, open_tokenizer(recipe.tokenizer) if recipe.tokenizer else None, *images)
    if isinstance(recipe, ProbeRecipe):
        source = load_features(recipe.model, recipe.sizes)  # first: untrained weights are those of pre-training
        images = [open_dataset(recipe.data, split, source.image_size, recipe.seed) for split in SPLIT_NAMES]
        return ProbeStage(recipe, source, *images)
    vqvae = open_tokenizer(recipe.tokenizer)
    return VARStage(recipe, vqvae, *(open_split(recipe, vqvae, split) for split in SPLIT_NAMES))


def complete_tokens(recipe: VARRecipe, accelerator: Accelerator) -> None:
    """Encode what the recipe's token cache lacks, on all processes."""
    vqvae = open_tokenizer(recipe.tokenizer).to(accelerator.device)
    if recipe.tokens and recipe.model.num_classes and not (recipe.tokens / MANIFEST).is_file():
        for split in SPLIT_NAMES:  # to encode may take hours: what cannot be trained on is told before
            images = open_dataset(recipe.data, split, vqvae.config.image_side, recipe.seed)
            check_labels(images, recipe.model.num_classes)
    rank, world = accelerator.process_index, accelerator.num_processes
    write_tokens(recipe, vqvae, Processes(rank, world, accelerator.wait_for_everyone))


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device of a run, in the recipe's precision.

    Raises:
        InputError: a precision that does not go with the device or with sharding; fewer images in a batch than parts
            that share them.
    """
    device = choose_device()
    if recipe.precision == "float16" and device.type != "cuda":
        raise InputError(f"precision=float16 needs CUDA, this device is {device.type}: take float32 or bfloat16")
    if recipe.precision == "float16" and sharding_asked_for():
        raise InputError("precision=float16 does not go with sharded parameters: take bfloat16")
    if recipe.precision == "float16":
        precision = "fp16"
    else:
        precision = "bf16" if choose_dtype(recipe.precision, device) == torch.bfloat16 else "no"
    # The other processes wait for the slowest one to have encoded its part of a token cache.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    with sharding_left_to_us():
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[patience])
    parts = accelerator.num_processes * recipe.accumulate
    if recipe.batch_size < parts:
        raise InputError(
            f"batch_size={recipe.batch_size} leaves some of {parts} parts without an image (processes: "
            f"{accelerator.num_processes}, accumulate={recipe.accumulate}): it must be at least {parts}"
        )
    return accelerator


class Trainer:
    """A training run in memory: what its steps change, and how it is saved and found again.

    Attributes:
        runners: of the stage's phases.
        eval_model: the model that is validated, pictured and exported: the moving average if there is one.
        step: steps done.
        best: step and value of the best validation so far.
    """

    def __init__(self, recipe: AnyRecipe, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.stage = stage = build_stage(recipe)
        stage.prepare(accelerator.device)
        for phase in stage.phases:
            phase.model.to(accelerator.device)
        if recipe.init is not None and not checkpoints(recipe.output / "checkpoints"):
            start_from(recipe.init, stage.phases[0].model)
        first, sharded = stage.phases[0], accelerator.num_processes > 1 and sharding_asked_for()
        self.ema = EMA(first.model, recipe.ema) if recipe.ema else None
        if self.ema and sharded and first.units:
            shard(self.ema.model, first.units)
        self.runners = [PhaseRunner(phase, recipe, accelerator, sharded) for phase in stage.phases]
        self.eval_model: nn.Module = self.ema.model if self.ema else first.model
        self.health = RunHealth(recipe, accelerator)
        self.step = 0
        self.best: dict[str, float] | None = None

    def take_step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """All phases of the next step on this process's micro-batches; numbers to show, to be summed over processes."""
        recipe, accelerator = self.recipe, self.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        parts = [range(i * world + rank, recipe.batch_size, world * len(batches)) for i in range(len(batches))]
        draws = [StepRNG(recipe.seed, self.step, recipe.batch_size, part, accelerator.device) for part in parts]
        batches = [send_to_device(batch, accelerator.device) for batch in batches]
        kept: Sequence[Any] = [None] * len(batches)
        logs: dict[str, Tensor] = {}
        taken = 0
        for runner in self.runners:
            if self.step < runner.phase.start_step:
                continue
            result = runner.step(self.stage, batches, draws, kept, self.stage.steps)
            prefix = "" if runner is self.runners[0] else f"{runner.phase.name}/"
            logs |= {**result.logs, f"{prefix}gradient_norm": result.norm / world, f"{prefix}lr": result.lr / world}
            if not result.finite:
                self.health.skipped(self.step, runner.phase.name, logs, batches)
                break
            kept = result.kept
            taken += 1
        else:
            self.health.stepped()
        if taken:  # the first phase has changed the model
            shown = self.stage.after_step(draws[0], kept, self._sum)
            logs |= {name: value / world for name, value in shown.items()}
            if self.ema:
                self.ema.update(self.stage.phases[0].model, self.step)
        self.step += 1
        return logs

    def _sum(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(value) if self.accelerator.num_processes > 1 else value

    def mean_logs(self, logs: dict[str, Tensor]) -> dict[str, float]:
        """The shares of all processes together; every process must call this with the same names."""
        shares = torch.stack([value.detach().float().to(self.accelerator.device) for value in logs.values()])
        return dict(zip(logs, self._sum(shares).tolist(), strict=True))

    def save(self) -> None:
        """Write a checkpoint; every process must call this, the main one writes."""
        state = {
            "step": self.step,
            "recipe": fixed_settings(self.recipe),
            "turns": {runner.phase.name: runner.state_dict() for runner in self.runners},
            "ema": model_state(self.ema.model) if self.ema else None,
            "stage": self.stage.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "guard": self.health.state_dict(),
            "best": self.best,
        }
        if self.accelerator.is_main_process:
            best = int(self.best["step"]) if self.best else None
            save_checkpoint(self.recipe.output / "checkpoints", self.step, state, self.recipe.keep, best)

    def resume(self) -> None:
        """Go on from the newest checkpoint of the output folder, if there is one.

        Raises:
            InputError: it is of another kind, or of a run with another model, seed, batch size or use of EMA.
        """
        state = load_newest(self.recipe.output / "checkpoints")
        if state is None:
            return
        remedy = "give another output, or move them away"
        try:
            ours, theirs = fixed_settings(self.recipe), settings_today(state["recipe"], self.recipe)
            if changed := [name for name in ours if ours[name] != theirs.get(name)]:
                name = changed[0]
                raise InputError(
                    f"the checkpoints in {self.recipe.output} belong to another recipe, with {name}="
                    f"{theirs.get(name)}, not {ours[name]}: {remedy}"
                )
            for runner in self.runners:
                runner.load_state_dict(state["turns"][runner.phase.name])
            if self.ema:
                load_model_state(self.ema.model, state["ema"])
            self.stage.load_state_dict(state["stage"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.health.load_state_dict(state["guard"])
            self.step, self.best = int(state["step"]), state["best"]
        except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"the checkpoints in {self.recipe.output} belong to something else ({reason}): {remedy}"
            ) from error
        log.info("going on from step %d", self.step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the validation images, on all processes."""
        accelerator = self.accelerator
        self.eval_model.eval()
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), device=accelerator.device)
        unreadable = torch.zeros_like(count)
        for batch in self._validation_batches(accelerator.process_index, accelerator.num_processes):
            with accelerator.autocast():
                values = self.stage.validate(self.eval_model, batch)
            # A process may have no image in the last batch: it takes part in the sums below all the same, with zeros.
            sums = {name: sums.get(name, 0) + value.float().sum() for name, value in values.items()}
            count += len(batch.labels)
            unreadable += len(batch.unreadable)
        count, unreadable = self._sum(count), self._sum(unreadable)
        if count == 0:
            raise InputError("none of the validation images could be read: repair or replace them")
        means = {name: (self._sum(value) / count).item() for name, value in sums.items()}
        return means | ({"unreadable_images": int(unreadable)} if unreadable else {})

    def _validation_batches(self, rank: int, world: int, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or self.recipe.batch_size
        batches = validation_loader(self.stage.validation_data, self.recipe.data, size, rank, world)
        return (send_to_device(batch, self.accelerator.device) for batch in batches)

    def is_best(self, validation: dict[str, float]) -> bool:
        """Whether no validation before was better; then it is the one to beat."""
        value = validation[self.stage.best]
        if not math.isfinite(value) or (self.best is not None and value >= self.best["value"]):
            return False
        self.best = {"step": self.step, "value": value}
        return True

    @torch.no_grad()
    def preview(self) -> Image.Image | None:
        """The stage's sheet, from the first validation images; every process must call this, the main one draws."""
        model = unshard(self.eval_model, self.stage.build)
        if not self.accelerator.is_main_process:
            return None
        model.eval()
        batch = next(batch for batch in self._validation_batches(0, 1, PICTURE_BATCH) if len(batch.labels))
        return self.stage.preview(model.to(self.accelerator.device), batch)

    def export(self, name: str) -> Path:
        """Write the model as users load it; every process must call this, the main one writes."""
        model = unshard(self.eval_model, self.stage.build)
        if self.accelerator.is_main_process:
            with self.accelerator.autocast():  # what an export measures is computed as in validation
                self.stage.export(model, self.recipe.output / name)
        return self.recipe.output / name


def train(recipe: AnyRecipe) -> Path:
    """Train as the recipe says, going on from the newest checkpoint in its output folder if there is one.

    Returns:
        The folder of the exported model, `output/model`; that of the best validation is `output/best`.

    Raises:
        InputError: data, tokenizer or checkpoints that cannot be used; too many unreadable images; too many steps in a
            row without a finite loss and gradient; a full disk.
    """
    accelerator = build_accelerator(recipe)
    exported = _train(recipe, accelerator)
    accelerator.free_memory()  # a wrapped model would keep the group of processes, and end it when it goes itself
    destroy_process_group()
    return exported


def _train(recipe: AnyRecipe, accelerator: Accelerator) -> Path:
    check_wandb(recipe)
    for folder in ("", "checkpoints", "pictures", "tensorboard", "model", "best"):  # before hours are spent
        check_writable(recipe.output / folder)
    if isinstance(recipe, VARRecipe) and recipe.tokens:
        complete_tokens(recipe, accelerator)
    trainer = Trainer(recipe, accelerator)
    trainer.resume()
    stage, start, steps = trainer.stage, trainer.step, trainer.stage.steps
    sampler = StepSampler(
        stage.train_data,
        recipe.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        start,
        steps,
        recipe.accumulate,
    )
    batches = iter(loader(stage.train_data, sampler, stage.workers))

    with (
        disk_full_as_input_error(recipe),
        Report(recipe, steps, start, accelerator.is_main_process) as report,
        catch_interrupts() as interrupted,
    ):
        while trainer.step < steps:
            micro_batches = list(islice(batches, recipe.accumulate))
            trainer.health.check_readable(micro_batches)
            logs = trainer.take_step(micro_batches)
            step, stop = trainer.step, trainer.health.any_process(interrupted())
            last = step == steps or stop
            if step % recipe.log_every == 0 or last:
                report.step(step, trainer.mean_logs(logs), trainer.health.counts())
            saves = step % recipe.checkpoint_every == 0 or last
            if step % recipe.validate_every == 0 or step == steps:
                validation = trainer.validate()
                report.validation(step, validation)
                if trainer.is_best(validation):
                    trainer.export("best")
                    saves = True
            if saves:
                trainer.save()
            if (step % recipe.sample_every == 0 or step == steps) and (sheet := trainer.preview()) is not None:
                report.picture(step, sheet)
            if stop:
                break
        if trainer.step < steps:
            log.warning("stopped after step %d of %d: the same command goes on from there", trainer.step, steps)
        return trainer.export("model")


def start_from(folder: Path, model: nn.Module) -> None:
    """Begin a run with exported weights, and tell what they did not hold.

    Raises:
        InputError: see `load_weights`.
    """
    started = load_weights(folder, model)
    log.info("init: %d tensors from %s", len(started.loaded), folder)
    for names, fate in ((started.new, "not in it, random"), (started.dropped, "of it not used")):
        if names:
            log.warning("init: %d tensors %s: %s", len(names), fate, ", ".join(names[:8]) + ", ..." * (len(names) > 8))


def settings_today(theirs: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A checkpoint's `fixed_settings`, where a size that came later has the value that it stands for."""
    if theirs.get("stage") != getattr(recipe, "stage", None) or "model" not in theirs:
        return theirs
    annotation: Any = type(recipe).model_fields["model"].annotation
    sizes: TypeAdapter[Any] = TypeAdapter(annotation)
    return theirs | {"model": sizes.dump_python(sizes.validate_python(theirs["model"]), mode="json")}


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """What a resumed run must not change: the model, and what decides which step sees which image."""
    settings = recipe.model_dump(mode="json", include={"stage", "seed", "batch_size", "model", "sizes", "probe_layers"})
    return settings | {"ema": recipe.ema is not None}
