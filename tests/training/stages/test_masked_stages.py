"""The stages `mae` and `simmim`: masks, losses, what they draw and export, and that a recipe trains and resumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import normal, random_images, refused
from numpy.typing import NDArray
from tiny import encoder_recipe, metrics
from torch import Tensor, nn

from var.data.dataset import Batch
from var.models.pretraining import patches
from var.training.loop import train
from var.training.masked_pixel_stage import MaskedPixelRecipe, MaskedPixelStage
from var.training.recipe import load_recipe
from var.training.rng import StepRNG
from var.training.trainer import build_stage
from var.utils.images import normalize

N, PATCH = 16, 2
STAGES = pytest.mark.parametrize("name", ["mae", "simmim"])


def recipe(name: str, path: Path, source: Path, **changes: Any) -> MaskedPixelRecipe:
    loaded = encoder_recipe(name, path, source, **changes)
    assert isinstance(loaded, MaskedPixelRecipe)
    return loaded


def stage(name: str, path: Path, source: Path, **changes: Any) -> MaskedPixelStage[Any]:
    built = build_stage(recipe(name, path / "r", source, **changes))
    assert isinstance(built, MaskedPixelStage)
    return built


def draws(batch: int, step: int = 0, indices: range | None = None) -> StepRNG:
    return StepRNG(0, step, batch, indices or range(batch), torch.device("cpu"))


def batch_of(content: Tensor) -> Batch:
    return Batch(content, torch.zeros(len(content), dtype=torch.long), [], [])


class Fixed(nn.Module):
    """Predictions that do not depend on the images; keeps the last masks or visible patches given."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.predictions = nn.Parameter(predictions)

    def forward(self, images: Tensor, chosen: Tensor) -> Tensor:
        self.chosen = chosen
        return self.predictions[: len(images)]


def masked_by(model: Fixed) -> NDArray[np.bool_]:
    """(B, N) of the masks given as such, or by the indices of the visible patches."""
    chosen = model.chosen.numpy()
    return chosen if chosen.dtype == bool else np.stack([~np.isin(np.arange(N), row) for row in chosen])


