"""Drawing of continuous tokens: the schedule, an image's own random numbers, given tokens, options."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import CLASSES, LATENT, continuous_vqvae, noise, normal, refused, small_mar, small_var, small_vqvae
from tiny import NAMES

from var.models.diffusion_head import sample_ancestral
from var.models.mar import MAR
from var.pipeline import VARPipeline
from var.sampling import mar
from var.sampling.generate import ForcedTokens, Generated, generate
from var.sampling.mar import draw_step, masked_after, masked_counts
from var.sampling.params import SamplingParams

LABELS = [0, CLASSES, 2]
LENGTH = 16
FEW = SamplingParams(cfg=1.5, steps=4, diffusion_steps=6)


def model() -> MAR:
    return small_mar(seed=1)


def pipeline() -> VARPipeline:
    return VARPipeline(model(), continuous_vqvae(), NAMES)


def sample(drawn_by: MAR, labels: list[int] = LABELS, forced: ForcedTokens | None = None, **more: Any) -> Generated:
    return generate(drawn_by, continuous_vqvae(), labels, replace(FEW, **more), seed=3, forced=forced)


@pytest.mark.parametrize(("length", "steps"), [(256, 64), (64, 64), (64, 8), (16, 64), (1, 3)])
def test_the_mask_shrinks_as_published(length: int, steps: int) -> None:
    left, published = length, []
    for step in range(min(steps, length)):  # as in MAR's sample_tokens
        floor = math.floor(length * math.cos(math.pi / 2 * (step + 1) / min(steps, length)))
        left = max(1, min(left - 1, floor))
        published.append(left)
    assert masked_after(length, steps) == [*published[:-1], 0]
    drawn = [a - b for a, b in zip([length, *published[:-1]], [*published[:-1], 0], strict=True)]
    assert min(drawn) >= 1
    assert sum(drawn) == length


def test_each_step_draws_its_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_by = model()
    masks: list[torch.Tensor] = []
    forward = MAR.predict

    def predict(self: MAR, tokens: torch.Tensor, mask: torch.Tensor, condition: Any) -> torch.Tensor:
        masks.append(mask)
        return forward(self, tokens, mask, condition)

    monkeypatch.setattr(MAR, "predict", predict)
    sample(drawn_by)
    assert [int(mask[0].sum()) for mask in masks] == [LENGTH, *masked_after(LENGTH, 4)[:-1]]
    assert not torch.equal(masks[1][0], masks[1][1])  # an order of its own
    assert torch.equal(masks[1][:3], masks[1][3:])  # the unconditional half sees the same


def test_an_image_that_has_fewer_tokens_to_draw_is_done_before_the_others() -> None:
    assert masked_counts([4, 1, 0], 3) == [(4, 1, 0), (3, 0, 0), (2, 0, 0), (0, 0, 0)]


def test_guidance_moves_the_noise_away_from_the_null_class() -> None:
    """By s, where the paper's scale is 1 + s; a head that says its condition is the noise."""
    conditional, unconditional, strength = normal(5, LATENT, seed=1), normal(5, LATENT, seed=2), torch.rand(5, 1)
    noise = normal(5, 6, LATENT)
    stub = SimpleNamespace(head=lambda noisy, timestep, condition: condition)

    def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return unconditional + (1 + strength) * (conditional - unconditional)

    drawn = draw_step(cast(MAR, stub), [conditional, unconditional], strength, noise, 0.7)
    assert torch.allclose(drawn, sample_ancestral(predict, noise, 0.7), atol=1e-5)
    alone = draw_step(cast(MAR, stub), [conditional], strength, noise, 1.0)
    assert torch.allclose(alone, sample_ancestral(lambda x, t: conditional, noise), atol=1e-5)


