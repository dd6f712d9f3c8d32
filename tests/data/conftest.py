"""A Parquet data set, and the recipe whose token caches are tested."""

import json
from pathlib import Path

import datasets
import pytest
from helpers import small_vqvae
from tiny import image_folder
from tiny_data import encoded, picture, write_parquet
from tiny_tokens import TRAIN, VALIDATION, written_recipe

from tokenizer.vqvae import VQVAE
from var.hub.checkpoint import save_model
from var.training.stages.var import VARRecipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "parquet"
    write_parquet(folder / "train.parquet", [encoded(picture(i)) for i in range(12)], [207, 3, 970] * 4)
    write_parquet(folder / "validation.parquet", [encoded(picture(50 + i)) for i in range(4)], [3, 207, 3, 970])
    (folder / "classes.json").write_text(json.dumps({"207": {"name": "golden retriever"}, "3": {"name": "shark"}}))
    return folder


@pytest.fixture
def vqvae() -> VQVAE:
    return small_vqvae()


@pytest.fixture
def recipe(tmp_path: Path, vqvae: VQVAE) -> VARRecipe:
    """Ten images of two classes each, four shards a view, the last of two samples."""
    image_folder(tmp_path / "images", train=TRAIN // 2, validation=VALIDATION // 2)
    save_model(tmp_path / "tokenizer", vqvae)
    return written_recipe(tmp_path)
