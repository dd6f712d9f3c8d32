"""A tiny image folder, a tokenizer trained on it and a pipeline, once for all tests of training."""

from pathlib import Path

import pytest
from helpers import small_var, small_vqvae
from tiny import image_folder, tokenizer_recipe

from var.pipeline import VARPipeline
from var.training.loop import train
from var.training.stages.tokenizer import TokenizerRecipe


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline to start from, a small_var with its small_vqvae."""
    folder = tmp_path_factory.mktemp("trained") / "pipeline"
    VARPipeline(small_var(), small_vqvae()).save_pretrained(folder)
    return folder


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
