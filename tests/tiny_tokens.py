"""A recipe with a token cache, and how tests write and read it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import var_recipe

from tokenizer.vqvae import VQVAE
from var.data.dataset import Batch, ImageDataset, open_dataset
from var.data.listing import Split
from var.data.token_dataset import TokenDataset
from var.data.tokenize import TokenSummary, write_tokens
from var.training.stages.var import VARRecipe

VIEWS, SHARD, TRAIN, VALIDATION = 3, 6, 20, 6
AUGMENTED: dict[str, Any] = {"flip": True, "resize": 1.5, "crop": "random"}


def written_recipe(folder: Path, **changes: Any) -> VARRecipe:
    base = {"token_cache": str(folder / "tokens"), "token_views": VIEWS, "data": AUGMENTED}
    return var_recipe(folder / "recipe", folder / "images", folder / "tokenizer", **(base | changes))


def changed(recipe: VARRecipe, **changes: Any) -> VARRecipe:
    return recipe.model_copy(update=changes)


def write(recipe: VARRecipe, vqvae: VQVAE, **options: Any) -> TokenSummary:
    return write_tokens(recipe, vqvae, **({"shard_samples": SHARD} | options))


def written(recipe: VARRecipe, vqvae: VQVAE, split: Split = "train") -> TokenDataset:
    write(recipe, vqvae)
    return TokenDataset(recipe, vqvae, split)


def images_of(recipe: VARRecipe, split: Split = "train") -> ImageDataset:
    return open_dataset(recipe.data, split, 8, recipe.seed)


def contents(recipe: VARRecipe) -> dict[str, bytes]:
    assert recipe.token_cache is not None
    return {path.name: path.read_bytes() for path in recipe.token_cache.iterdir()}


def identities(recipe: VARRecipe) -> dict[str, tuple[int, int]]:
    """Of each file, what writing it anew changes."""
    assert recipe.token_cache is not None
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in recipe.token_cache.iterdir()}


def file(recipe: VARRecipe, name: str) -> Path:
    assert recipe.token_cache is not None
    return recipe.token_cache / name


def break_image(recipe: VARRecipe, name: str) -> Path:
    path = Path(recipe.data.source) / name
    path.write_bytes(path.read_bytes()[:40])
    return path


def equal(tokens: Batch, images: Batch, vqvae: VQVAE) -> None:
    """A batch of the cache is that of the images, encoded."""
    assert torch.equal(tokens.content, vqvae.encode(images.content))
    assert torch.equal(tokens.labels, images.labels)
    assert tokens.unreadable == images.unreadable


def waits(times: int) -> Callable[[], None]:
    """Waits so many times, and raises when it should wait again."""
    turns = iter([None] * times)
    return lambda: next(turns)
