"""Stage mar: what it masks and what its loss sees; learning, with the tokenizer of continuous tokens before it."""

import math
from pathlib import Path

import pytest
import torch
from helpers import noise, normal, refused, small_vqvae
from scipy import stats
from tiny import Run, mar_recipe, metrics, raster_recipe, refusal, tokenizer_recipe, var_recipe

from var.data.dataset import Batch
from var.hub.checkpoint import load_tokenizer, save_model
from var.models.diffusion_head import TIMESTEPS
from var.models.mar import MAR
from var.pipeline import VARPipeline
from var.training.latents import LatentMoments, sum_latents
from var.training.loop import train
from var.training.rng import StepRNG
from var.training.stages.base import require
from var.training.stages.mar import LEAST_MASK, MARRecipe, MARStage, masked_share, mean_masked_share
from var.training.trainer import build_stage

KL = {"scales": [4], "regularization": "kl"}


def stage_of(recipe: MARRecipe) -> MARStage:
    return require(MARStage, build_stage(recipe))


def step(number: int = 0) -> StepRNG:
    return StepRNG(seed=0, step=number, batch_size=8, indices=range(8), device=torch.device("cpu"))


def batch() -> Batch:
    return Batch(normal(8, 16, 8), torch.arange(8) % 2, [], [])


def test_both_stages_from_images_to_a_filled_mask(images: Path, tmp_path: Path, var: Run) -> None:
    first = tokenizer_recipe(tmp_path / "tokenizer", images, model=KL, steps=30, data={"crop": "center"})
    train(first)
    vqvae = load_tokenizer(first.output / "model")
    lines = metrics(first.output, "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["kl"] > 0
    second = mar_recipe(tmp_path / "mar", images, tokenizer=first.output, validate_every=3, sample_every=6)
    train(second)
    assert metrics(second.output, "validation")[-1]["step"] == 6
    pipe = VARPipeline.from_pretrained(second.output, device="cpu", dtype="float32")
    drawn = pipe("cup", cfg=1)
    assert drawn.images[0].size == (8, 8)
    assert drawn.tokens.shape == (1, 16, vqvae.config.latent_dim)
    given = ("--model", second.output, "--device", "cpu", "--dtype", "float32")
    assert var("sample", *given, "--class", "cup", "--steps", 2, "--out", "shown")[0] == 0
    code, out, err = var("evaluate", "generate", *given, "--num-per-class", 2, "--diffusion-steps", 3, "--out", "set")
    assert code == 0, err
    assert "holds 4 images of 2 classes" in out
    noise(16, 16).save(tmp_path / "photo.png")
    code, _, err = var("edit", "inpaint", "photo.png", *given, "--box", "0,0,8,8", "--out", "filled")
    assert code == 0, err
    measured = ("evaluate", "tokenizer", "--data", images, "--model", first.output / "model", "--no-fid")
    code, out, err = var(*measured, "--per-scale")
    assert code == 0, err
    assert "continuous tokens of 4 channels" in out
    assert "codewords used" not in out


def test_tokens_of_the_training_images_have_variance_one(images: Path, tmp_path: Path) -> None:
    frozen = {"freeze": ["encoder", "quant_conv"], "data": {"crop": "center"}}
    recipe = tokenizer_recipe(tmp_path / "t", images, model=KL, steps=2, batch_size=8, **frozen)
    stage = build_stage(recipe)
    train(recipe)
    vqvae = load_tokenizer(recipe.output / "model")
    pixels = torch.stack([stage.train_data[0, i].content for i in range(8)])  # type: ignore[union-attr]
    tokens = vqvae.encode(pixels)
    assert tokens.mean(dim=(0, 1)).abs().max() < 1e-3
    assert torch.allclose(tokens.std(dim=(0, 1), correction=0), torch.ones(4), atol=1e-3)
    assert torch.allclose(vqvae.decode(tokens), vqvae.reconstruct(pixels)[0])


def test_moments_of_latents_weigh_recent_steps_more() -> None:
    steps = [normal(2, 3, 4, 4, seed=seed) * (seed + 1) + seed for seed in range(3)]
    moments = LatentMoments(3)
    for features in steps:
        moments.add(sum_latents(features))
    values = torch.stack([each.transpose(0, 1).flatten(1) for each in steps]).double()  # (3 steps, C, n)
    weights = (0.99 ** torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))[:, None, None]
    mean = (weights * values).sum(dim=(0, 2)) / (weights.sum() * values.shape[2])
    variance = (weights * (values - mean[:, None]).square()).sum(dim=(0, 2)) / (weights.sum() * values.shape[2])
    assert torch.allclose(moments.mean().double(), mean, atol=1e-5)
    assert torch.allclose(moments.std().double(), variance.sqrt(), atol=1e-5)


