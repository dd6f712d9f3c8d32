"""The one training loop: any stage, any number of processes, resumed by the same command."""

import logging
import signal
from itertools import islice, product
from pathlib import Path

from accelerate import Accelerator

from var.data.loader import StepSampler, loader, open_batches
from var.hub.checkpoint import check_exportable
from var.training.config import Recipe
from var.training.distributed import build_accelerator, destroy_process_group, with_launcher_settings
from var.training.health import disk_full_as_input_error
from var.training.logger import Report, check_wandb
from var.training.parts import log_trained
from var.training.stages.base import find_stage
from var.training.summary import describe_finished, describe_run, warn_of_few_images
from var.training.trainer import Trainer
from var.utils.paths import check_writable
from var.utils.ranks import Ranks
from var.utils.signals import catch_interrupts

log = logging.getLogger(__name__)


def train(recipe: Recipe) -> Path:
    """Train by a recipe, going on from the newest checkpoint in its output folder if there is one.

    Returns the folder of the exported model, `output/model`; that of the best validation is `output/best`.

    Raises InputError: data, tokenizer or checkpoints that cannot be used; too many unreadable images; too many steps in
    a row without a finite loss and gradient; a full disk. Raises SystemExit: a stop signal, with 128 + its number, when
    the step under way is done, saved and exported; at once for a second one, see `catch_interrupts`.
    """
    recipe = with_launcher_settings(recipe)
    accelerator = build_accelerator(recipe)
    with Ranks.of(accelerator).locked(recipe.output):
        exported, signal_number = _train(recipe, accelerator)
    accelerator.free_memory()  # a wrapped model would keep the process group alive
    destroy_process_group()
    if signal_number is not None:
        raise SystemExit(128 + signal_number)
    return exported


def _train(recipe: Recipe, accelerator: Accelerator) -> tuple[Path, int | None]:
    """Return the exported model, and the signal that the run has received, after which no other is to begin."""
    check_wandb(recipe)
    kind = find_stage(recipe.stage)
    for folder in ("", "checkpoints", "pictures", "tensorboard"):  # before hours of training
        check_writable(recipe.output / folder)
    for exported, part in product(("model", "best"), kind.parts):
        check_exportable(recipe.output / exported / part)
    kind.prepare(recipe, accelerator.device, Ranks.of(accelerator))
    trainer = Trainer(recipe, accelerator)
    trainer.resume()
    if recipe.freezes:
        log_trained(trainer.stage.phases[0].model)
    stage, start, steps = trainer.stage, trainer.step, trainer.stage.steps
    if accelerator.is_main_process:
        if start < steps:
            warn_of_few_images(recipe, len(stage.train_data), steps)
        for line in describe_run(trainer) if start < steps else [describe_finished(trainer)]:
            log.info(line)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    sampler = StepSampler(stage.train_data, recipe.batch_size, rank, world_size, start, steps, recipe.micro_batches)

    with (
        disk_full_as_input_error(recipe),
        Report(recipe, steps, start, accelerator.is_main_process, stage.best, trainer.due) as report,
        catch_interrupts() as interrupts,
        open_batches(loader(stage.train_data, sampler, stage.workers)) as batches,
        trainer.saved_if_it_fails(),
    ):
        if trainer.due:  # an error ended the run after that step
            interrupts.work = f"what follows step {start}: validation, saving"
            follow_step(trainer, report)
            trainer.save()
        while trainer.step < steps:
            interrupts.work = f"the data of step {trainer.step + 1}"
            micro_batches = list(islice(batches, recipe.micro_batches))
            trainer.health.check_readable(micro_batches)
            interrupts.work = f"step {trainer.step + 1}"
            trainer.take_step(micro_batches)
            step, stop = trainer.step, trainer.health.any_process(bool(interrupts))
            interrupts.work = f"what follows step {step}: validation, saving"
            if stop:
                trainer.due.add("train")
            if "train" not in trainer.due:
                report.advance(step)
            is_best = follow_step(trainer, report)
            if is_best or step % recipe.checkpoint_every == 0 or step == steps or stop:
                trainer.save()  # last: a run that is killed before does the step and what follows it again
            if stop:
                break
        if trainer.step < steps:
            log.warning("stopped after step %d of %d: the same command goes on from there", trainer.step, steps)
        model = trainer.export("model")
    # Another process may be the one that has received it.
    return model, interrupts.number or (signal.SIGTERM if trainer.step < steps else None)


def follow_step(trainer: Trainer, report: Report) -> bool:
    """Log, validate and sample, where due after the trainer's step; return whether its validation is the best so far.

    Every process must call this. What is done is due no more; an error leaves the rest due.
    """
    step, is_best = trainer.step, False
    if "train" in trainer.due:
        means, counts = trainer.mean_logs(trainer.logs), trainer.health.counts()
        with trainer.failing_together():
            report.step(step, means, counts)
        trainer.due.remove("train")
    if "validation" in trainer.due:
        validation = trainer.validate()
        with trainer.failing_together():
            report.validation(step, validation)
        with trainer.failing_together():
            is_best = trainer.export_if_best(validation)
        trainer.due.remove("validation")
    if "sheet" in trainer.due:
        with trainer.failing_together():
            if (sheet := trainer.preview()) is not None:
                report.sheet(step, sheet)
        trainer.due.remove("sheet")
    return is_best
