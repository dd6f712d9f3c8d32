"""Whether a run can go on from its checkpoints: with this recipe, these images and these frozen networks."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter

from tokenizer.errors import InputError, one_line
from var.data.dataset import SampleDataset
from var.training.checkpointing import load_newest
from var.training.config import Recipe
from var.training.origin import describe_origin, describe_repairs, find_change
from var.training.renamed_keys import rename_keys

log = logging.getLogger(__name__)

REMEDY = "give another output, or move them away"


def check_before_work(recipe: Recipe, train_data: SampleDataset, validation_data: SampleDataset) -> None:
    """Raise InputError if the run in the recipe's output, should there be one, cannot go on with recipe and images."""
    if state := load_newest(recipe.output / "checkpoints"):
        with refusing_others(recipe):
            check_resumable(recipe, state, describe_origin(recipe.data, train_data, validation_data, {}))


@contextmanager
def refusing_others(recipe: Recipe) -> Iterator[None]:
    """Inside, what a checkpoint that is none of such a run raises is an InputError."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"belong to something else ({one_line(error, 160)})"
        raise InputError(f"the checkpoints in {recipe.output} {reason}: {REMEDY}") from error


def check_resumable(recipe: Recipe, state: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Raise InputError if a checkpoint belongs to other settings, images or networks; log images that have changed."""
    ours, theirs = fixed_settings(recipe), upgrade_settings(state["recipe"], recipe)
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise InputError(
                f"the checkpoints in {recipe.output} belong to another recipe, with {name}="
                f"{theirs.get(name)}, not {value}: {REMEDY}"
            )
    if "origin" not in state:
        log.warning(
            "the checkpoints are of a version that did not record classes, images and frozen networks: it is "
            "not checked that these are still the same"
        )
    elif change := find_change(state["origin"], origin):
        raise InputError(
            f"the checkpoints in {recipe.output} do not go with this data or these networks: {change}: "
            "restore what the run began with, or give another output"
        )
    elif changed := describe_repairs(state["origin"], origin):
        log.warning("%s: taken for repaired, as fewer than half have changed", changed)


def upgrade_settings(theirs: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a checkpoint's `fixed_settings` under current names, with defaults for keys and sizes added since."""
    theirs = rename_keys(theirs, type(recipe), f"the checkpoints in {recipe.output}")
    fields = type(recipe).model_fields
    added = {name for name in recipe.fixed & fields.keys() - theirs.keys() if not fields[name].is_required()}
    theirs |= {name: json.loads(json.dumps(fields[name].default)) for name in added}  # as JSON, tuples are lists
    if theirs.get("stage") != recipe.stage or "model" not in theirs:
        return theirs
    annotation: Any = type(recipe).model_fields["model"].annotation
    sizes: TypeAdapter[Any] = TypeAdapter(annotation)
    return theirs | {"model": sizes.dump_python(sizes.validate_python(theirs["model"]), mode="json")}


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that a resumed run must not change: the model, and those that assign images to steps."""
    return recipe.model_dump(mode="json", include=set(recipe.fixed)) | {"ema": recipe.ema is not None}
