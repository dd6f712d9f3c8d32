"""Options of sampling that are off by default: guidance window, temperature, refiner."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, SIDES, largest_difference, random_tokens, refused, small_var, small_vqvae
from tiny_sampling import LABELS, models, sample

from var.models.var import VAR
from var.sampling.generate import ForcedTokens, Generated, generate
from var.sampling.logits import RandomStreams, classifier_free_guidance, filter_logits, sample_tokens
from var.sampling.params import SamplingParams
from var.sampling.refiner import Refiner

# Drawn by the code as it was before these options: nothing of them may change what is drawn without them.
BEFORE = {
    (1.5, 20, 0.95, False): [
        [17, 8, 8, 8, 8, 8, 29, 8, 29, 29, 8, 8, 8, 8, 8, 29, 29, 8, 8, 28, 8],
        [25, 11, 0, 0, 5, 6, 0, 10, 5, 0, 20, 0, 24, 17, 0, 22, 22, 5, 20, 20, 22],
        [19, 28, 19, 28, 28, 31, 0, 28, 0, 0, 19, 0, 0, 0, 28, 0, 0, 0, 31, 0, 19],
    ],
    (0.0, 0, 0.0, False): [
        [17, 17, 17, 24, 4, 22, 29, 28, 7, 13, 13, 8, 12, 14, 23, 24, 30, 6, 6, 17, 8],
        [25, 12, 0, 0, 6, 12, 0, 12, 0, 0, 17, 0, 25, 20, 0, 9, 21, 5, 10, 14, 22],
        [19, 19, 7, 19, 28, 28, 6, 28, 22, 0, 24, 0, 0, 0, 28, 0, 0, 0, 28, 10, 19],
    ],
    (3.0, 0, 0.5, True): [
        [23, 8, 29, 8, 8, 8, 29, 8, 29, 29, 8, 8, 8, 8, 8, 29, 8, 8, 8, 28, 8],
        [12, 0, 0, 22, 0, 22, 24, 22, 22, 20, 22, 24, 0, 22, 22, 22, 22, 0, 0, 22, 0],
        [28, 19, 19, 19, 28, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 19, 0, 0, 0, 0, 19],
    ],
}


def rows_of_each_pass(model: VAR) -> list[tuple[int, int]]:
    """Rows and tokens of whatever goes through the model's first block from now on."""
    passes: list[tuple[int, int]] = []
    model.blocks[0].register_forward_hook(lambda _, args, __: passes.append(tuple(args[0].shape[:2])))
    return passes


def same(a: Generated, b: Generated) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.images, b.images)


@pytest.mark.parametrize("params", BEFORE)
def test_without_options_tokens_are_those_of_before(params: tuple[Any, ...]) -> None:
    assert generate(*models(), LABELS, SamplingParams(*params), seed=3).tokens.tolist() == BEFORE[params]


# --- the guidance window


@pytest.mark.parametrize("smooth", [False, True])
def test_a_window_over_all_scales_is_no_window(smooth: bool) -> None:
    assert same(sample(smooth=smooth, cfg_scales=(0, len(SIDES) - 1)), sample(smooth=smooth))


@pytest.mark.parametrize(
    ("window", "passes"),
    [
        ((0, 0), [(6, 1), (3, 4), (3, 16)]),
        ((0, 1), [(6, 1), (6, 4), (3, 16)]),
        ((1, 1), [(3, 1), (3, 1), (6, 4), (3, 16)]),  # the second pass fills the cache of the unconditional rows
        ((2, 2), [(3, 1), (3, 4), (3, 5), (6, 16)]),
    ],
)
def test_unconditional_rows_run_in_the_window_alone(window: tuple[int, int], passes: list[tuple[int, int]]) -> None:
    model, vqvae = models()
    seen = rows_of_each_pass(model)
    generate(model, vqvae, LABELS, SamplingParams(cfg=2.0, cfg_scales=window))
    assert seen == passes


