"""The one training loop: any stage, any number of processes, resumed by the same command."""

import logging
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.device import choose_device, choose_dtype
from var.files import check_writable
from var.training.config import Recipe, TokenizerRecipe, VARRecipe
from var.training.data import Batch, StepSampler, Unreadable
from var.training.ema import EMA
from var.training.optimizer import build_optimizer
from var.training.report import Report
from var.training.schedule import lr_factor
from var.training.stages import Losses, Stage
from var.training.stages.tokenizer import TokenizerStage
from var.training.stages.var import VARStage
from var.training.state import load_newest, save_checkpoint
from var.training.tokens import TokenBatch

log = logging.getLogger(__name__)

_WEIGHTS, _STEP = 0, 1  # first word of the random streams: initial weights, and what a step draws
PICTURE_BATCH = 8
FEW_SAMPLES = 1000  # before so many were seen, the share of unreadable images is taken of this number


def build_stage(recipe: TokenizerRecipe | VARRecipe) -> Stage:
    """The stage that a recipe asks for."""
    return TokenizerStage(recipe) if isinstance(recipe, TokenizerRecipe) else VARStage(recipe)


def total_steps(recipe: Recipe, length: int) -> int:
    """Steps of the whole run over a dataset of that length."""
    if recipe.steps is not None:
        return recipe.steps
    return max(1, math.ceil((recipe.epochs or 0) * length / recipe.batch_size))