def closed_form(name: str, targets: str, predictions: Tensor, images: Tensor, masked: NDArray[np.bool_]) -> float:
    """The loss, patch by patch in NumPy: images in [-1, 1]."""
    mean, std = (np.array(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    errors = []
    for b, patch in np.argwhere(masked):
        row, column = PATCH * (patch // 4), PATCH * (patch % 4)
        pixels = images[b].double().numpy()[:, row : row + PATCH, column : column + PATCH]
        pixels = (((pixels + 1) / 2 - mean) / std).transpose(1, 2, 0).ravel()
        if targets == "normalized":
            pixels = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
        difference = predictions[b, patch].double().numpy() - pixels
        errors.append(np.square(difference).mean() if name == "mae" else np.abs(difference).mean())
    return float(np.mean(errors))


@STAGES
@pytest.mark.parametrize("targets", ["normalized", "pixels"])
def test_the_loss_is_the_papers_of_masked_patches_alone(name: str, targets: str, images: Path, tmp_path: Path) -> None:
    trained = stage(name, tmp_path, images, targets=targets)
    content, model = random_images(3, 8).requires_grad_(), Fixed(normal(3, N, 12))
    loss = trained.phases[0].loss(model, batch_of(content), draws(3), None).total
    masked = masked_by(model)
    assert masked.sum(axis=1).tolist() == [12 if name == "mae" else 8] * 3  # 75% of 16 patches, half of 4 squares
    expected = closed_form(name, targets, model.predictions.detach(), content.detach(), masked)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    of_predictions, of_images = torch.autograd.grad(loss, [model.predictions, content])
    for gradient in (of_predictions, patches(of_images, PATCH)):
        strength = gradient.abs().sum(dim=-1).numpy()
        assert (strength[masked] > 0).all()
        assert (strength[~masked] == 0).all()


def test_defaults_are_the_papers(images: Path, tmp_path: Path) -> None:
    mae, simmim = (recipe(name, tmp_path / name, images) for name in ("mae", "simmim"))
    assert (mae.mask_ratio, mae.targets) == (0.75, "normalized")
    assert (simmim.mask_ratio, simmim.targets) == (0.6, "pixels")


@STAGES
def test_predictions_depend_on_visible_patches_alone_and_train_every_parameter(
    name: str, images: Path, tmp_path: Path
) -> None:
    trained, content = stage(name, tmp_path, images), random_images(2, 8).requires_grad_()
    model, masked = trained.phases[0].model, trained.draw_masks(draws(2))
    values = trained.predict(model, normalize(content), masked)
    (gradient,) = torch.autograd.grad(values.square().sum(), content)
    strength = patches(gradient, PATCH).abs().sum(dim=-1)
    assert (strength[masked] == 0).all()
    assert (strength[~masked] > 0).all()
    trained.phases[0].loss(model, batch_of(content), draws(2), None).total.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name


@STAGES
def test_halves_of_a_batch_give_the_loss_of_the_whole(name: str, images: Path, tmp_path: Path) -> None:
    """On micro-batches and on two processes, which take every other image: masks follow the index in the batch."""
    trained, content = stage(name, tmp_path, images), random_images(6, 8)
    model, loss = trained.phases[0].model, trained.phases[0].loss
    whole = loss(model, batch_of(content), draws(6), None).total.item()
    for parts in ((range(3), range(3, 6)), (range(0, 6, 2), range(1, 6, 2))):
        halves = [loss(model, batch_of(content[list(part)]), draws(6, indices=part), None).total for part in parts]
        assert sum(half.item() for half in halves) / 2 == pytest.approx(whole, rel=1e-5)
    assert loss(model, batch_of(content), draws(6, step=1), None).total.item() != pytest.approx(whole, rel=1e-5)


@STAGES
def test_validation_has_one_mask_for_all_images_and_runs(name: str, images: Path, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1):
        trained, model = stage(name, tmp_path, images, seed=seed), Fixed(normal(3, N, 12))
        content = random_images(3, 8)
        values = trained.validate(model, batch_of(content))["loss"]
        masked = masked_by(model)
        assert (masked == masked[0]).all()
        for b in range(3):
            one = closed_form(
                name, trained.recipe.targets, model.predictions[b : b + 1].detach(), content[b : b + 1], masked[:1]
            )
            assert values[b].item() == pytest.approx(one, rel=1e-5)
        losses.append(values)
    assert torch.equal(*losses)


def equal_patches(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,) of the first image in two rows of a sheet, 8 px each: those that differ by rounding alone."""
    difference = np.abs(a[:, :8].astype(int) - b[:, :8]).max(axis=-1)
    return (difference <= 1).reshape(4, PATCH, 4, PATCH).all(axis=(1, 3)).ravel()


@STAGES
@pytest.mark.parametrize("targets", ["normalized", "pixels"])
def test_the_sheet_shows_images_without_masked_patches_and_with_them_as_predicted(
    name: str, targets: str, images: Path, tmp_path: Path
) -> None:
    """A perfect prediction gives the image itself, any other changes masked patches alone."""
    trained, content = stage(name, tmp_path, images, targets=targets), random_images(3, 8)
    perfect = Fixed(trained.targets(content))
    sheet = np.asarray(trained.preview(perfect, batch_of(content)))
    assert sheet.shape == (3 * 8 + 2 * 2, 3 * 8 + 2 * 2, 3)
    image, seen, drawn = sheet[:8], sheet[10:18], sheet[20:]
    assert equal_patches(image, drawn).all()
    visible = ~masked_by(perfect)[0]
    assert (equal_patches(image, seen) == visible).all()
    sheet = np.asarray(trained.preview(Fixed(trained.targets(content) + 1), batch_of(content)))
    assert (equal_patches(image, sheet[20:]) == visible).all()


@STAGES
def test_it_learns(name: str, images: Path, tmp_path: Path) -> None:
    data = {"crop": "center", "flip": False, "jitter": None}
    learned = recipe(name, tmp_path / "learned", images, steps=40, data=data, optimizer={"lr": 3e-3})
    train(learned)
    losses = [line["loss"] for line in metrics(learned.output, "train")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_resumed_run_keeps_its_ratio(images: Path, tmp_path: Path) -> None:
    train(recipe("mae", tmp_path / "run", images, steps=1))
    with refused("mask_ratio"):
        train(recipe("mae", tmp_path / "run", images, steps=1, mask_ratio=0.5))


def test_recipes_that_cannot_work(images: Path, tmp_path: Path) -> None:
    for name, changes, parts in (
        ("mae", {"mask_ratio": 0.01}, ("mask_ratio=0.01 masks 0 of 16 cells",)),
        ("mae", {"tokenizer": "var-mini"}, ("tokenizer", "not a known key")),
        ("mae", {"mask_ratio": 1.0}, ("mask_ratio", "less than 1")),
        ("mae", {"decoder": {"width": 64}}, ("decoder.width=64", "128..1024")),
        ("simmim", {"mask_size": 3}, ("mask_size=3 must be a multiple of model.patch_size=2",)),
        ("simmim", {"mask_size": 6}, ("mask_size=6", "divides model.image_size=8")),
        ("simmim", {"mask_size": 8}, ("masks 1 of 1 cells",)),
    ):
        with refused(*parts):
            recipe(name, tmp_path / "r", images, **changes)


def test_squares_of_the_default_size_need_images_that_have_some(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        f"stage: simmim\noutput: r\ndata: {{source: {images}}}\nbatch_size: 4\nsteps: 1\noptimizer: {{lr: 1e-3}}\n"
        "model: {image_size: 48, patch_size: 8, width: 16, depth: 1, heads: 1}\n"
    )
    with refused("mask_size=32", "divides model.image_size=48"):
        load_recipe(path)
    loaded = load_recipe(path, ["mask_size=16"])
    assert isinstance(loaded, MaskedPixelRecipe)
    assert loaded.cells == 9
