"""`--dtype int8` of the commands that draw, edit and classify, and of those that have it not."""

import json
from pathlib import Path

import pytest
from helpers import noise
from PIL import Image
from tiny import Run, refusal

from var.pipeline import VARPipeline

INT8 = ("--dtype", "int8", "--device", "cpu")


def test_sampling(var: Run, model: Path) -> None:
    code, _, err = var("sample", "--model", model, *INT8, "--class", 3, "--num", 2, "--out", "images")
    assert (code, err) == (0, "")
    drawn = VARPipeline.from_pretrained(model, device="cpu", dtype="int8")(3, num=2)
    for i, image in enumerate(drawn.images):
        with Image.open(f"images/3_{i}.png") as saved:
            assert saved.tobytes() == image.tobytes()


def test_a_set_of_samples_keeps_to_it(var: Run, model: Path) -> None:
    command = ("evaluate", "generate", "--model", model, "--num-per-class", 1, "--no-npz", "--out", "set")
    code, out, _ = var(*command, *INT8)
    assert code == 0
    assert "holds 4 images of 4 classes" in out
    assert json.loads(Path("set/settings.json").read_text())["dtype"] == "int8"
    code, _, err = var(*command, "--dtype", "float32", "--device", "cpu")
    assert code == 2
    assert "dtype" in err
    assert "int8" in err


@pytest.mark.parametrize("command", [("edit", "upscale", "a.png", "--class", 3), ("classify", "a.png")])
def test_editing_and_classifying(var: Run, model: Path, command: tuple[str, ...]) -> None:
    noise(4, 4).save("a.png")
    code, out, err = var(*command, "--model", model, *INT8)
    assert (code, err) == (0, "")
    assert "image" in out


def test_features_have_it_not(var: Run, model: Path) -> None:
    Path("images").mkdir()
    noise(8, 8).save("images/a.png")
    ended = var("features", "extract", "images", "--model", model, *INT8, "--out", "f.parquet")
    refusal(ended, "dtype 'int8'", "auto, float32 or bfloat16")
