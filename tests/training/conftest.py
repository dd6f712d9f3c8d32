"""A tiny image folder and a tokenizer trained on it, once for all tests of training."""

from pathlib import Path

import pytest
from tiny import image_folder, tokenizer_recipe

from var.training.loop import train
from var.training.stages.tokenizer import TokenizerRecipe


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def tokenizer_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerRecipe:
    """A finished run of the first stage that learns eight images by heart."""
    recipe = tokenizer_recipe(
        tmp_path_factory.mktemp("runs") / "tokenizer",
        images,
        steps=60,
        batch_size=8,
        data={"crop": "center"},
        ema=0.5,
        restart_dead_codes=10,
        validate_every=40,
        sample_every=40,
        checkpoint_every=20,
    )
    assert train(recipe) == recipe.output / "model"
    return recipe
