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

from tokenizer.errors import InputError, one_line
from tokenizer.scales import Scales
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.load import is_of_tokenizer
from var.hub.sources import Weights, find_weights, read_weights_for
from var.models.aim import Encoder, EncoderConfig
from var.models.conditional import ConditionalTransformer, TransformerConfig
from var.models.pretraining import Pretrainer
from var.utils.text import plural
from var.utils.weights import check_kinds

log = logging.getLogger(__name__)

SHOWN = 8  # names in a line of the log
POSITION, LEVELS, CLASSES = "position", "level_embedding.weight", "class_embedding.weight"
POSITIONS = (POSITION, "token_position")  # of all tokens; the second is a Raster's


@dataclass
class Started:
    """The origin of a new model's tensors, by their names."""

    loaded: list[str] = field(default_factory=list)  # of the same name and shape
    interpolated: list[str] = field(default_factory=list)  # from other scales
    new: list[str] = field(default_factory=list)  # keep the values that they had
    classes: list[str] = field(default_factory=list)  # rows kept in a table of other classes
    rows: int = 0  # in that table
    new_rows: int = 0  # those of them that are random
    dropped: list[str] = field(default_factory=list)  # the given weights' own that nothing takes
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # those that differ: the given model's, ours
    names: Mapping[int, str] = field(default_factory=dict)  # of the given model's labels, as far as they are known
    quantizer: object = None  # entry of the given model, for `is_of_tokenizer`


def startable_part(model: nn.Module) -> tuple[str, VQVAE | ConditionalTransformer | Encoder]:
    """Return the part of a model that can start from weights, and what its tensors' names begin with in the model.

    Raises InputError: there is none.
    """
    if isinstance(model, Pretrainer):
        return "encoder.", model.encoder
    if isinstance(model, VQVAE | ConditionalTransformer | Encoder):
        return "", model
    raise InputError("init goes with the stages that train a tokenizer, a transformer or an encoder: leave it out here")


def check_start(given: str | Path, model: nn.Module) -> None:
    """Check, without reading or downloading weights, that a model can start from what a recipe gives as init.

    Raises InputError: see `find_weights`.
    """
    _, part = startable_part(model)
    find_weights(given, type(part).__name__, "init")


def start_from(
    given: str | Path, model: nn.Module, classes: Mapping[int, str] | None = None, vqvae: VQVAE | None = None
) -> Started:
    """Load weights as `load_weights` does, and log what is new and what is dropped.

    Args:
        vqvae: the tokenizer of a transformer's training: another one than the given model's is logged.

    Raises InputError: see `load_weights`.
    """
    started = load_weights(given, model, classes)
    log.info("init: %s from %s", plural(len(started.loaded), "tensor"), given)
    if started.interpolated:
        log.info("init: interpolated from other scales: %s", ", ".join(started.interpolated))
    if started.classes:
        level = logging.WARNING if started.new_rows else logging.INFO
        fate = f"; {started.new_rows} of {started.rows} rows random" if started.new_rows else ""
        log.log(level, "init: %s is of other classes: rows kept of %s%s", CLASSES, _enumerate(started.classes), fate)
    new = [name for name in started.new if name != CLASSES or not started.classes]
    for names, fate in ((new, "not in it, random"), (started.dropped, "of it not used")):
        if names:
            log.warning("init: %s %s: %s", plural(len(names), "tensor"), fate, _enumerate(names))
    if started.settings:
        settings = "; ".join(f"{name}={there}, here {here}" for name, (there, here) in started.settings.items())
        log.warning("init: it was trained with other settings: %s", settings)
    if vqvae is not None and not is_of_tokenizer(started.quantizer, vqvae):
        log.warning("init: %s was trained on the tokens of another tokenizer than the recipe's", given)
    return started


