"""Lines at the start and the end of a run: what will be trained on what, and what can be done with the result."""

from pathlib import Path

from tokenizer.errors import InputError
from var.training.config import Recipe
from var.training.stages.base import find_stage
from var.training.trainer import Trainer
from var.utils.text import plural


def describe_run(trainer: Trainer) -> list[str]:
    """Return what is read, trained, computed on and written, a line each."""
    recipe, stage, accelerator = trainer.recipe, trainer.stage, trainer.accelerator
    images = len(stage.train_data)
    epochs = stage.steps * recipe.batch_size / images
    sizes = {phase.name: sum(p.numel() for p in phase.model.parameters()) for phase in stage.phases}
    processes = "" if accelerator.num_processes == 1 else f", {plural(accelerator.num_processes, 'process', 'es')}"
    return [
        f"data: {images:,} training images{_classes(trainer)}, {len(stage.validation_data):,} for validation",
        f"parameters: {', '.join(f'{size:,} of the {name}' for name, size in sizes.items())}",
        f"device: {accelerator.device}, {recipe.precision}{processes}",
        f"run: steps {trainer.step + 1:,} to {stage.steps:,} of {plural(recipe.batch_size, 'image')}, "
        f"{epochs:.3g} epochs in all, to {recipe.output}",
    ]


def describe_finished(trainer: Trainer) -> str:
    """Return what to do with a run all of whose steps are done."""
    length = "epochs" if trainer.recipe.epochs is not None else "steps"
    return (
        f"finished before: all {trainer.stage.steps:,} steps are done in {trainer.recipe.output}; "
        f"to train again give another output, to see its curves: var plot {trainer.recipe.output}, "
        f"or to train longer begin from it: output=NEW init={trainer.recipe.output / 'model'} {length}=MORE"
    )


def next_command(recipe: Recipe, exported: Path) -> str:
    """Return a command that uses the model that a run has exported."""
    return find_stage(recipe.stage).next_command.format(model=exported)


def _classes(trainer: Trainer) -> str:
    try:
        number = len(trainer.stage.train_data.class_names) or trainer.stage.train_data.num_classes
    except InputError:  # shards whose index does not say it
        return ""
    return f" of {plural(number, 'class', 'es')}"
