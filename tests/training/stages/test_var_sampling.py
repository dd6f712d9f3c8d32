"""The recipe's key `sampling`: what the exported model draws with."""

from pathlib import Path

import pytest
from helpers import refused, small_vqvae
from tiny import image_folder, var_recipe

from var.hub.checkpoint import save_model
from var.pipeline import VARPipeline
from var.training.loop import train
from var.training.trainer import build_stage


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    save_model(tmp_path / "tokenizer", small_vqvae())
    return tmp_path / "tokenizer"


def test_a_window_and_temperatures_are_exported(tokenizer: Path, tmp_path: Path) -> None:
    sampling = {"cfg": 2.0, "cfg_scales": [0, 1], "temperature": [1, 1, 0.9]}
    recipe = var_recipe(tmp_path / "run", image_folder(tmp_path / "images"), tokenizer, steps=1, sampling=sampling)
    train(recipe)
    pipe = VARPipeline.from_pretrained(tmp_path / "run")
    assert pipe.sampling == recipe.sampling
    assert pipe.sampling is not None
    assert pipe.sampling.cfg_scales == (0, 1)
    assert pipe.sampling.temperature == (1, 1, 0.9)


@pytest.mark.parametrize(
    ("sampling", "parts"),
    [
        ({"cfg_scales": [2, 1]}, ("cfg_scales=[2, 1] must be the first and the last scale",)),
        ({"cfg_scales": [1, 3]}, ("cfg_scales=[1, 3] must be in 0..2",)),
        ({"temperature": 0}, ("temperature=0", "must be in 0.01..100")),
        ({"temperature": [1, 1]}, ("must be one number, or 3",)),
    ],
)
def test_sampling_that_cannot_work(
    tokenizer: Path, tmp_path: Path, sampling: dict[str, object], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        build_stage(var_recipe(tmp_path / "run", image_folder(tmp_path / "images"), tokenizer, sampling=sampling))
