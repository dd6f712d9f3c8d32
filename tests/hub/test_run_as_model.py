"""The folder of a run stands for the model that it has exported, wherever a model is taken."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import small_vqvae
from tiny import tiny_pipeline
from tiny_aim import small_aim

from var import VQVAE, VARPipeline
from var.evaluation.image_probe import choose_by
from var.features.sources import load_features
from var.hub.checkpoint import save_model
from var.hub.refiner import open_refiner
from var.hub.sources import find_weights
from var.training.tokenizers import open_tokenizer

Load = Callable[[Path], object]
OF_PIPELINE: dict[str, Load] = {
    "pipeline": VARPipeline.from_pretrained,
    "its tokenizer": VQVAE.from_pretrained,
    "init": lambda folder: find_weights(folder, "VAR", "init"),
    "tokenizer of a recipe": open_tokenizer,
    "features": lambda folder: load_features(str(folder)),
    "classifier": lambda folder: choose_by(str(folder), None),
    "refiner": lambda folder: open_refiner(folder, 1, VARPipeline.from_pretrained(folder, dtype="float32").parts),
}
OF_TOKENIZER: dict[str, Load] = {"tokenizer": VQVAE.from_pretrained, "tokenizer of a recipe": open_tokenizer}
OF_ENCODER: dict[str, Load] = {
    "features": lambda folder: load_features(str(folder)),
    "init": lambda folder: find_weights(folder, "Encoder", "init"),
}


@pytest.mark.parametrize("spelling", ["run", "run/model"])
def test_a_run_and_the_model_in_it_are_both_taken(tmp_path: Path, spelling: str) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "var/run/model")
    save_model(tmp_path / "tokenizer/run/model", small_vqvae())
    save_model(tmp_path / "encoder/run/model", small_aim().encoder)
    for kind, loads in (("var", OF_PIPELINE), ("tokenizer", OF_TOKENIZER), ("encoder", OF_ENCODER)):
        (tmp_path / kind / "run/checkpoints").mkdir()
        for load in loads.values():
            assert load(tmp_path / kind / spelling) is not None