@torch.no_grad()
@pytest.mark.parametrize("shared_adaln", [False, True])
@pytest.mark.parametrize("window", [(0, 1), (1, 1), (1, 2), (2, 2)])
def test_a_window_guides_at_its_scales_alone(window: tuple[int, int], shared_adaln: bool) -> None:
    """What the loop drew, drawn again from the masked network with teacher forcing and guidance by hand."""
    model, vqvae = models(shared_adaln=shared_adaln)
    out = generate(model, vqvae, LABELS, SamplingParams(2.0, 5, 0.9, cfg_scales=window), seed=3)
    features = vqvae.quantizer.teacher_forcing_input(out.tokens)
    conditional = model.scales.split(model(torch.tensor(LABELS), features))
    unconditional = model.scales.split(model(torch.full((3,), CLASSES), features))
    streams = RandomStreams(3, LABELS, [0] * 3)
    for k, tokens in enumerate(model.scales.split(out.tokens)):
        logits = conditional[k]
        if window[0] <= k <= window[1]:
            logits = classifier_free_guidance(logits, unconditional[k], 2.0 * k / 2)
        assert torch.equal(sample_tokens(filter_logits(logits, 5, 0.9), streams.uniform(tokens.shape[1])), tokens)


def test_forced_tokens_are_kept_in_a_window() -> None:
    tokens = random_tokens(3, 21)
    forced = torch.arange(21).expand(3, 21) % 2 == 0
    out = sample(forced=ForcedTokens(tokens, forced), cfg_scales=(1, 1), temperature=(1.0, 0.5, 2.0))
    assert torch.equal(out.tokens[forced], tokens[forced])


@pytest.mark.parametrize("window", [(0,), (0, 1, 2), (2, 1), (-1, 1)])
def test_windows_that_are_none(window: tuple[int, ...]) -> None:
    with refused(f"cfg_scales={list(window)}", "first and the last scale", "such as 0 and 7"):
        SamplingParams(cfg_scales=window)


@pytest.mark.parametrize("window", ["0:7", 3, [0, 1.5]])
def test_windows_of_another_type(window: object) -> None:
    with refused(f"cfg_scales={window!r} must be whole numbers, such as (1, 4), or None"):
        SamplingParams(cfg_scales=window)  # type: ignore[arg-type]  # that is what is tried


def test_a_window_beyond_the_models_scales() -> None:
    with refused("cfg_scales=[1, 3] must be in 0..2"):
        sample(cfg_scales=(1, 3))


# --- temperature


def test_temperature_of_one_number_and_of_one_a_scale() -> None:
    assert same(sample(temperature=1.0), sample())
    assert same(sample(temperature=(1.0, 1.0, 1.0)), sample())
    assert same(sample(temperature=0.5), sample(temperature=(0.5, 0.5, 0.5)))
    plain, last = (sample(temperature=each, top_k=0, top_p=0.0) for each in (1.0, (1, 1, 3)))
    assert torch.equal(last.tokens[:, :5], plain.tokens[:, :5])
    assert not torch.equal(last.tokens[:, 5:], plain.tokens[:, 5:])


def test_temperature_comes_before_top_p() -> None:
    """Near 0 the best token has all probability, so that top-p removes every other."""
    cold = sample(temperature=0.01, top_k=0, top_p=0.5)
    assert torch.equal(cold.tokens, sample(top_k=1).tokens)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), (1.0, 0.0, 1.0)])
def test_temperatures_out_of_range(temperature: float | tuple[float, ...]) -> None:
    with refused(f"temperature={temperature} must be in 0.01..100"):
        sample(temperature=temperature)


@pytest.mark.parametrize("temperature", ["1", None, True, ("1",)])
def test_temperatures_of_another_type(temperature: object) -> None:
    with refused(f"temperature={temperature!r} must be a number or several"):
        SamplingParams(temperature=temperature)  # type: ignore[arg-type]  # that is what is tried


def test_temperatures_of_another_number_of_scales() -> None:
    with refused("temperature=[1.0, 2.0] must be one number, or 3"):
        sample(temperature=(1.0, 2.0))


