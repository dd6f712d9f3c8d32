"""Folders of finished runs as scaling laws read them, written without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import VAR, merged, write_recipe

from var.models.var import VARConfig
from var.training.logger import write_recipe as write_checked
from var.training.recipe import load_recipe
from var.training.stages.var import VARRecipe

WriteRun = Callable[..., Path]
RECIPE = merged(VAR, {"data": {"source": "pictures"}, "tokenizer": "tok", "batch_size": 8, "token_cache": "cache"})


def config(**changes: Any) -> VARConfig:
    """Scales whose first span holds one token, so that attention in spans computes just what the mask lets through."""
    sizes = {"depth": 3, "width": 24, "heads": 2, "scales": (1, 4, 6), "vocab_size": 32, "latent_dim": 5}
    return VARConfig(**(sizes | {"num_classes": 4} | changes))


def write_run(
    parent: Path, depth: int, validated: tuple[int, ...] = (10, 20), name: str = "", tokenizer: str = "", **changes: Any
) -> Path:
    """A run's folder: the files that a scaling law reads."""
    folder = parent / (name or f"d{depth}")
    recipe = load_recipe(write_recipe(parent / "given.yaml", RECIPE, **changes))
    assert isinstance(recipe, VARRecipe)
    write_checked(recipe, folder / "recipe.yaml")
    sizes = config(depth=depth, width=8 * depth, heads=depth, scales=changes.get("scales", (1, 2, 4)))
    for part, content in (("transformer", "weights"), ("tokenizer", tokenizer)):
        (folder / "model" / part).mkdir(parents=True, exist_ok=True)
        (folder / "model" / part / "config.json").write_text(
            json.dumps({"config": sizes.to_dict()} if content == "weights" else {})
        )
        (folder / "model" / part / "model.safetensors").write_text(content)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(depth, validated)))
    return folder


def lines(depth: int, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in steps:
        found.append({"step": step, "split": "train", "loss": 100.0, "accuracy": 0.0})
        numbers = {"loss": 5 / depth, "accuracy": 0.1 * depth, "loss/4x4": 6 / depth, "accuracy/4x4": 0.05 * depth}
        found.append({"step": step, "split": "validation", "loss/1x1": 1.0, "accuracy/1x1": 0.5, **numbers})
    return found
