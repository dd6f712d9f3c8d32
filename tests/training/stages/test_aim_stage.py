"""The stage `aim`: prefixes, losses, what it exports, and that a recipe trains and resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import largest_difference, refused, small_vqvae
from scipy import stats
from tiny import image_folder, merged, metrics, write_recipe

from var.data.dataset import Batch
from var.hub.checkpoint import save_model
from var.hub.presets import AIM_SIZES
from var.models.aim_pretraining import prefix_lengths
from var.models.pretraining import patch_statistics, patches
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.rng import StepRNG
from var.training.stages.aim import AIMRecipe, AIMStage
from var.training.trainer import build_stage
from var.utils.images import normalize

AIM: dict[str, Any] = {
    "stage": "aim",
    "batch_size": 4,
    "steps": 6,
    "model": {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "heads": 2},
    "head": {"depth": 1, "width": 8},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.05, "grad_clip": 1.0},
    "precision": "float32",
    "log_every": 1,
}
N = 16


def recipe(tmp_path: Path, name: str = "aim", **changes: Any) -> AIMRecipe:
    source = tmp_path / "data"
    if not source.exists():
        image_folder(source)
    base = merged(AIM, {"data": {"source": str(source), "crop": "resized", "flip": True, "jitter": {}}})
    loaded = load_recipe(write_recipe(tmp_path / f"{name}.yaml", base, **changes))
    assert isinstance(loaded, AIMRecipe)
    return loaded


def stage(tmp_path: Path, **changes: Any) -> AIMStage:
    built = build_stage(recipe(tmp_path, **changes))
    assert isinstance(built, AIMStage)
    return built


def draws(batch: int, step: int = 0) -> StepRNG:
    return StepRNG(0, step, batch, range(batch), torch.device("cpu"))


def images(batch: int, seed: int = 0) -> Batch:
    pixels = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(pixels, torch.zeros(batch, dtype=torch.long), [], [])


def test_prefix_lengths_are_uniform(tmp_path: Path) -> None:
    trained = stage(tmp_path)
    lengths = trained._prefix(draws(6000))
    counts = torch.bincount(lengths, minlength=N)
    assert counts[0] == 0
    assert len(counts) == N  # none is N: one patch at least is predicted
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    assert not torch.equal(lengths, trained._prefix(draws(6000, step=1)))


def test_the_loss_is_the_error_of_the_targets_after_the_prefix(tmp_path: Path) -> None:
    trained, batch = stage(tmp_path), images(3)
    model = trained.phases[0].model
    prefix = trained._prefix(draws(3))
    pixels = patches(normalize(batch.content), 2)
    mean, deviation = patch_statistics(pixels)
    targets, predictions = (pixels - mean) / deviation, model(normalize(batch.content), prefix)
    total = 0.0
    for b, first in enumerate(prefix.tolist()):
        for place in range(max(first, 1), N):
            total += (predictions[b, place - 1] - targets[b, place]).square().mean().item()
    losses = trained.phases[0].loss(model, batch, draws(3), None)
    assert losses.total.item() == pytest.approx(total / (3 * N / 2), rel=1e-5)


def test_targets_before_the_prefix_have_no_influence(tmp_path: Path) -> None:
    """Their pixels are inputs, but as targets they give no gradient: with the longest prefix one patch is predicted."""
    trained, batch = stage(tmp_path), images(1)
    errors = trained._errors(torch.zeros(1, N - 1, 12), trained.order, batch.content)
    assert errors.shape == (1, N - 1)
    values = trained.validate(trained.phases[0].model, batch)
    model = trained.phases[0].model
    prediction = model(normalize(batch.content), prefix_lengths([N // 2], N))
    expected = trained._errors(prediction, trained.order, batch.content)[:, N // 2 - 1 :].mean(dim=1)
    assert largest_difference(values["loss"], expected) < 1e-6


@pytest.mark.parametrize("order", ["raster", "spiral", "checkerboard", "random"])
@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_every_order_and_attention_trains(tmp_path: Path, order: str, attention: str) -> None:
    trained = stage(tmp_path, order=order, attention=attention)
    losses = trained.phases[0].loss(trained.phases[0].model, images(4), draws(4), None)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for name, parameter in trained.phases[0].model.named_parameters():
        assert parameter.grad is not None, name


def test_unnormalised_targets_are_the_pixels(tmp_path: Path) -> None:
    trained, batch = stage(tmp_path, targets="pixels"), images(2)
    expected = patches(normalize(batch.content), 2)[:, 1:].square().mean(dim=-1)
    found = trained._errors(torch.zeros(2, N - 1, 12), trained.order, batch.content)
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("order", ["raster", "spiral"])
@pytest.mark.parametrize("targets", ["normalized", "pixels"])
def test_a_perfect_prediction_is_drawn_as_the_image_itself(tmp_path: Path, order: str, targets: str) -> None:
    """And one of nothing but zeros changes the second half of the sequence alone."""
    trained, batch = stage(tmp_path, order=order, targets=targets), images(3)
    perfect = trained._targets(batch.content)[:, trained.order[1:]]
    assert largest_difference(trained._draw_predictions(perfect, trained.order, batch.content), batch.content) < 1e-5
    drawn = trained._draw_predictions(torch.zeros_like(perfect), trained.order, batch.content)
    changed = (patches(drawn - batch.content, 2).abs() > 1e-5).any(dim=-1)
    assert changed.sum(dim=1).tolist() == [N // 2] * 3
    assert changed[:, trained.order[N // 2 :]].all()
    if targets == "normalized":  # every patch in its own mean color
        expected = patches(normalize(batch.content), 2).mean(dim=-1)
        found = patches(normalize(drawn), 2)[:, trained.order[-1]]
        assert largest_difference(found, expected[:, trained.order[-1], None].expand_as(found)) < 1e-5


def test_tokens_as_targets(tmp_path: Path) -> None:
    vqvae = small_vqvae(seed=2)
    save_model(tmp_path / "tokenizer", vqvae)
    trained = stage(tmp_path, targets="tokens", tokenizer=str(tmp_path / "tokenizer"))
    batch = images(2)
    tokens = vqvae.scales.split(vqvae.encode(batch.content))[-1]
    logits = torch.randn(2, N - 1, vqvae.config.vocab_size)
    picked = logits.log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
    assert largest_difference(trained._errors(logits, trained.order, batch.content), -picked) < 1e-5
    trained.preview(trained.phases[0].model, batch)
    trained.phases[0].loss(trained.phases[0].model, batch, draws(2), None).total.backward()
    assert all(parameter.grad is None for parameter in vqvae.parameters())


def test_recipes_that_cannot_work(tmp_path: Path) -> None:
    with refused("targets=tokens", "tokenizer", "give both or none"):
        recipe(tmp_path, targets="tokens")
    with refused("tokenizer", "targets=tokens"):
        recipe(tmp_path, tokenizer="somewhere")
    with refused("image_size=9", "multiple of patch_size=2"):
        recipe(tmp_path, model={"image_size": 9})
    with refused("single patch"):
        recipe(tmp_path, model={"patch_size": 8})
    with refused("crop_area", "wrong way round"):
        recipe(tmp_path, data={"crop_area": [0.9, 0.5]})
    save_model(tmp_path / "tokenizer", small_vqvae())
    with refused("4x4 last tokens", "8x8 patches", "patch_size=2"):
        build_stage(
            recipe(
                tmp_path, targets="tokens", tokenizer=str(tmp_path / "tokenizer"), model={"patch_size": 1, "width": 16}
            )
        )


def test_sizes_by_name(tmp_path: Path) -> None:
    tiny = AIM_SIZES["aim-tiny"]
    small = replace(tiny, image_size=8, patch_size=2, depth=1)
    source = image_folder(tmp_path / "images")
    base = {**AIM, "data": {"source": str(source)}}
    changes: dict[str, Any] = {"image_size": 8, "patch_size": 2, "depth": 1}
    for model, overrides, expected in (
        ("aim-tiny", [], tiny),
        ({"preset": "aim-tiny"} | changes, [], small),
        (AIM["model"], ["model=aim-tiny"], tiny),  # none of the recipe's own sizes is left
        (AIM["model"], ["model=aim-tiny", "model.image_size=8", "model.patch_size=2", "model.depth=1"], small),
        ("aim-base", ["model.preset=aim-tiny", "model.depth=1", "model.image_size=8", "model.patch_size=2"], small),
    ):
        path = write_recipe(tmp_path / "named.yaml", {**base, "model": model})
        loaded = load_recipe(path, overrides)
        assert isinstance(loaded, AIMRecipe)
        assert loaded.model == expected
        assert estimate(loaded).steps == 6
    path = write_recipe(tmp_path / "named.yaml", base)
    for overrides, parts in (
        (["model=aim-9"], ("model.preset='aim-9' is unknown", "aim-tiny, aim-small, aim-base, aim-600M")),
        (["model.preset=aim-tiny"], ("model.preset=aim-tiny says nothing", "leave the preset or these out")),
        (["model=aim-tiny", "model.image_size=15"], ("model.image_size=15 must be a multiple of patch_size=14",)),
        (["model=aim-tiny", "model.dept=15"], ("model.dept=15 is not a known key", "did you mean model.depth")),
    ):
        with refused("named.yaml", *parts):
            load_recipe(path, overrides)


def test_it_learns(tmp_path: Path) -> None:
    learned = recipe(tmp_path, steps=40, data={"crop": "center", "flip": False, "jitter": None})
    train(learned)
    losses = [line["loss"] for line in metrics(learned.output, "train")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