def test_it_learns_from_images_and_from_their_tokens_alike(images: Path, tmp_path: Path) -> None:
    common = {"steps": 8, "batch_size": 8, "ema": 0.5, "data": {"crop": "center"}}
    direct = mar_recipe(tmp_path / "direct", images, **common)
    cached = mar_recipe(tmp_path / "cached", images, **common, token_cache=tmp_path / "tokens")
    train(direct)
    train(cached)
    lines = metrics(direct.output, "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines == metrics(cached.output, "train")


def test_the_share_of_masked_tokens_is_a_truncated_normal() -> None:
    published = stats.truncnorm((0.7 - 1.0) / 0.25, 0, loc=1.0, scale=0.25)  # as in MAR's code
    for uniform in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert masked_share(uniform) == pytest.approx(published.ppf(uniform), abs=1e-6)
    assert mean_masked_share() == pytest.approx(published.mean(), abs=1e-9)


def test_each_step_masks_equally_many_cells_of_every_image(images: Path, tmp_path: Path) -> None:
    stage = stage_of(mar_recipe(tmp_path / "r", images))
    draws = [stage._draw(step(number)) for number in range(20)]
    for each in draws:
        assert LEAST_MASK * 16 <= each.masked.shape[1] <= 16
        assert all(len(set(row)) == len(row) for row in each.masked.tolist())
        assert each.timesteps.shape == (4, *each.masked.shape)
        assert each.noise.shape == (4, *each.masked.shape, 8)
    timesteps = torch.cat([each.timesteps.flatten() for each in draws])  # about 9,000
    assert timesteps.min() < 10
    assert TIMESTEPS - 10 <= timesteps.max() < TIMESTEPS
    assert timesteps.double().mean().item() == pytest.approx(TIMESTEPS / 2, abs=15)
    assert len({each.masked.shape[1] for each in draws}) > 1
    assert not torch.equal(draws[0].masked[0], draws[0].masked[1])


def test_the_loss_is_of_masked_tokens_which_the_transformer_does_not_see(images: Path, tmp_path: Path) -> None:
    stage = stage_of(mar_recipe(tmp_path / "r", images, label_drop=0.0, model={"drop_path": 0.0}))
    model = require(MAR, stage.phases[0].model)
    seen: list[torch.Tensor] = []
    given = batch()
    given.content.requires_grad_()

    def watch(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    model.blocks[0].attention.register_forward_pre_hook(watch)
    with torch.no_grad():
        for block in model.blocks:
            block.adaln.linear.weight.normal_(std=0.1)  # type: ignore[union-attr, operator]
    loss = stage.losses(model, given, step(), None)
    masked = stage._draw(step()).masked
    mask = torch.zeros(8, 16, dtype=torch.bool).scatter(1, masked, True)
    (of_blocks,) = torch.autograd.grad(seen[0].square().sum(), given.content, retain_graph=True)
    assert not of_blocks[mask].any()
    assert of_blocks[~mask].any(dim=-1).all()
    head_in = model.head.token_in.weight
    with torch.no_grad():
        model.head.noise_out.weight.normal_()
        model.head.adaln.linear.weight.normal_()
    loss = stage.losses(model, given, step(), None)
    assert torch.autograd.grad(loss.total, head_in, retain_graph=True)[0].any()
    conditions: list[torch.Tensor] = []
    model.head.condition_in.register_forward_pre_hook(lambda module, inputs: conditions.append(inputs[0]))
    stage.losses(model, given, step(), None)
    assert conditions[0].shape[0] == 4 * masked.numel()  # four timesteps of the masked tokens, and of no others


def test_validation_is_the_same_for_an_image_in_any_batch(images: Path, tmp_path: Path) -> None:
    stage = stage_of(mar_recipe(tmp_path / "r", images))
    model, given = stage.phases[0].model.eval(), batch()
    together = stage.validate(model, given)["loss"]
    alone = stage.validate(model, Batch(given.content[5:6], given.labels[5:6], [], []))["loss"]
    assert alone.item() == pytest.approx(together[5].item(), rel=1e-4)
    assert math.isclose(together.mean().item(), 1, abs_tol=0.2)  # an untrained head predicts no noise at all


def test_tokenizers_of_the_other_kind_are_refused(images: Path, tmp_path: Path, var: Run) -> None:
    save_model(tmp_path / "indices", small_vqvae(scales=(4,)))
    with refused("tokens of a codebook (regularization=vq)", "continuous tokens are needed", "regularization=kl"):
        build_stage(mar_recipe(tmp_path / "r", images, tokenizer=tmp_path / "indices"))
    continuous = tmp_path / "continuous"
    for recipe in (
        var_recipe(tmp_path / "var", images, continuous),
        raster_recipe(tmp_path / "raster", images, tokenizer=continuous),
    ):
        with refused("continuous tokens (regularization=kl)", "tokens of a codebook are needed"):
            build_stage(recipe)
    refusal(var("train", tmp_path / "var.yaml", "--dry-run"), "tokens of a codebook are needed")


def test_options_of_a_codebook_are_refused(images: Path, tmp_path: Path) -> None:
    for more, part in (
        ({"restart_dead_codes": 5}, "restart_dead_codes=5"),
        ({"quantizer_dropout": 0.5}, "quantizer_dropout=0.5"),
        ({"loss": {"entropy": 0.1}}, "loss.entropy=0.1"),
    ):
        with refused(part, "needs a codebook"):
            tokenizer_recipe(tmp_path / "t", images, model=KL, **more)
    with refused("scales [1, 2, 4] are 3 token maps", "set scales=[4]"):
        tokenizer_recipe(tmp_path / "t", images, model={"regularization": "kl"})


def test_a_dry_run_counts_its_tokens(images: Path, tmp_path: Path, var: Run) -> None:
    mar_recipe(tmp_path / "r", images)
    code, out, err = var("train", tmp_path / "r.yaml", "--dry-run")
    assert code == 0, err
    assert "4 images, 64 tokens" in out
    assert "a step masks 70% to 100% of the tokens: counted with 87%, the mean" in out


def test_a_dry_run_counts_the_mean_share(images: Path, tmp_path: Path) -> None:
    outlined = require(MARStage, MARStage.outline(mar_recipe(tmp_path / "r", images)).stage)
    counts = {outlined._draw(step(number)).masked.shape[1] for number in range(5)}
    assert counts == {math.ceil(16 * mean_masked_share())}
