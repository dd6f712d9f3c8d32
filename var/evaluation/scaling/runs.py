"""Runs of the VAR stage as a scaling law sees them: size, compute, validations, and whether they can be compared."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokenizer.errors import InputError, one_line
from var.evaluation.scaling.laws import Curve, Quantity
from var.evaluation.scaling.power_law import FEWEST
from var.hub.checkpoint import CONFIG, WEIGHTS, read_config
from var.models.var import VAR, VARConfig
from var.training.logger import METRICS, RECIPE
from var.training.recipe import load_recipe
from var.training.stages.var import VARRecipe
from var.utils.provenance import file_sha256, sha256

SIZES = ("depth", "width", "heads")

# What runs of one series may differ in: their sizes and what goes with them, how long they are, the draw of the data,
# and what changes how a run is computed or shown but not what it computes. The tokenizer is compared by its content.
FREE = {
    *("output", "tokenizer", "model", "optimizer.lr", "steps", "epochs", "seed", "token_cache"),
    *("data.workers", "data.max_unreadable", "data.cache", "data.cache_gigabytes"),
    *("accumulate", "gradient_checkpointing", "compile", "max_skipped", "keep_last", "wandb_project"),
    *("log_every", "validate_every", "sample_every", "checkpoint_every"),
}


class Run(NamedTuple):
    """The content of a run's folder."""

    folder: Path
    recipe: VARRecipe
    config: VARConfig
    curve: Curve
    tokenizer: str  # digest of its files
    metrics: str  # digest of its numbers


# --- sizes and compute


def block_parameters(config: VARConfig) -> int:
    """Of attention, MLP and AdaLN, biases included; neither embeddings nor head. The paper's N = 18 depth D^2 is the
    same without biases, for mlp_ratio = 4 and an AdaLN a block.
    """
    model = _outline(config)
    parts = [model.blocks, model.shared_adaln]
    return sum(p.numel() for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters())


def all_parameters(config: VARConfig) -> int:
    """Of the transformer, embeddings and head included."""
    return sum(parameter.numel() for parameter in _outline(config).parameters())


def _outline(config: VARConfig) -> VAR:
    with torch.device("meta"):
        return VAR(config)


def forward_flops(config: VARConfig) -> int:
    """Operations of the products of one image's forward pass, two for a multiplication and its addition.

    Attention counts the pairs of tokens that see each other, whatever the kernels compute of what the mask hides; AdaLN
    counts once an image. Norms, softmax and the like are left out.
    """
    width, hidden = config.width, round(config.width * config.mlp_ratio)
    sides = config.scales
    lengths = [side**2 for side in sides]
    total = sum(lengths)
    pairs = sum(length * sum(lengths[: k + 1]) for k, length in enumerate(lengths))
    matrices = 4 * width * width + 2 * width * hidden  # q, k, v, projection, MLP
    block = total * matrices + 2 * pairs * width  # queries with keys, weights with values
    adaln = 6 * width * width
    adalns = adaln if config.shared_adaln else config.depth * adaln
    head = 2 * width * width + total * width * config.vocab_size
    return 2 * (_first_layer(config) + config.depth * block + adalns + head)


def training_flops(config: VARConfig) -> int:
    """The same forward and backward: three times the forward pass, less the gradient of the first layer's input, which
    nobody asks for. Without what the frozen tokenizer computes, and without what is computed again to save memory.
    """
    return 3 * forward_flops(config) - 2 * _first_layer(config)


def _first_layer(config: VARConfig) -> int:
    """Multiplications of the map from f_hat to the width."""
    return (sum(side**2 for side in config.scales) - 1) * config.latent_dim * config.width