def test_numbers_of_numpy_and_torch_become_pythons_own() -> None:
    given = SamplingParams(
        cfg=np.float32(2),  # type: ignore[arg-type]  # that is what is tried
        top_k=np.int64(9),  # type: ignore[arg-type]
        smooth=np.True_,  # type: ignore[arg-type]
        cfg_scales=(np.int64(0), np.int32(2)),  # type: ignore[arg-type]
        temperature=np.linspace(1, 0.5, 3),  # type: ignore[arg-type]
        use_scales=torch.tensor([1, 4]),  # type: ignore[arg-type]
    )
    expected = SamplingParams(2.0, 9, 0.96, True, (0, 2), (1.0, 0.75, 0.5), (1, 4))
    assert given == expected
    assert json.loads(json.dumps(given.to_dict()))["temperature"] == [1.0, 0.75, 0.5]
    assert SamplingParams(temperature=np.float32(0.5)).temperature == 0.5  # type: ignore[arg-type]
    with refused("cfg_scales=[True, 2] must be whole numbers, such as (1, 4), or None"):
        SamplingParams(cfg_scales=[np.True_, 2])  # type: ignore[arg-type, list-item]


# --- the refiner


@torch.no_grad()
@pytest.mark.parametrize("shared_adaln", [False, True])
@pytest.mark.parametrize("first_scale", [1, 2])
def test_prefill_writes_what_steps_write(first_scale: int, shared_adaln: bool) -> None:
    model, vqvae = models(shared_adaln=shared_adaln)
    tokens = random_tokens(2, 21)
    condition = model.condition(torch.tensor([1, 3]))
    inputs = vqvae.quantizer.teacher_forcing_input(tokens)
    length = model.scales.offsets[first_scale]
    stepped, filled = model.new_cache(2), model.new_cache(2)
    for k in range(first_scale):
        start, stop = model.scales.offsets[k : k + 2]
        model.step(k, None if k == 0 else inputs[:, start - 1 : stop - 1], condition, stepped)
    model.prefill(range(first_scale), inputs[:, : length - 1], condition, filled)
    for ours, theirs in ((filled.keys, stepped.keys), (filled.values, stepped.values)):
        assert largest_difference(ours[:, :, :length], theirs[:, :, :length]) < 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"cfg": 0.0}, {"cfg_scales": (2, 2)}, {"cfg_scales": (0, 1)}, {"smooth": True}]
)
@pytest.mark.parametrize("first_scale", [1, 2])
def test_a_refiner_that_is_the_model_draws_the_same(first_scale: int, options: dict[str, Any]) -> None:
    refined = sample(**options, refiner=Refiner(models()[0], first_scale))
    plain = sample(**options)
    assert torch.equal(refined.tokens, plain.tokens)
    assert largest_difference(refined.images, plain.images) < 1e-5


@torch.no_grad()
def test_a_refiner_draws_from_its_first_scale_on() -> None:
    other = small_var(seed=9, width=16, depth=1)
    model, vqvae = models()
    out = generate(model, vqvae, LABELS, SamplingParams(0.0, 5, 0.0), seed=3, refiner=Refiner(other, 2))
    features = vqvae.quantizer.teacher_forcing_input(out.tokens)
    streams = RandomStreams(3, LABELS, [0] * 3)
    for k, tokens in enumerate(model.scales.split(out.tokens)):
        logits = model.scales.split((other if k == 2 else model)(torch.tensor(LABELS), features))[k]
        assert torch.equal(sample_tokens(filter_logits(logits, 5), streams.uniform(tokens.shape[1])), tokens)


def test_a_refiners_cache_is_filled_in_one_pass() -> None:
    model, vqvae = models()
    other = small_var(seed=9)
    ours, theirs = rows_of_each_pass(model), rows_of_each_pass(other)
    generate(model, vqvae, LABELS, SamplingParams(cfg=2.0, cfg_scales=(1, 1)), refiner=Refiner(other, 2))
    assert ours == [(3, 1), (3, 1), (6, 4)]
    assert theirs == [(3, 5), (3, 16)]