def train(recipe: TokenizerRecipe | VARRecipe) -> Path:
    """Train as the recipe says, going on from the newest checkpoint in its output folder if there is one.

    Returns:
        The folder of the exported model, `output/model`.

    Raises:
        InputError: data, tokenizer or checkpoints that cannot be used; too many unreadable images.
    """
    device = choose_device()
    dtype = choose_dtype(recipe.precision, device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if dtype == torch.bfloat16 else "no")
    rank, world = accelerator.process_index, accelerator.num_processes

    for folder in (
        "",
        "checkpoints",
        "pictures",
        "tensorboard",
        "model",
    ):  # before hours are spent on what has no place
        check_writable(recipe.output / folder)
    seed_all(_WEIGHTS, recipe.seed)
    stage = build_stage(recipe)
    steps = total_steps(recipe, stage.length)
    stage.model.to(accelerator.device)
    ema = EMA(stage.model, recipe.ema) if recipe.ema else None
    optimizer = build_optimizer(stage.model, recipe.optimizer, stage.never_decayed)
    start = resume(recipe, stage.model, ema, optimizer)
    sampler = StepSampler(stage.length, recipe.batch_size, recipe.seed, rank, world, start, steps)
    stage.prepare(accelerator.device)
    compiled = torch.compile(stage.model) if recipe.compile else stage.model
    model, optimizer = accelerator.prepare(compiled, optimizer)
    averaged = ema.model if ema else stage.model
    unreadable: list[Unreadable] = []
    step = start
    trained = start > 0

    with Report(recipe, steps, start, accelerator.is_main_process) as report, interruptible() as interrupted:
        for batch in stage.batches(sampler):
            unreadable += batch.unreadable
            check_unreadable(unreadable, (step - start + 1) * recipe.batch_size // world, recipe.data.max_unreadable)
            if not len(batch.labels) and world > 1:  # the other processes would wait for this one's gradients
                raise InputError(f"no image of process {rank}'s batch could be read: {unreadable[-1].place}")
            seed_all(_STEP, recipe.seed, step, rank)
            lr = recipe.optimizer.lr * lr_factor(step, steps, recipe.schedule)
            logs: dict[str, Tensor | float] = {"lr": lr}
            changed = False
            if len(batch.labels):
                batch = send_to_device(batch, accelerator.device)
                losses, norm = optimise(stage, model, optimizer, batch, accelerator, lr, recipe.optimizer.clip)
                changed = stage.after_step(batch, losses.tokens)
                trained = True
                logs |= {**losses.logs, "gradient_norm": norm}
            # What one process sees in its part of the batch, or receives as a signal, all must act upon.
            changed, stop = any_process(accelerator, changed, interrupted())
            if changed and world > 1:
                broadcast([p.data for p in stage.model.parameters()])
            if ema:
                ema.update(stage.model, step)
            step += 1

            last = step == steps or stop
            keeps = step % recipe.checkpoint_every == 0 or last
            if keeps or step % recipe.log_every == 0:
                check_finite(logs, step, recipe)
            report.step(step, logs, len(unreadable))
            if keeps and not trained:
                raise InputError(
                    f"none of the {len(unreadable)} images read could be decoded, such as {unreadable[-1].place}"
                )
            if step % recipe.validate_every == 0 or step == steps:
                report.validation(step, validate(stage, averaged, accelerator, recipe.batch_size))
            if keeps and accelerator.is_main_process:
                state = {
                    "step": step,
                    "recipe": fixed_settings(recipe),
                    "model": stage.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                state |= {"ema": ema.model.state_dict()} if ema else {}
                save_checkpoint(recipe.output / "checkpoints", step, state, recipe.keep)
            if (step % recipe.sample_every == 0 or step == steps) and accelerator.is_main_process:
                report.picture(step, picture(stage, averaged, accelerator))
            if last:
                break
        if step < steps:
            log.warning("stopped after step %d of %d: the same command goes on from there", step, steps)
        if accelerator.is_main_process:
            stage.export(averaged, recipe.output / "model")
    accelerator.end_training()
    return recipe.output / "model"


def optimise(
    stage: Stage,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch | TokenBatch,
    accelerator: Accelerator,
    lr: float,
    clip: float | None,
) -> tuple[Losses, Tensor]:
    """One step of the optimiser; the losses of the batch and the norm of the gradient before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    with accelerator.autocast():
        losses = stage.losses(model, batch)
    accelerator.backward(losses.total)
    norm = accelerator.clip_grad_norm_(model.parameters(), clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses, norm


def seed_all(*words: int) -> None:
    """Seed torch's generators from a few numbers, so that what a step draws does not depend on the steps before."""
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """What a resumed run must not change: the model, and what decides which step sees which image."""
    settings = recipe.model_dump(mode="json", include={"stage", "seed", "batch_size", "model"})
    return settings | {"ema": recipe.ema is not None}


def resume(
    recipe: TokenizerRecipe | VARRecipe, model: nn.Module, ema: EMA | None, optimizer: torch.optim.Optimizer
) -> int:
    """Load the newest checkpoint of the run in place; the number of steps done, 0 in a new run.

    Raises:
        InputError: the checkpoint is of another kind, or of a run with another model, seed, batch size or use of EMA.
    """
    state = load_newest(recipe.output / "checkpoints")
    if state is None:
        return 0
    remedy = "give another output, or move them away"
    try:
        ours, theirs = fixed_settings(recipe), dict(state["recipe"])
        if changed := [name for name in ours if ours[name] != theirs.get(name)]:
            name = changed[0]
            raise InputError(
                f"the checkpoints in {recipe.output} belong to another recipe, with {name}={theirs.get(name)}, "
                f"not {ours[name]}: {remedy}"
            )
        step = int(state["step"])
        model.load_state_dict(state["model"])
        if ema:
            ema.model.load_state_dict(state["ema"])
        settings = [{name: group[name] for name in ("weight_decay", "betas")} for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, setting in zip(optimizer.param_groups, settings, strict=True):
            group.update(setting)  # the recipe's, which may have changed since
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the checkpoints in {recipe.output} belong to something else ({reason}): {remedy}") from error
    log.info("going on from step %d", step)
    return step


def check_finite(logs: dict[str, Tensor | float], step: int, recipe: Recipe) -> None:
    """Raise InputError if the loss is no number any more: what follows would only spoil the checkpoints."""
    if "loss" in logs and not math.isfinite(logs["loss"]):
        raise InputError(
            f"the loss is {float(logs['loss'])} at step {step}: lower optimizer.lr={recipe.optimizer.lr:g} or set "
            f"optimizer.clip; the same command goes on from the last checkpoint in {recipe.output}"
        )


def check_unreadable(unreadable: list[Unreadable], seen: int, allowed: float) -> None:
    """Raise InputError if more than the allowed share of the samples seen could not be read."""
    if len(unreadable) > allowed * max(seen, FEW_SAMPLES):
        last = unreadable[-1]
        raise InputError(
            f"{len(unreadable)} of {seen} images could not be read, more than data.max_unreadable={allowed:g} allows; "
            f"the last was {last.place} ({last.reason}): repair or remove them"
        )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and Ctrl-C only set a flag, which the value tells: the step under way is finished first."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """For each flag, whether it is set on any of the processes."""
    if accelerator.num_processes == 1:
        return list(flags)
    return [count > 0 for count in accelerator.reduce(torch.tensor(flags, device=accelerator.device).float()).tolist()]


@torch.no_grad()
def validate(stage: Stage, model: nn.Module, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
    """Means over the validation images, on all processes."""
    model.eval()
    sums: dict[str, Tensor] = {}
    count = torch.zeros((), device=accelerator.device)
    unreadable = 0
    for batch in stage.validation_batches(batch_size, accelerator.process_index, accelerator.num_processes):
        unreadable += len(batch.unreadable)
        batch = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            values = stage.validate(model, batch)
        # A process may have no image in the last batch: it takes part in the sums below all the same, with zeros.
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros_like(count)) + (value.float() if len(batch.images) else 0)
        count += len(batch.images)
    count = accelerator.reduce(count)
    if count == 0:
        raise InputError("none of the validation images could be read: repair or replace them")
    means = {name: (accelerator.reduce(value) / count).item() for name, value in sums.items()}
    return means | ({"unreadable_images": unreadable} if unreadable else {})


@torch.no_grad()
def picture(stage: Stage, model: nn.Module, accelerator: Accelerator) -> Image.Image:
    """The stage's sheet, from the first validation images."""
    model.eval()
    batch = next(batch for batch in stage.validation_batches(PICTURE_BATCH, 0, 1) if len(batch.images))
    return stage.picture(model, send_to_device(batch, accelerator.device))
