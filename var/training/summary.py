"""Lines at the start and the end of a run: what will be trained on what, and what can be done with the result."""

import logging

from tokenizer.errors import InputError
from var.training.config import Recipe
from var.training.distributed import PRECISIONS
from var.training.trainer import Trainer
from var.utils.text import plural

log = logging.getLogger(__name__)

FEW_IMAGES, MANY_EPOCHS = 100, 100  # so few, seen so often, are learned by heart


def warn_of_few_images(recipe: Recipe, images: int, steps: int) -> None:
    """Log a warning of a run that sees so few images so often that it learns them by heart."""
    times = steps * recipe.batch_size // images
    if images < FEW_IMAGES and times > MANY_EPOCHS:
        log.warning(
            "only %s, each seen %s times: the model will learn them by heart; give hundreds, or take fewer steps",
            plural(images, "training image"),
            f"{times:,}",
        )


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
        f"device: {accelerator.device}, {PRECISIONS[accelerator.mixed_precision]}{processes}",
        f"run: steps {trainer.step + 1:,} to {stage.steps:,} of {plural(recipe.batch_size, 'image')}, "
        f"{epochs:.3g} epochs in all, to {recipe.output}",
    ]


def describe_finished(trainer: Trainer) -> str:
    """Return why a run has no step to take, and what can be done with it."""
    recipe, steps = trainer.recipe, trainer.stage.steps
    length = "steps" if recipe.epochs is None else "epochs"
    if trainer.step == 0:
        return f"steps=0: nothing is trained, the model is exported as it starts, to {recipe.output}"
    if trainer.step > steps:
        given = f"steps={steps}" if recipe.epochs is None else f"epochs={recipe.epochs:g} ({plural(steps, 'step')})"
        found = f"{recipe.output} is at step {trainer.step:,} already, beyond {given}"
    else:
        found = f"finished before: all {steps:,} steps are done in {recipe.output}"
    return f"{found}; to train longer: the same command with {length}=MORE"


def _classes(trainer: Trainer) -> str:
    try:
        number = len(trainer.stage.train_data.class_names) or trainer.stage.train_data.num_classes
    except InputError:  # shards whose index does not say it
        return ""
    return f" of {plural(number, 'class', 'es')}"