@pytest.mark.parametrize("first_scale", [0, 3, -1, 1.5, None])
def test_scales_at_which_no_refiner_can_begin(first_scale: Any) -> None:
    with refused(f"refine_from={first_scale}"):
        sample(refiner=Refiner(models()[0], first_scale))


@pytest.mark.parametrize("changes", [{"num_classes": 7}, {"vocab_size": 16}, {"scales": (1, 3, 4)}, {"latent_dim": 4}])
def test_refiners_that_do_not_fit(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with refused(f"the refiner has {name}={value}", "same tokenizer with the same classes"):
        sample(refiner=Refiner(small_var(**changes), 1))


def test_a_refiner_in_training_mode() -> None:
    with refused("the refiner is in training mode"):
        sample(refiner=Refiner(small_var().train(), 1))


# --- other schedules of scales


@torch.no_grad()
@pytest.mark.parametrize("window", [None, (0, 1), (2, 2)])
def test_tokens_of_some_scales_follow_from_the_forward_over_these(window: tuple[int, int] | None) -> None:
    model, vqvae = small_var(seed=1, scales=(1, 2, 3, 4), scale_drop=0.5), small_vqvae(seed=2, scales=(1, 2, 3, 4))
    kept = [0, 2, 3]
    sampling = SamplingParams(2.0, 5, 0.9, cfg_scales=window, use_scales=(1, 3, 4))
    out = generate(model, vqvae, LABELS, sampling, seed=3)
    assert out.tokens.shape == (3, 1 + 9 + 16)
    parts = out.tokens.split([1, 9, 16], dim=1)
    assert len(out.f_hats) == 3
    inputs = [vqvae.quantizer.next_input(f_hat, k) for f_hat, k in zip(out.f_hats, kept[1:], strict=False)]
    features, streams = torch.cat(inputs, dim=1), RandomStreams(3, LABELS, [0] * 3)
    conditional = model(torch.tensor(LABELS), features, kept=kept).split([1, 9, 16], dim=1)
    unconditional = model(torch.full((3,), CLASSES), features, kept=kept).split([1, 9, 16], dim=1)
    for k, with_label, without, tokens in zip(kept, conditional, unconditional, parts, strict=True):
        guided = window is None or window[0] <= k <= window[1]
        logits = classifier_free_guidance(with_label, without, 2.0 * k / 3) if guided else with_label
        assert torch.equal(sample_tokens(filter_logits(logits, 5, 0.9), streams.uniform(tokens.shape[1])), tokens)
    mine = Refiner(model, 1)  # begins at the first scale from there on that is drawn, of side 3
    refined = generate(model, vqvae, LABELS, sampling, seed=3, refiner=mine)
    assert torch.equal(refined.tokens, out.tokens)


def test_all_scales_are_no_choice() -> None:
    assert same(sample(use_scales=SIDES), sample())


@pytest.mark.parametrize("sides", [(1, 3, 4), (2, 4), (1, 2), (1, 4, 2), (), (1, 1, 4)])
def test_scales_that_the_model_does_not_have(sides: tuple[int, ...]) -> None:
    with refused(f"use_scales={list(sides)} must be some of the model's scales [1, 2, 4] in their order"):
        sample(use_scales=sides)


def test_models_that_were_trained_with_all_scales() -> None:
    with refused("use_scales=[1, 4] leaves scales out", "train one with scale_drop"):
        sample(use_scales=(1, 4))
    model, vqvae = models(scale_drop=0.3)
    with refused("use_scales=[1, 4] leaves scales out"):
        generate(model, vqvae, LABELS, SamplingParams(use_scales=(1, 4)), refiner=Refiner(models()[0], 2))


def test_scales_cannot_be_left_out_of_an_edit() -> None:
    model, vqvae = models(scale_drop=0.3)
    known = ForcedTokens(random_tokens(3, 21), torch.zeros(3, 21, dtype=torch.bool))
    with refused("use_scales", "an edit keeps"):
        generate(model, vqvae, LABELS, SamplingParams(use_scales=(1, 4)), forced=known)
