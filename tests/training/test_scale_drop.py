"""Scales that are left out in training: which, what the others encode, and the exported model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LATENT, largest_difference, normal, refused, small_quantizer, small_vqvae
from tiny import assert_same_weights, image_folder, metrics, var_recipe

from var.hub.checkpoint import read_config, save_model
from var.pipeline import VARPipeline
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.rng import StepRNG
from var.training.scale_drop import draw_kept, quantize_kept

FEATURES = normal(3, LATENT, 4, 4)


def test_all_scales_encode_what_the_quantizer_does() -> None:
    quantizer = small_quantizer()
    inputs, tokens = quantize_kept(quantizer, FEATURES, [0, 1, 2])
    assert torch.equal(tokens, quantizer.encode(FEATURES))
    assert largest_difference(inputs, quantizer.teacher_forcing_input(tokens)) < 1e-5


def test_scales_that_are_kept_encode_what_is_left() -> None:
    quantizer = small_quantizer()
    inputs, tokens = quantize_kept(quantizer, FEATURES, [0, 2])
    assert (inputs.shape, tokens.shape) == ((3, 16, LATENT), (3, 17))
    first = quantizer.scale_update(quantizer.codebook(tokens[:, :1]), 0)
    assert torch.equal(tokens[:, :1], quantizer.encode(FEATURES)[:, :1])
    assert torch.equal(inputs, quantizer.next_input(first, 2))
    assert torch.equal(tokens[:, 1:], quantizer.nearest(FEATURES - first))


def test_a_step_draws_once_and_keeps_the_ends() -> None:
    def drawn(step: int, indices: range, rate: float = 0.5) -> list[int]:
        return draw_kept(7, rate, StepRNG(0, step, 8, indices, torch.device("cpu")))

    kept = [drawn(step, range(8)) for step in range(200)]
    assert kept == [drawn(step, range(4, 8)) for step in range(200)]
    assert all(scales[0] == 0 and scales[-1] == 6 and scales == sorted(set(scales)) for scales in kept)
    share = sum(len(scales) - 2 for scales in kept) / (200 * 5)
    assert 0.42 < share < 0.58
    assert drawn(0, range(8), 0.0) == list(range(7))
    assert draw_kept(1, 0.5, StepRNG(0, 0, 8, range(8), torch.device("cpu"))) == [0]


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_that_drops_scales_exports_a_model_that_can(cached: bool, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    save_model(tmp_path / "tokenizer", small_vqvae())
    more: dict[str, Any] = {"token_cache": str(tmp_path / "tokens")} if cached else {}
    recipe = var_recipe(tmp_path / "run", source, tmp_path / "tokenizer", steps=3, scale_drop=0.9, **more)
    train(recipe)
    assert {"loss", "accuracy"} <= metrics(recipe.output, "train")[0].keys()
    pipe = VARPipeline.from_pretrained(recipe.output, dtype="float32")
    assert pipe.model.config.scale_drop == 0.9
    assert pipe(0, use_scales=(1, 4), top_k=0).tokens.shape == (1, 17)


def test_none_is_dropped_by_default(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    save_model(tmp_path / "tokenizer", small_vqvae())
    for name, changes in (("without", {}), ("zero", {"scale_drop": 0})):
        train(var_recipe(tmp_path / name, source, tmp_path / "tokenizer", steps=2, **changes))
    assert_same_weights(tmp_path / "without" / "model", tmp_path / "zero" / "model")
    assert "scale_drop" not in read_config(tmp_path / "zero" / "model" / "transformer")["config"]


def test_the_dry_run_counts_all_scales(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    save_model(tmp_path / "tokenizer", small_vqvae())
    sampling = {"use_scales": [1, 4]}
    dropping = {"scale_drop": 0.9, "sampling": sampling}
    costs = [
        estimate(var_recipe(tmp_path / "run", source, tmp_path / "tokenizer", **changes)) for changes in ({}, dropping)
    ]
    assert any("scale_drop=0.9" in line for line in str(costs[1]).splitlines())
    assert "scale_drop" not in str(costs[0])


def test_self_correction_does_not_go_with_it(tmp_path: Path) -> None:
    with refused("scale_drop=0.5 and self_correction"):
        var_recipe(tmp_path / "run", tmp_path, tmp_path, scale_drop=0.5, self_correction={"share": 0.5})