# --- reading


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs by ascending size.

    Raises InputError: fewer than three; files that are missing or cannot be read; a run without validation, or with one
    that is not finite and positive; two of one size; runs that differ in more than size and length, with the key.
    """
    if len(folders) < FEWEST:
        raise InputError(f"{len(folders)} runs given: a scaling law needs at least {FEWEST} of different sizes")
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: run.curve.parameters)
    for one, other in combinations(runs, 2):
        check_comparable(one, other)
    return runs


def read_run(folder: Path) -> Run:
    """One run's output folder. Raises InputError as `read_runs`."""
    if not folder.is_dir():
        raise InputError(f"run {folder} does not exist: give the output folder of a run of stage var")
    if not (folder / RECIPE).is_file():
        raise InputError(f"run {folder} has no {RECIPE}: the run's command, given again, writes it")
    recipe = load_recipe(folder / RECIPE)
    if not isinstance(recipe, VARRecipe):
        raise InputError(f"run {folder} is of stage={recipe.stage}: scaling laws here are of stage var")
    try:
        config = VARConfig(**read_config(folder / "model" / "transformer")["config"])
    except TypeError as error:
        raise InputError(f"run {folder} holds no transformer of ours: {one_line(error)}") from error
    validations = _validations(folder / METRICS, config.scales[-1])
    images = [step * recipe.batch_size for step, _ in validations]
    curve = Curve(
        name=folder.absolute().name,
        parameters=block_parameters(config) / 1e9,
        all_parameters=all_parameters(config) / 1e9,
        images=images,
        compute=[number * training_flops(config) / 1e15 for number in images],
        values={quantity: [values[quantity] for _, values in validations] for quantity in validations[0][1]},
    )
    files = [folder / "model" / "tokenizer" / name for name in (CONFIG, WEIGHTS)]
    return Run(folder, recipe, config, curve, _digest(*files), _digest(folder / METRICS))


def _validations(path: Path, side: int) -> list[tuple[int, dict[Quantity, float]]]:
    """Step and values of each validation, from the metrics of a run whose last scale has this side."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found = [(int(line["step"]), line) for line in lines if line["split"] == "validation"]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}: give the output folder of a run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has a line that is not a run's: let the run finish, or repair it") from error
    if not found:
        raise InputError(f"{path} has no validation: let the run go on to one, or lower its validate_every")
    steps = [step for step, _ in found]
    if any(later <= earlier for earlier, later in pairwise(steps)) or steps[0] < 1:
        raise InputError(f"{path} has validations out of order: it is not of one run")
    return [(step, _quantities(path, step, line, side)) for step, line in found]


def _quantities(path: Path, step: int, line: Mapping[str, Any], side: int) -> dict[Quantity, float]:
    last = f"{side}x{side}"
    for name in ("loss", f"loss/{last}", "accuracy", f"accuracy/{last}"):
        value = line.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):  # what is not finite is written as null
            given = "is missing" if name not in line else "is not a finite number"
            raise InputError(f"{path}: {name} of the validation at step {step} {given}: leave this run out")
    quantities: dict[Quantity, float] = {
        "loss_last": float(line[f"loss/{last}"]),
        "loss_all": float(line["loss"]),
        "error_last": 1 - float(line[f"accuracy/{last}"]),
        "error_all": 1 - float(line["accuracy"]),
    }
    for quantity, value in quantities.items():
        if value <= 0:
            raise InputError(
                f"{path}: {quantity}={value:g} of the validation at step {step} has no logarithm: leave this run out"
            )
    return quantities


def _digest(*files: Path) -> str:
    try:
        return sha256([bytes.fromhex(file_sha256(path)) for path in files])
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {one_line(error)}: let the run finish") from error


# --- comparing


def check_comparable(one: Run, other: Run) -> None:
    """Raise InputError if two runs have one size or one name, or differ in what is not theirs to differ in."""
    ours, theirs = _settings(one), _settings(other)
    # What a run stands on first: the rest may follow from it.
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: not key.startswith(("tokenizer", "data."))):
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{one.folder} and {other.folder} cannot be compared: {key} is {ours.get(key)} and {theirs.get(key)}; "
                "give runs that differ in size only"
            )
    if one.curve.parameters == other.curve.parameters:
        raise InputError(f"{one.folder} and {other.folder} have the same size: give one run of each")
    if one.curve.name == other.curve.name:
        raise InputError(f"{one.folder} and {other.folder} have the same name: give folders of different names")


def _settings(run: Run) -> dict[str, Any]:
    """All that must be the same, by dotted key."""
    recipe = _dotted(run.recipe.model_dump(mode="json"))
    fixed = {key: value for key, value in recipe.items() if not {key, key.partition(".")[0]} & FREE}
    model = {f"model.{key}": value for key, value in run.config.to_dict().items() if key not in SIZES}
    tokens = "images" if run.recipe.token_cache is None else "a cache"  # whose views are drawn once
    return fixed | model | {"tokenizer": run.tokenizer[:12], "token_cache": tokens}


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
