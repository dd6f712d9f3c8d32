"""Runs of the VAR stage for scaling laws: size, compute, validations, and a check that they are comparable."""

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
from var.training.curves import METRICS, RECIPE
from var.training.recipe import load_recipe
from var.training.stages.var import VARRecipe
from var.utils.json_text import parse_json
from var.utils.provenance import file_sha256, sha256

SIZES = ("depth", "width", "heads")

# Keys in which runs of one series may differ: size and what depends on it, length, seed, and keys that do not change
# the result. The tokenizer is compared by its content.
FREE = {
    *("output", "tokenizer", "model", "optimizer.lr", "steps", "epochs", "seed", "token_cache"),
    *("data.workers", "data.max_unreadable", "data.cache", "data.cache_gigabytes"),
    *("accumulate", "gradient_checkpointing", "compile", "max_skipped", "keep_last", "wandb_project"),
    *("log_every", "validate_every", "sample_every", "checkpoint_every"),
}


class Run(NamedTuple):
    """Content of a run's folder."""

    folder: Path
    recipe: VARRecipe
    config: VARConfig
    curve: Curve
    tokenizer: str  # digest of the tokenizer's files
    metrics: str  # digest of the metrics file


# --- sizes and compute


def block_parameters(config: VARConfig) -> int:
    """Return the number of parameters of attention, MLP and AdaLN with biases, without embeddings and head. The paper's
    N = 18 depth D^2 is the same without biases, for mlp_ratio = 4 and one AdaLN per block.
    """
    model = _build_on_meta(config)
    parts = [model.blocks, model.shared_adaln]
    return sum(p.numel() for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters())


def all_parameters(config: VARConfig) -> int:
    """Return the number of parameters of the transformer with embeddings and head."""
    return sum(parameter.numel() for parameter in _build_on_meta(config).parameters())


def _build_on_meta(config: VARConfig) -> VAR:
    with torch.device("meta"):
        return VAR(config)


def forward_flops(config: VARConfig) -> int:
    """Return the FLOPs of the matrix products of one image's forward pass, two per multiply-add.

    Attention counts only unmasked pairs of tokens, whatever kernels compute; AdaLN counts once per image. Norms,
    softmax and the like are left out.
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
    return 2 * (_count_first_layer(config) + config.depth * block + adalns + head)


def training_flops(config: VARConfig) -> int:
    """Return the FLOPs of forward and backward pass: three times the forward pass, less the gradient of the first
    layer's input, which is not computed. The frozen tokenizer and recomputation to save memory are left out.
    """
    return 3 * forward_flops(config) - 2 * _count_first_layer(config)


def _count_first_layer(config: VARConfig) -> int:
    """Return the multiply-adds of the linear layer from f_hat to the width."""
    return (sum(side**2 for side in config.scales) - 1) * config.latent_dim * config.width


# --- reading


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, sorted by ascending size.

    Raises InputError: fewer than three; missing or unreadable files; a run without validation, or with one that is not
    finite and positive; two of one size; runs that differ in more than size and length, with the key.
    """
    if len(folders) < FEWEST:
        raise InputError(f"give at least {FEWEST} runs of different sizes to fit a scaling law, not {len(folders)}")
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: run.curve.parameters)
    for one, other in combinations(runs, 2):
        check_comparable(one, other)
    return runs


def read_run(folder: Path) -> Run:
    """Read the output folder of a run. Raises InputError as `read_runs`."""
    if not folder.is_dir():
        raise InputError(f"run {folder} does not exist: give the output folder of a run of stage var")
    if not (folder / RECIPE).is_file():
        raise InputError(f"run {folder} has no {RECIPE}: run its command again, which writes it")
    recipe = load_recipe(folder / RECIPE)
    if not isinstance(recipe, VARRecipe) or recipe.stage != "var":
        raise InputError(f"run {folder} is of stage={recipe.stage}: give runs of stage var, whose laws these are")
    try:
        config = VARConfig(**read_config(folder / "model" / "transformer")["config"])
    except TypeError as error:
        raise InputError(f"run {folder} holds no transformer of VAR ({one_line(error)}): leave this run out") from error
    validations = _read_validations(folder / METRICS, config.scales[-1])
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


def _read_validations(path: Path, side: int) -> list[tuple[int, dict[Quantity, float]]]:
    """Read step and values of each validation of a run whose last scale has this side."""
    try:
        lines = [parse_json(line) for line in path.read_text().splitlines()]
        found = [(int(line["step"]), line) for line in lines if line["split"] == "validation"]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}: give the output folder of a run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has a damaged line: let the run finish, or repair it") from error
    if not found:
        raise InputError(f"{path} has no validation: continue the run to the next one, or lower its validate_every")
    steps = [step for step, _ in found]
    if any(later <= earlier for earlier, later in pairwise(steps)) or steps[0] < 1:
        raise InputError(f"{path} has validations out of order: give the output folder of a single run")
    return [(step, _read_quantities(path, step, line, side)) for step, line in found]


def _read_quantities(path: Path, step: int, line: Mapping[str, Any], side: int) -> dict[Quantity, float]:
    last = f"{side}x{side}"
    for name in ("loss", f"loss/{last}", "accuracy", f"accuracy/{last}"):
        value = line.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):  # written as null
            problem = "is missing" if name not in line else "is not a finite number"
            raise InputError(f"{path}: {name} of the validation at step {step} {problem}: leave this run out")
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
    """Raise InputError if two runs have the same size or name, or differ in keys outside of FREE."""
    ours, theirs = _flatten_settings(one), _flatten_settings(other)
    # Tokenizer and data first: other differences may follow from them.
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


def _flatten_settings(run: Run) -> dict[str, Any]:
    """Return all settings that must be equal, by dotted key."""
    recipe = _flatten(run.recipe.model_dump(mode="json"))
    fixed = {key: value for key, value in recipe.items() if not {key, key.partition(".")[0]} & FREE}
    model = {f"model.{key}": value for key, value in run.config.to_dict().items() if key not in SIZES}
    tokens = "images" if run.recipe.token_cache is None else "a cache"  # a cache fixes the augmentation
    return fixed | model | {"tokenizer": run.tokenizer[:12], "token_cache": tokens}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