def load_weights(given: str | Path, model: nn.Module, classes: Mapping[int, str] | None = None) -> Started:
    """Give a VQVAE, transformer or encoder the weights of a trained one, in place.

    Tensors of the same name and shape are loaded. Positions and levels of other scales are interpolated. Of a table of
    other classes, by their names or number, the row of the null class is kept, and those of classes of the same name.
    All else keeps its values.

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
    model: VQVAE | ConditionalTransformer | Encoder, weights: Weights, classes: Mapping[int, str]
) -> tuple[dict[str, Tensor], Started]:
    """Return the tensors that a model takes from weights, as `load_weights` says, and the origin of all of its own.

    Raises InputError: sizes that cannot work; no matrix fits.
    """
    config = _read_sizes(model, weights)
    ours, theirs = model.state_dict(), weights.state
    started = Started(loaded=[name for name in ours if name in theirs and theirs[name].shape == ours[name].shape])
    started.names, started.quantizer = weights.classes, weights.quantizer
    state = {name: theirs[name] for name in started.loaded}
    if isinstance(model, ConditionalTransformer) and isinstance(config, TransformerConfig):
        _fit_scales(model, Scales(config.scales), weights.state, state, started)
        _fit_classes(ours, weights, classes, state, started)
    if not any(state[name].ndim > 1 for name in started.loaded):
        raise InputError(f"init={weights.given!r} has no matrix that fits this model: give one of similar sizes")
    started.new = [name for name in ours if name not in state or (name == CLASSES and started.new_rows)]
    started.dropped = sorted(theirs.keys() - state.keys())
    started.settings = _other_settings(model, config)
    return state, started


def _read_sizes(
    model: VQVAE | ConditionalTransformer | Encoder, weights: Weights
) -> TokenizerConfig | TransformerConfig | EncoderConfig:
    """Return the sizes of trained weights, with the defaults of what an earlier version did not write."""
    given = {size.name: weights.config[size.name] for size in fields(model.config) if size.name in weights.config}
    try:
        return type(model.config)(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"init={weights.given!r} has sizes that cannot be used: {one_line(error)}") from error


def _fit_scales(
    model: ConditionalTransformer,
    theirs: Scales,
    given: Mapping[str, Tensor],
    state: dict[str, Tensor],
    started: Started,
) -> None:
    """Interpolate positions and levels, where the scales differ and the width does not."""
    ours, names = model.scales, [name for name, _ in model.named_parameters() if name in POSITIONS]
    if theirs == ours or given[POSITION].shape[-1] != model.config.width:
        return
    for name in names:
        state[name] = interpolate_positions(given[name], theirs, ours)
        started.interpolated.append(name)
    if len(theirs) != len(ours):
        state[LEVELS] = interpolate_levels(given[LEVELS], len(ours))
        started.interpolated.append(LEVELS)
    started.loaded = [name for name in started.loaded if name not in started.interpolated]


def interpolate_positions(position: Tensor, theirs: Scales, ours: Scales) -> Tensor:
    """Positions (1, L, D) of their scales -> those of our scales, each interpolated in 2-D from one of theirs.

    It is the one of the nearest relative side, which is log(s) / log(last side) for a side s. So the scale of one token
    comes from that of one token, the last scale from the last one, and a scale of the same side stays as it is where
    its relative side is the same.
    """
    maps = theirs.split(position.float())
    relative = [_relative_side(side, theirs) for side in theirs.sides]
    resized = []
    for side in ours.sides:
        here = _relative_side(side, ours)
        k = min(range(len(theirs)), key=lambda k: abs(relative[k] - here))
        grid = rearrange(maps[k], "1 (h w) d -> 1 d h w", h=theirs.sides[k])
        if theirs.sides[k] != side:
            grid = F.interpolate(grid, size=(side, side), mode="bilinear", antialias=True)
        resized.append(rearrange(grid, "1 d h w -> 1 (h w) d"))
    return ours.join(resized)


def _relative_side(side: int, scales: Scales) -> float:
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
    same = CLASSES in state and find_other_class(weights.classes, classes) is None
    if same or theirs.shape[1] != table.shape[1]:
        return
    started.loaded = [name for name in started.loaded if name != CLASSES]
    table[-1] = theirs[-1].to(table)
    rows, labels = _unique(weights.classes, len(theirs) - 1), _unique(classes, len(table) - 1)
    kept = sorted(labels.keys() & rows.keys())
    for name in kept:
        table[labels[name]] = theirs[rows[name]].to(table)
    started.classes = ["the null class", *kept]
    started.rows, started.new_rows = len(table), len(table) - len(started.classes)
    state[CLASSES] = table


def find_other_class(theirs: Mapping[int, str], ours: Mapping[int, str]) -> int | None:
    """Return the first label under which a model and the data have classes of different names; None: as far as known.

    Names that are all their own labels count as unknown: so a model is exported whose data had no names.
    """
    if any(all(name == str(label) for label, name in names.items()) for names in (theirs, ours)):
        return None
    return next((label for label in sorted(theirs.keys() & ours.keys()) if theirs[label] != ours[label]), None)


def _unique(classes: Mapping[int, str], number: int) -> dict[str, int]:
    """Return name -> label of the names that one label below `number` alone has."""
    count = Counter(classes.values())
    return {name: label for label, name in classes.items() if count[name] == 1 and label < number}


def _other_settings(model: VQVAE | ConditionalTransformer | Encoder, config: object) -> dict[str, tuple[Any, Any]]:
    names = [size.name for size in fields(model.config)]
    pairs = {name: (_as_list(getattr(config, name)), _as_list(getattr(model.config, name))) for name in names}
    return {name: (there, here) for name, (there, here) in pairs.items() if there != here}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
