"""The stage `semaim`: losses, and that a recipe trains, resumes and exports a plain encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import largest_difference, refused, small_vqvae
from tiny import encoder_recipe, image_folder, metrics

from var.data.dataset import Batch
from var.hub.checkpoint import save_model
from var.models.pretraining import patches
from var.training.loop import train
from var.training.rng import StepRNG
from var.training.stages.semaim import SemAIMRecipe, SemAIMStage
from var.training.trainer import build_stage
from var.utils.images import normalize

N = 16


def recipe(tmp_path: Path, name: str = "semaim", **changes: Any) -> SemAIMRecipe:
    source = tmp_path / "data"
    if not source.exists():
        image_folder(source)
    loaded = encoder_recipe("semaim", tmp_path / name, source, **changes)
    assert isinstance(loaded, SemAIMRecipe)
    return loaded


def stage(tmp_path: Path, **changes: Any) -> SemAIMStage:
    built = build_stage(recipe(tmp_path, **changes))
    assert isinstance(built, SemAIMStage)
    return built


def draws(batch: int) -> StepRNG:
    return StepRNG(0, 0, batch, range(batch), torch.device("cpu"))


def images(batch: int) -> Batch:
    pixels = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(pixels, torch.zeros(batch, dtype=torch.long), [], [])


def test_the_loss_is_the_mean_error_of_all_patches_after_the_first(tmp_path: Path) -> None:
    trained, batch = stage(tmp_path), images(3)
    model = trained.phases[0].model
    pixels = patches(normalize(batch.content), 2)
    predictions, order = model(normalize(batch.content), torch.zeros(3, dtype=torch.int64))
    total = 0.0
    for b in range(3):
        for i in range(1, N):
            patch = pixels[b, order[b, i]]
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total += (predictions[b, i - 1] - target).square().mean().item()
    losses = trained.phases[0].loss(model, batch, draws(3), None)
    assert losses.total.item() == pytest.approx(total / (3 * (N - 1)), rel=1e-5)


def test_a_perfect_prediction_is_drawn_as_the_image_itself(tmp_path: Path) -> None:
    trained, batch = stage(tmp_path), images(3)
    order = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    targets = trained._targets(batch.content)
    perfect = torch.stack([target[places[1:]] for target, places in zip(targets, order, strict=True)])
    assert largest_difference(trained._draw_predictions(perfect, order, batch.content), batch.content) < 1e-5
    drawn = trained._draw_predictions(torch.zeros_like(perfect), order, batch.content)
    changed = (patches(drawn - batch.content, 2).abs() > 1e-5).any(dim=-1)
    for image, places in zip(changed, order, strict=True):
        assert set(image.nonzero()[:, 0].tolist()) == set(places[N // 2 :].tolist())


def test_tokens_as_targets(tmp_path: Path) -> None:
    vqvae = small_vqvae(seed=2)
    save_model(tmp_path / "tokenizer", vqvae)
    trained = stage(tmp_path, targets="tokens", tokenizer=str(tmp_path / "tokenizer"), attention="prefix")
    batch = images(2)
    tokens = vqvae.scales.split(vqvae.encode(batch.content))[-1]
    order = torch.stack([torch.randperm(N), torch.arange(N)])
    logits = torch.randn(2, N - 1, vqvae.config.vocab_size)
    errors = trained._errors(logits, order, batch.content)
    for b, i in ((0, 1), (0, 9), (1, 15)):
        expected = -logits[b, i - 1].log_softmax(dim=-1)[tokens[b, order[b, i]]]
        assert errors[b, i - 1].item() == pytest.approx(expected.item(), rel=1e-4)
    trained.preview(trained.phases[0].model, batch)
    assert torch.isfinite(trained.phases[0].loss(trained.phases[0].model, batch, draws(2), None).total)


def test_recipes_that_cannot_work(tmp_path: Path) -> None:
    with refused("smoothing=-1", "greater than or equal to 0"):
        recipe(tmp_path, smoothing=-1)
    with refused("order", "not a known key"):
        recipe(tmp_path, order="raster")
    with refused("single patch"):
        recipe(tmp_path, model={"patch_size": 8})


def test_it_learns(tmp_path: Path) -> None:
    learned = recipe(tmp_path, steps=40, data={"crop": "center", "flip": False, "jitter": None})
    train(learned)
    losses = [line["loss"] for line in metrics(learned.output, "train")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
