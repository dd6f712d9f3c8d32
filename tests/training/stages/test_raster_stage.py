"""Stage raster: what its steps and its recipe do; learning, resuming and processes are tested with the other stages."""

import json
from pathlib import Path

import pytest
import torch
from helpers import random_images, refused, small_var, small_vqvae
from tiny import Run, metrics, raster_recipe, refusal, tokenizer_recipe

from var.data.dataset import Batch
from var.hub.checkpoint import load_tokenizer, save_model
from var.hub.start import load_weights
from var.models.raster import Raster
from var.pipeline import VARPipeline
from var.training.loop import train
from var.training.rng import StepRNG
from var.training.series import series
from var.training.stages.base import require
from var.training.stages.raster import RandomOrderConfig, RasterRecipe, RasterStage
from var.training.trainer import build_stage


def stage_of(recipe: RasterRecipe) -> RasterStage:
    return require(RasterStage, build_stage(recipe))


def step(stage: RasterStage, number: int) -> StepRNG:
    return StepRNG(seed=0, step=number, batch_size=8, indices=range(8), device=torch.device("cpu"))


def test_it_learns_from_images_and_from_their_tokens_alike(images: Path, tmp_path: Path) -> None:
    common = {"steps": 40, "batch_size": 8, "order": "z-curve", "ema": 0.5, "data": {"crop": "center"}}
    direct = raster_recipe(tmp_path / "direct", images, **common)
    cached = raster_recipe(tmp_path / "cached", images, **common, token_cache=tmp_path / "tokens")
    train(direct)
    train(cached)
    lines = metrics(direct.output, "train")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines == metrics(cached.output, "train")
    pipe = VARPipeline.from_pretrained(direct.output, device="cpu", dtype="float32")
    assert require(Raster, pipe.model).config.order == "z-curve"
    assert pipe.classes == {0: "bar", 1: "cup"}
    assert pipe("cup", cfg=1).images[0].size == (8, 8)


def test_a_tokenizer_of_a_single_scale_trains_and_its_tokens_are_learned(images: Path, tmp_path: Path) -> None:
    more = {"restart_dead_codes": 1, "quantizer_dropout": 0.5, "usage_window": 2, "loss": {"entropy": 0.1}}
    first = tokenizer_recipe(tmp_path / "tokenizer", images, model={"scales": [4]}, validate_every=3, **more)
    train(first)
    assert metrics(first.output, "validation")[-1]["step"] == 6
    vqvae = load_tokenizer(first.output / "model")
    tokens = vqvae.encode(random_images(2, 8))
    assert tokens.shape == (2, 16)
    assert vqvae.decode(tokens).shape == (2, 3, 8, 8)
    second = raster_recipe(tmp_path / "r", images, steps=1, tokenizer=first.output)
    train(second)
    assert VARPipeline.from_pretrained(second.output)(0, cfg=0).tokens.shape == (1, 16)


def test_the_loss_is_that_of_the_tokens_in_their_order(images: Path, tmp_path: Path) -> None:
    stage = stage_of(raster_recipe(tmp_path / "r", images, order="spiral", label_drop=0.0, model={"drop_path": 0.0}))
    model = require(Raster, stage.phases[0].model).eval()
    tokens, labels = torch.randint(32, (8, 16), generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    loss = stage.losses(model, Batch(tokens, labels, [], []), step(stage, 0), None).logs["loss"]
    ordered = tokens[:, model.order]
    logits = model(labels, stage.vqvae.quantizer.codebook(ordered[:, :-1]))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ordered.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    held_out = stage.validate(model, Batch(tokens, labels, [], []))["loss"]
    assert held_out.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_share_of_random_orders_falls_from_one_to_none() -> None:
    section = RandomOrderConfig(start=0.5, end=0.75)
    assert [section.rate(progress) for progress in (0.0, 0.5, 0.625, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_a_share_that_does_not_fall_is_refused(images: Path, tmp_path: Path) -> None:
    with refused("random_order.start=0.5 must be below random_order.end=0.5"):
        raster_recipe(tmp_path / "r", images, random_order={"start": 0.5, "end": 0.5})


def test_random_orders_are_permutations_of_a_share_of_the_samples(images: Path, tmp_path: Path) -> None:
    stage = stage_of(raster_recipe(tmp_path / "r", images, steps=100, random_order={"start": 0.2, "end": 0.8}))
    plain = torch.arange(16)
    orders = {number: stage._draw_order(step(stage, number)) for number in (0, 50, 99)}
    for order in orders.values():
        assert torch.equal(order.sort(dim=1).values, plain.expand(8, -1))
    assert len(set(map(tuple, orders[0].tolist()))) == 8  # an order of each sample's own
    assert 0 < (orders[50] == plain).all(dim=1).sum() < 8
    assert (orders[99] == plain).all()


def test_a_tokenizer_of_several_scales_is_refused_before_training(images: Path, tmp_path: Path, var: Run) -> None:
    save_model(tmp_path / "several", small_vqvae())
    recipe = raster_recipe(tmp_path / "r", images, tokenizer=tmp_path / "several")
    with refused("scales [1, 2, 4] are 3 token maps", "train its tokenizer with model.scales=[4]"):
        build_stage(recipe)
    refusal(var("train", tmp_path / "r.yaml", f"token_cache={tmp_path / 'tokens'}"), "model.scales=[4]")
    assert not (tmp_path / "tokens").exists()


def test_sampling_for_scales_is_refused(images: Path, tmp_path: Path) -> None:
    with refused("cfg_scales=(0, 0) is for the scales of a VAR"):
        build_stage(raster_recipe(tmp_path / "r", images, sampling={"cfg_scales": [0, 0]}))


def test_a_dry_run_counts_its_tokens(images: Path, tmp_path: Path, var: Run) -> None:
    raster_recipe(tmp_path / "r", images, random_order={})
    code, out, err = var("train", tmp_path / "r.yaml", "--dry-run")
    assert code == 0, err
    assert "4 images, 64 tokens" in out


def test_it_starts_from_a_raster_model_and_from_no_var(images: Path, tmp_path: Path) -> None:
    first = raster_recipe(tmp_path / "first", images, steps=1)
    train(first)
    new = stage_of(raster_recipe(tmp_path / "second", images, steps=1)).phases[0].model
    assert not load_weights(first.output, new, {0: "bar", 1: "cup"}).new
    VARPipeline(small_var(), small_vqvae()).save_pretrained(tmp_path / "var")
    with refused("holds a 'VAR', a 'Raster' is needed here"):
        load_weights(tmp_path / "var", new)
    with refused("init='var-d16' is a 'VAR', a 'Raster' is needed here"):
        load_weights("var-d16", new)


def test_the_exported_folder_says_what_it_is(images: Path, tmp_path: Path) -> None:
    recipe = raster_recipe(tmp_path / "r", images, steps=1, order="spiral")
    train(recipe)
    config = json.loads((recipe.output / "model" / "transformer" / "config.json").read_text())
    assert (config["model"], config["config"]["order"], config["config"]["scales"]) == ("Raster", "spiral", [4])


def test_a_series_of_sizes_has_its_widths_and_rates(images: Path, tmp_path: Path) -> None:
    small, large = series(raster_recipe(tmp_path / "r", images), [1, 4])
    assert [(each.model.width, each.model.heads) for each in (small, large)] == [(8, 1), (32, 4)]
    assert small.optimizer.lr == 4 * large.optimizer.lr
