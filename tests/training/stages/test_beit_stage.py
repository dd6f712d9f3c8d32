"""The stage `beit`: targets, losses, masks, and that a recipe trains, resumes and exports a plain encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import VOCAB, normal, random_images, refused
from tiny import encoder_recipe, metrics
from torch import Tensor, nn

from var.data.dataset import Batch
from var.models.aim import select_patches
from var.models.pretraining import patches
from var.training.loop import train
from var.training.rng import StepRNG
from var.training.stages.beit import BEiTRecipe, BEiTStage, nearest_cells
from var.training.trainer import build_stage
from var.utils.images import normalize

N = 16  # patches, 4 x 4; the tokenizer's token maps have the sides 1, 2 and 4
SCALES = pytest.mark.parametrize(("scales", "sides"), [("last", [4]), ("each", [1, 2, 4])])


def recipe(path: Path, source: Path, **changes: Any) -> BEiTRecipe:
    loaded = encoder_recipe("beit", path, source, **changes)
    assert isinstance(loaded, BEiTRecipe)
    return loaded


def stage(tmp_path: Path, source: Path, **changes: Any) -> BEiTStage:
    built = build_stage(recipe(tmp_path / "r", source, **changes))
    assert isinstance(built, BEiTStage)
    return built


def draws(batch: int, indices: range | None = None, step: int = 0) -> StepRNG:
    return StepRNG(0, step, batch, indices or range(batch), torch.device("cpu"))


def batch_of(content: Tensor) -> Batch:
    return Batch(content, torch.zeros(len(content), dtype=torch.long), [], [])


class Fixed(nn.Module):
    """Logits that do not depend on the images; keeps the last masks."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor, masked: Tensor, predicted: Tensor) -> Tensor:
        self.masked, self.predicted = masked, predicted
        return select_patches(self.logits[: len(images)], predicted)


def closed_form(trained: BEiTStage, sides: list[int], logits: Tensor, images: Tensor, masked: Tensor) -> float:
    """The loss in NumPy: image by image, patch by patch, token map by token map."""
    tokens, ends = trained.tokenizer.encode(images).numpy(), {1: 1, 2: 5, 4: 21}
    losses = []
    for b in range(len(images)):
        errors = []
        for patch in np.flatnonzero(masked[b]):
            for k, side in enumerate(sides):
                row, column = (place * side // 4 for place in divmod(int(patch), 4))
                token = tokens[b, ends[side] - side * side + row * side + column]
                scores = logits[b, patch].double().numpy()[k * VOCAB : (k + 1) * VOCAB]
                errors.append(np.log(np.exp(scores).sum()) - scores[token])
        losses.append(np.mean(errors))
    return float(np.mean(losses))


@SCALES
def test_the_loss_is_the_cross_entropy_of_masked_patches_alone(
    scales: str, sides: list[int], images: Path, tmp_path: Path
) -> None:
    trained, content = stage(tmp_path, images, scales=scales), random_images(3, 8)
    model = Fixed(normal(3, N, len(sides) * VOCAB))
    loss = trained.phases[0].loss(model, batch_of(content), draws(3), None).total
    assert torch.equal(model.masked, trained.masks.draw(draws(3).seeds("mask")))
    assert model.predicted.shape == (3, 7)  # of 16: 6 are to be masked, one more may be by a block of 2
    expected = closed_form(trained, sides, model.logits.detach(), content, model.masked)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [model.logits])
    strength = gradient.abs().sum(dim=-1)
    assert (strength[model.masked] > 0).all()
    assert (strength[~model.masked] == 0).all()
    values = trained.validate(model, batch_of(content))["loss"]
    assert values.shape == (3,)
    assert values.mean().item() == pytest.approx(
        closed_form(trained, sides, model.logits.detach(), content, model.masked), rel=1e-5
    )
    assert (model.masked == model.masked[0]).all()


