"""Another objective is one more file: this is one, and its stage trains, goes on, validates and is estimated."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import safetensors.torch
import torch
from helpers import refused
from PIL import Image
from tiny import ended, image_folder, metrics, stop_at, write_recipe
from torch import Tensor, nn

from var.cli.train import main
from var.data.config import Count
from var.data.dataset import Batch
from var.training.config import Recipe
from var.training.estimate.images import find_images
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.rng import StepRNG
from var.training.series import series
from var.training.stages import base
from var.training.stages.base import Losses, Outline, Phase, Stage, open_images, register
from var.utils.images import to_pil


class ToyRecipe(Recipe):
    """Attributes: image_size: side of the images in pixels."""

    image_size: Count = 4
    fixed = Recipe.fixed | {"image_size"}


class ToyStage(Stage[ToyRecipe]):
    """Linear regression of an image's mean on its pixels, some of which are noise."""

    recipe_type = ToyRecipe
    best = "squared_error"

    def __init__(self, recipe: ToyRecipe, *data: Any) -> None:
        super().__init__(recipe, *data)
        self.phases = (Phase("regression", self.build(), recipe.optimizer, self.losses),)

    @classmethod
    def from_recipe(cls, recipe: ToyRecipe) -> Self:
        return cls(recipe, *open_images(recipe, recipe.image_size))

    @classmethod
    def outline(cls, recipe: ToyRecipe) -> Outline:
        images, side = find_images(recipe.data), recipe.image_size
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            return Outline(cls(recipe, data, data), images, torch.empty(3, side, side), side**2)

    def build(self) -> nn.Module:
        return nn.Linear(3 * self.recipe.image_size**2, 1)

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        noise = 0.1 * rng.uniform("noise", 1).to(batch.content)
        errors = self._squared_errors(model, batch.content, noise)
        return Losses(errors.mean(), {"loss": errors.detach().mean()})

    def _squared_errors(self, model: nn.Module, images: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        pixels = images.flatten(1)
        return (model(pixels + noise)[:, 0] - pixels.mean(dim=1)).square()

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"squared_error": self._squared_errors(model, batch.content)}

    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        return to_pil(batch.content)[0]

    def export(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")


BASE: dict[str, Any] = {
    "stage": "toy",
    "batch_size": 4,
    "steps": 6,
    "optimizer": {"lr": 1e-2},
    "ema": 0.9,
    "precision": "float32",
    "log_every": 1,
    "validate_every": 3,
    "checkpoint_every": 2,
}


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    """As `@register("toy")` above the class would do it, but for these tests alone."""
    register("toy")(ToyStage)
    yield
    del base._registered["toy"]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    source = image_folder(tmp_path / "images")
    return write_recipe(tmp_path / "toy.yaml", BASE, data={"source": str(source), "flip": True})


def test_the_command_trains_it_and_goes_on_bit_for_bit(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", str(toy), f"output={tmp_path / name}"])
        return ended(main, capsys)

    code, out, _ = command("whole")
    assert (code, out.splitlines()[-1]) == (0, f"model: {tmp_path / 'whole' / 'model'}")
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        command("halves")
    assert metrics(tmp_path / "halves", "train")[-1]["step"] == 4
    command("halves")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")
    whole, halves = (
        safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "halves")
    )
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    first, last = metrics(tmp_path / "whole", "validation")
    assert last["squared_error"] < first["squared_error"]
    assert len(list((tmp_path / "whole" / "pictures").iterdir())) == 1
    assert (tmp_path / "whole" / "best").is_dir()


def test_the_dry_run_tells_of_it(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", str(toy), "--dry-run"])
    code, out, _ = ended(main, capsys)
    assert code == 0
    told = " ".join(out.split())
    assert "regression 49 parameters, trained" in told
    assert "a step 4 images, 64 tokens" in told
    assert not (toy.parent / "toy").exists()


def test_its_recipe_is_checked_like_any_other(toy: Path) -> None:
    with refused("image_sise=3 is not a known key, did you mean image_size?"):
        load_recipe(toy, ["image_sise=3"])
    with refused("stage=toy: the stages with sizes in a series are mar, raster, var"):
        series(load_recipe(toy), [1])
    train(load_recipe(toy, ["steps=1"]))
    with refused("belong to another recipe, with image_size=4, not 8"):
        train(load_recipe(toy, ["image_size=8"]))
