"""Files written by an earlier version are read by this one: recipes, checkpoints, a token cache, models, features.

tests/fixtures/earlier_files.tar.xz holds two runs of four steps on tiny images, and in `continued` what the code that
wrote them made of them afterwards: the metrics of steps 5 and 6, and two samples.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import FIXTURES
from tiny import metrics

from var.features.feature_file import read_features
from var.pipeline import VARPipeline
from var.training.loop import train
from var.training.recipe import load_recipe

COMPARED = ("loss", "gradient_norm", "lr", "psnr", "l1", "accuracy", "loss/4x4", "discriminator/hinge")


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The earlier version's working folder, entered."""
    with tarfile.open(FIXTURES / "earlier_files.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("stage", ["var", "tokenizer"])
def test_a_run_goes_on_from_an_earlier_checkpoint_as_its_own_version_did(earlier: Path, stage: str) -> None:
    tokens = {path: path.read_bytes() for path in (earlier / "tokens").glob("*.bin")}
    train(load_recipe(Path(f"{stage}.yaml"), ["steps=6"]))
    expected = [json.loads(line) for line in (earlier / "continued" / f"{stage}.jsonl").read_text().splitlines()]
    found = [line for line in metrics(earlier / stage) if line["step"] > 4]
    assert [(line["step"], line["split"]) for line in found] == [(line["step"], line["split"]) for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        shared = [name for name in COMPARED if name in theirs]
        assert [ours[name] for name in shared] == pytest.approx([theirs[name] for name in shared], rel=1e-3)
    assert tokens == {path: path.read_bytes() for path in (earlier / "tokens").glob("*.bin")}  # not encoded again


def test_the_recipe_that_an_earlier_run_kept_is_read(earlier: Path) -> None:
    for stage in ("tokenizer", "var"):
        kept, given = load_recipe(Path(stage, "recipe.yaml")), load_recipe(Path(f"{stage}.yaml"))
        assert kept.accumulate == 1  # its default then; None, the default now, stands for it
        assert kept.model_copy(update={"accumulate": None}) == given


def test_an_earlier_model_draws_the_same_samples(earlier: Path) -> None:
    expected = safetensors.torch.load_file("continued/samples.safetensors")
    pipe = VARPipeline.from_pretrained("var/model", dtype="bfloat16")  # what auto chose where they were drawn
    output = pipe([0, 1], num=1, cfg=2.0, top_k=5, top_p=0.9, seed=3)
    assert torch.equal(output.tokens, expected["tokens"])
    images = np.stack([np.asarray(image) for image in output.images])
    assert np.abs(images.astype(int) - expected["images"].numpy().astype(int)).max() <= 1


def test_earlier_features_are_read(earlier: Path) -> None:
    features = read_features(Path("features.parquet"))
    assert tuple(features.values.shape) == (8, 16)
    assert sorted(features.labels.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]