@SCALES
def test_logits_depend_on_visible_patches_alone_and_train_every_parameter(
    scales: str, sides: list[int], images: Path, tmp_path: Path
) -> None:
    trained, content = stage(tmp_path, images, scales=scales), random_images(2, 8).requires_grad_()
    model, masked = trained.phases[0].model, trained.masks.draw([1, 2])
    logits = model(normalize(content), masked)
    assert logits.shape == (2, N, len(sides) * VOCAB)
    (gradient,) = torch.autograd.grad(logits.square().sum(), content)
    strength = patches(gradient, 2).abs().sum(dim=-1)
    assert (strength[masked] == 0).all()
    assert (strength[~masked] > 0).all()
    trained.phases[0].loss(model, batch_of(content.detach()), draws(2), None).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in trained.tokenizer.parameters())


def test_the_nearest_cell_is_that_of_the_patches_center() -> None:
    assert nearest_cells(4, 4).tolist() == list(range(16))
    assert nearest_cells(4, 1).tolist() == [0] * 16
    assert nearest_cells(4, 2).view(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert nearest_cells(3, 2)[:3].tolist() == [0, 1, 1]  # centers at 1/6, 1/2 and 5/6
    assert nearest_cells(2, 8).tolist() == [18, 22, 50, 54]


@SCALES
def test_the_sheet_shows_what_is_seen_and_what_is_guessed(
    scales: str, sides: list[int], images: Path, tmp_path: Path
) -> None:
    trained, content = stage(tmp_path, images, scales=scales), random_images(3, 8)
    targets = trained._targets(content)
    perfect = Fixed(nn.functional.one_hot(targets, VOCAB).flatten(2).float())
    sheet = trained.preview(perfect, batch_of(content))
    assert sheet.size == (3 * 8 + 2 * 2, 3 * 8 + 2 * 2)
    drawn = trained._draw(content, perfect.masked, targets.unbind(dim=2))
    whole = trained.tokenizer.decode(trained.tokenizer.encode(content))
    assert torch.equal(drawn, whole)
    assert not torch.equal(trained._draw(content, perfect.masked, ((targets + 1) % VOCAB).unbind(dim=2)), whole)
    assert torch.equal(trained._draw(content, ~perfect.masked & False, ((targets + 1) % VOCAB).unbind(dim=2)), whole)


def test_halves_of_a_batch_give_the_loss_of_the_whole(images: Path, tmp_path: Path) -> None:
    """On micro-batches or on two processes: masks follow an image's place in the batch."""
    trained, content = stage(tmp_path, images), random_images(6, 8)
    model, loss = trained.phases[0].model, trained.phases[0].loss
    whole = loss(model, batch_of(content), draws(6), None).total.item()
    for parts in ((range(3), range(3, 6)), (range(0, 6, 2), range(1, 6, 2))):
        halves = [loss(model, batch_of(content[list(part)]), draws(6, part), None).total for part in parts]
        assert sum(half.item() for half in halves) / 2 == pytest.approx(whole, rel=1e-5)
    assert loss(model, batch_of(content), draws(6, step=1), None).total.item() != pytest.approx(whole, rel=1e-5)


def test_recipes_that_cannot_work(images: Path, tmp_path: Path) -> None:
    for changes, parts in (
        ({"min_block": 16}, ("min_block=16", "at most the 6 of 4x4", "lower min_block")),
        ({"mask_ratio": 0.01}, ("mask_ratio=0.01 masks 0 of 16",)),
        ({"tokenizer": None}, ("tokenizer is missing", "var-mini")),
    ):
        with refused(*parts):
            recipe(tmp_path / "r", images, **changes)  # type: ignore[arg-type]
    with refused("4x4 last tokens", "8x8 patches", "patch_size=2"):
        stage(tmp_path, images, model={"patch_size": 1})
    assert stage(tmp_path, images, model={"patch_size": 1}, scales="each").predicted == (1, 2, 4)
    with refused("images of 8 px", "16 px", "model.image_size=8"):
        stage(tmp_path, images, model={"image_size": 16}, scales="each")


def test_it_learns(images: Path, tmp_path: Path) -> None:
    learned = recipe(tmp_path / "learned", images, steps=40, data={"crop": "center", "flip": False, "jitter": None})
    train(learned)
    losses = [line["loss"] for line in metrics(learned.output, "train")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
