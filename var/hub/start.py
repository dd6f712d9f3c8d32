"""Start from weights: those of a named model, a folder or a released file, fitted to a new model of other sizes.

D width, K scales, L tokens of all scales.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from tokenizer.vqvae import VQVAE
from var.hub.sources import Weights, find_weights, read_weights_for
from var.models.aim import Encoder
from var.models.aim_pretraining import AIMPretrainer
from var.models.var import VAR
from var.utils.text import plural
from var.utils.weights import check_kinds

log = logging.getLogger(__name__)

SHOWN = 8  # names in a line of the log
POSITION, LEVELS, CLASSES = "position", "level_embedding.weight", "class_embedding.weight"


@dataclass
class Started:
    """The origin of a new model's tensors, by their names."""

    loaded: list[str] = field(default_factory=list)  # of the same name and shape
    interpolated: list[str] = field(default_factory=list)  # from other scales
    new: list[str] = field(default_factory=list)  # keep the values that they had
    classes: list[str] = field(default_factory=list)  # rows kept in a new table of classes
    dropped: list[str] = field(default_factory=list)  # the given weights' own that nothing takes
    settings: list[str] = field(default_factory=list)  # those of the given model that differ, in words


def startable_part(model: nn.Module) -> tuple[str, VQVAE | VAR | Encoder]:
    """Return the part of a model that can start from weights, and what its tensors' names begin with in the model.

    Raises InputError: there is none.
    """
    if isinstance(model, AIMPretrainer):
        return "encoder.", model.encoder
    if isinstance(model, VQVAE | VAR | Encoder):
        return "", model
    raise InputError("init goes with the stages that train a tokenizer, a transformer or an encoder: leave it out here")


def check_start(given: str | Path, model: nn.Module) -> None:
    """Check, without reading or downloading weights, that a model can start from what a recipe gives as init.

    Raises InputError: see `find_weights`.
    """
    _, part = startable_part(model)
    find_weights(given, type(part).__name__, "init")


def start_from(given: str | Path, model: nn.Module, classes: Mapping[int, str] | None = None) -> Started:
    """Load weights as `load_weights` does, and log what is new and what is dropped. Raises InputError: see there."""
    started = load_weights(given, model, classes)
    log.info("init: %s from %s", plural(len(started.loaded), "tensor"), given)
    if started.interpolated:
        log.info("init: interpolated from other scales: %s", ", ".join(started.interpolated))
    if started.classes:
        log.info("init: %s is a table of other classes, kept of it: %s", CLASSES, _enumerate(started.classes))
    for names, fate in ((started.new, "not in it, random"), (started.dropped, "of it not used")):
        if names:
            log.warning("init: %s %s: %s", plural(len(names), "tensor"), fate, _enumerate(names))
    if started.settings:
        log.warning("init: it was trained with other settings: %s", "; ".join(started.settings))
    return started


def load_weights(given: str | Path, model: nn.Module, classes: Mapping[int, str] | None = None) -> Started:
    """Give a VQVAE, VAR or encoder the weights of a trained one, in place.

    Tensors of the same name and shape are loaded. Positions and levels of other scales are interpolated; of a table of
    other classes the row of the null class is kept, and those of classes of the same name. All else keeps its values.

    Args:
        given: a model's name, its folder (of a pipeline, a training's output, the model alone), or a released file.
        classes: names of the new model's labels, as far as they are known.

    Raises InputError: nothing of that name, damaged files, another kind of model, or none of its matrices fits.
    """
    prefix, part = startable_part(model)
    weights = read_weights_for(part, given, "init")
    check_kinds(weights.state, part.state_dict(), f"init={weights.given!r}")
    state, started = fit(part, weights, classes or {})
    ours = part.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            ours[name].copy_(value)
    started.new = [prefix + name for name in started.new]
    started.new += [name for name in model.state_dict() if not name.startswith(prefix)]
    return started