def test_guidance_rises_with_the_share_of_known_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MAR's linear schedule does: 1 + (cfg - 1) * (L - m) / L, m the tokens that are masked after the step."""
    drawn_by, seen = model(), []

    def watch(given: MAR, conditions: list[torch.Tensor], strength: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append((conditions, strength))
        return draw_step(given, conditions, strength, *more)

    monkeypatch.setattr(mar, "draw_step", watch)
    sample(drawn_by, [2])
    strengths = [strength.unique().item() for _, strength in seen]
    assert strengths == pytest.approx([FEW.cfg * (LENGTH - left) / LENGTH for left in masked_after(LENGTH, 4)])
    masked = torch.ones(1, LENGTH, dtype=torch.bool)
    with torch.inference_mode():
        for conditions, label in zip(seen[0][0], (2, CLASSES), strict=True):
            expected = drawn_by(torch.tensor([label]), torch.zeros(1, LENGTH, LATENT), masked)[0]
            assert torch.cdist(conditions, expected).amin(dim=1).max() < 1e-4


def test_an_image_follows_from_seed_label_and_index_alone() -> None:
    drawn_by = model()
    together = sample(drawn_by)
    assert torch.equal(sample(drawn_by).tokens, together.tokens)
    for i, label in enumerate(LABELS):
        assert torch.allclose(sample(drawn_by, [label]).tokens[0], together.tokens[i], atol=1e-3)
    assert not torch.equal(*sample(drawn_by, [2, 2]).tokens)
    assert torch.allclose(together.images, continuous_vqvae().decode(together.tokens), atol=1e-5)


@pytest.mark.parametrize("option", [{"cfg": 0.0}, {"temperature": 0.5}, {"steps": 2}, {"diffusion_steps": 5}])
def test_options_act(option: dict[str, Any]) -> None:
    assert not torch.allclose(sample(model(), **option).tokens, sample(model()).tokens, atol=1e-3)


def test_forced_tokens_are_kept_and_seen_by_all_others() -> None:
    drawn_by, given = model(), normal(3, LENGTH, LATENT)
    forced = torch.zeros(3, LENGTH, dtype=torch.bool)
    forced[0, 5:] = True
    forced[1, [3, 4]] = True
    kept = sample(drawn_by, forced=ForcedTokens(given, forced)).tokens
    assert torch.equal(kept[forced], given[forced])
    assert kept.isfinite().all()
    changed = given.clone()
    changed[0, 15] += 3
    others = sample(drawn_by, forced=ForcedTokens(changed, forced)).tokens
    assert (others[0, :5] != kept[0, :5]).any(dim=-1).all()
    assert torch.allclose(others[1:], kept[1:], atol=1e-3)
    assert torch.equal(sample(drawn_by, forced=ForcedTokens(given, ~forced | forced)).tokens, given)


def test_forced_tokens_that_do_not_fit() -> None:
    forced = torch.ones(3, LENGTH, dtype=torch.bool)
    with refused("forced tokens of shape (3, 16)", "(3, 16, 8) needed"):
        sample(model(), forced=ForcedTokens(torch.zeros(3, LENGTH, dtype=torch.int64), forced))
    with refused("forced tokens must be finite"):
        sample(model(), forced=ForcedTokens(torch.full((3, LENGTH, LATENT), torch.nan), forced))


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ({"top_k": 5}, ("top_k=5", "continuous tokens", "leave it out")),
        ({"top_p": 0.5}, ("top_p=0.5", "leave it out")),
        ({"smooth": True}, ("smooth=True", "leave it out")),
        ({"cfg_scales": (0, 0)}, ("cfg_scales=(0, 0)", "leave it out")),
        ({"temperature": (0.9,)}, ("temperature=(0.9,)", "give one number")),
        ({"diffusion_steps": 1}, ("diffusion_steps=1 must be in 2..1000",)),
        ({"steps": 0}, ("steps=0",)),
    ],
)
def test_options_that_do_not_fit_are_refused(option: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        pipeline()(0, **option)


def test_its_options_are_refused_by_others() -> None:
    with refused("steps=4 is for a MAR", "leave it out"):
        VARPipeline(small_var(), small_vqvae())(0, steps=4)


def test_a_tokenizer_of_the_other_kind_is_refused() -> None:
    with refused("the transformer has regularization=kl, the tokenizer regularization=vq"):
        VARPipeline(model(), small_vqvae(scales=(4,)))


def test_a_saved_pipeline_draws_the_same_and_knows_its_tokenizer(tmp_path: Path) -> None:
    pipe = VARPipeline(model(), continuous_vqvae(), NAMES, FEW)
    pipe.save_pretrained(tmp_path / "model")
    loaded = VARPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.model.config == pipe.model.config
    assert loaded.sampling == FEW
    assert torch.allclose(pipe([0, 3]).tokens, loaded([0, 3]).tokens, atol=1e-3)
    assert "continuous tokens" in pipe.card().summary
    other = continuous_vqvae()
    other.latent_std.mul_(2)
    VARPipeline(model(), other).save_pretrained(tmp_path / "other")
    (tmp_path / "model" / "tokenizer").rename(tmp_path / "away")
    (tmp_path / "other" / "tokenizer").rename(tmp_path / "model" / "tokenizer")
    with refused("was trained on the tokens of another tokenizer"):
        VARPipeline.from_pretrained(tmp_path / "model")


def test_a_mask_is_filled_and_what_needs_a_var_is_refused() -> None:
    pipe, image = VARPipeline(model(), continuous_vqvae(), NAMES, FEW), noise(16, 16)
    assert len(pipe.inpaint(image, (4, 4, 12, 12), label=0, seed=1).images) == 1
    assert pipe.reconstruct(image).size == (8, 8)
    with refused("upscaling needs a VAR, and the model is a MAR"):
        pipe.upscale(noise(4, 4))
    with refused("classification needs a VAR"):
        pipe.classify(image)


def test_int8_and_bfloat16_draw() -> None:
    for dtype in (torch.bfloat16, torch.int8):
        drawn_by = model().cast(dtype)
        assert sample(drawn_by).tokens.isfinite().all()