def fit(
    model: VQVAE | VAR | Encoder, weights: Weights, classes: Mapping[int, str]
) -> tuple[dict[str, Tensor], Started]:
    """Return the tensors that a model takes from weights, and their origin; see `start_from`."""
    ours, theirs = model.state_dict(), weights.state
    started = Started(loaded=[name for name in ours if name in theirs and theirs[name].shape == ours[name].shape])
    state = {name: theirs[name] for name in started.loaded}
    if isinstance(model, VAR):
        _fit_scales(model, weights, state, started)
        _fit_classes(ours, weights, classes, state, started)
    if not any(state[name].ndim > 1 for name in started.loaded):
        raise InputError(f"init={weights.given!r} has no matrix that fits this model: give one of similar sizes")
    started.new = [name for name in ours if name not in state or (name == CLASSES and started.classes)]
    started.dropped = sorted(theirs.keys() - state.keys())
    started.settings = _other_settings(model, weights.config)
    return state, started


def _fit_scales(model: VAR, weights: Weights, state: dict[str, Tensor], started: Started) -> None:
    """Interpolate positions and levels, where the scales differ and the width does not."""
    theirs, ours = Scales(tuple(weights.config["scales"])), model.scales
    position, levels = weights.state[POSITION], weights.state[LEVELS]
    if theirs == ours or position.shape[-1] != model.config.width:
        return
    state[POSITION] = interpolate_positions(position, theirs, ours)
    started.interpolated.append(POSITION)
    if len(theirs) != len(ours):
        state[LEVELS] = interpolate_levels(levels, len(ours))
        started.interpolated.append(LEVELS)
    started.loaded = [name for name in started.loaded if name not in started.interpolated]


def interpolate_positions(position: Tensor, theirs: Scales, ours: Scales) -> Tensor:
    """Positions (1, L, D) of their scales -> those of our scales, each interpolated in 2-D from one of theirs.

    It is the one whose place in the pyramid is nearest: that of a side s is log(s) / log(last side), so the whole image
    comes from the whole image, the last scale from the last one, and a scale of the same side stays as it is where it
    has the same place.
    """
    maps = theirs.split(position.float())
    places = [_place(side, theirs) for side in theirs.sides]
    resized = []
    for side in ours.sides:
        place = _place(side, ours)
        k = min(range(len(theirs)), key=lambda k: abs(places[k] - place))
        grid = rearrange(maps[k], "1 (h w) d -> 1 d h w", h=theirs.sides[k])
        if theirs.sides[k] != side:
            grid = F.interpolate(grid, size=(side, side), mode="bilinear", antialias=True)
        resized.append(rearrange(grid, "1 d h w -> 1 (h w) d"))
    return ours.join(resized)


def _place(side: int, scales: Scales) -> float:
    return math.log(side) / math.log(scales.sides[-1]) if side > 1 else 0.0


def interpolate_levels(levels: Tensor, number: int) -> Tensor:
    """Embeddings of the levels, (K, D) -> (number, D), linearly along k; first and last level stay what they are."""
    rows = F.interpolate(levels.float().T[None], size=number, mode="linear", align_corners=True)  # (1, D, number)
    return rows[0].T


def _fit_classes(
    ours: Mapping[str, Tensor],
    weights: Weights,
    classes: Mapping[int, str],
    state: dict[str, Tensor],
    started: Started,
) -> None:
    """Keep the rows of the null class and of classes of the same name in a table of other classes."""
    theirs, table = weights.state[CLASSES], ours[CLASSES].clone()
    if CLASSES in state or theirs.shape[1] != table.shape[1]:
        return
    table[-1] = theirs[-1].to(table)
    started.classes = ["the null class"]
    rows, labels = _unique(weights.classes, len(theirs) - 1), _unique(classes, len(table) - 1)
    for name in labels.keys() & rows.keys():
        table[labels[name]] = theirs[rows[name]].to(table)
    started.classes += sorted(labels.keys() & rows.keys())
    state[CLASSES] = table


def _unique(classes: Mapping[int, str], number: int) -> dict[str, int]:
    """Return name -> label of the names that one label below `number` alone has."""
    count = Counter(classes.values())
    return {name: label for label, name in classes.items() if count[name] == 1 and label < number}


def _other_settings(model: VQVAE | VAR | Encoder, config: Mapping[str, Any]) -> list[str]:
    here = {size.name: _as_list(getattr(model.config, size.name)) for size in fields(model.config)}
    there = {name: _as_list(config.get(name, value)) for name, value in here.items()}
    return [f"{name}={there[name]}, here {value}" for name, value in here.items() if there[name] != value]


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
