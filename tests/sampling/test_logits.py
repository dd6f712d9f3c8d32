"""From logits to tokens: pure functions against brute force and statistics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import largest_difference, normal, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest

from var.editing.params import BlendParams
from var.sampling.logits import (
    RandomStreams,
    cfg_at_scale,
    classifier_free_guidance,
    derive_seed,
    filter_logits,
    gumbel_softmax,
    sample_tokens,
)
from var.sampling.params import SamplingParams


def kept_by_hand(logits: NDArray[Any], top_k: int, top_p: float) -> set[int]:
    """Which of one position's tokens stay, for logits without ties."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    if not top_p:
        return set(order)
    weights = [math.exp(logits[i] - logits[order[0]]) for i in order]
    total, kept = 0.0, set()
    for i, weight in zip(order, weights, strict=True):
        kept.add(i)
        total += weight
        if total / sum(weights) > top_p:
            break
    return kept


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(0, 40), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_filter_equals_brute_force(seed: int, vocab: int, top_k: int, top_p: float) -> None:
    logits = normal(2, 3, vocab, seed=seed) * 3
    before = logits.clone()
    filtered = filter_logits(logits, top_k, top_p)
    assert torch.equal(logits, before)
    rows = zip(filtered.flatten(0, 1), logits.flatten(0, 1), strict=True)
    for ours, row in rows:
        expected = kept_by_hand(row.double().numpy(), top_k, top_p)
        # A set whose probability is p to the last bits may be cut on either side.
        close = kept_by_hand(row.double().numpy(), top_k, max(top_p - 1e-6, 0.0 if top_p == 0 else 1e-9))
        wide = kept_by_hand(row.double().numpy(), top_k, min(top_p + 1e-6, 1.0) if top_p else 0.0)
        finite = set(ours.isfinite().nonzero().flatten().tolist())
        assert close <= finite <= wide
        assert close <= expected <= wide
        assert row.argmax().item() in finite
        assert torch.equal(ours[ours.isfinite()], row[ours.isfinite()])
        assert (ours[~ours.isfinite()] == -math.inf).all()


def test_filter_by_example() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for top_p, count in ((0.1, 1), (0.45, 2), (0.65, 2), (0.75, 3), (0.95, 4)):
        assert filter_logits(logits, top_p=top_p).isfinite().tolist() == [i < count for i in range(4)]
    # top-p follows top-k: of [4/7, 3/7] the best alone exceeds 0.5, of all four it does not.
    assert filter_logits(logits, top_k=2, top_p=0.5).isfinite().tolist() == [True, False, False, False]
    assert filter_logits(logits, top_p=0.5).isfinite().tolist() == [True, True, False, False]


def test_the_kept_set_must_exceed_p_not_reach_it() -> None:
    logits = -1e-9 * torch.arange(4)  # exact quarters of four different logits
    assert filter_logits(logits, top_p=0.5).isfinite().sum() == 3
    assert filter_logits(logits, top_p=0.25).isfinite().sum() == 2


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (4096, 0.0), (10**6, 0.0), (0, 1.0)])
def test_filters_that_keep_everything(top_k: int, top_p: float) -> None:
    for seed in range(5):
        logits = normal(4, 4096, seed=seed)
        filtered = filter_logits(logits, top_k, top_p)
        assert torch.equal(filtered, logits)
        assert filtered.data_ptr() != logits.data_ptr()


def test_ties() -> None:
    tied = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    kept = filter_logits(tied, top_k=2).isfinite().tolist()
    assert kept == [False, True, True, True, False]  # equal logits stay or go together
    assert filter_logits(torch.zeros(6), top_k=1).isfinite().all()
    for top_k in (0, 2):
        assert filter_logits(tied, top_k, top_p=0.01).isfinite().tolist() == kept


def test_logits_removed_before_stay_removed() -> None:
    logits = torch.tensor([1.0, -math.inf, 0.5, -math.inf])
    assert filter_logits(logits, top_k=3, top_p=0.99).isfinite().tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_filter_keeps_the_number_type(dtype: torch.dtype) -> None:
    logits = (torch.arange(8) / 2).to(dtype)
    assert torch.equal(filter_logits(logits, 3, 0.9), filter_logits(logits.float(), 3, 0.9).to(dtype))
    assert filter_logits(logits, 3, 0.9).dtype == dtype


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((-0.5, 0, 0.0), ("cfg=-0.5",)),
        ((math.nan, 0, 0.0), ("cfg=nan",)),
        ((math.inf, 0, 0.0), ("cfg=inf", "finite")),
        ((1.5, -1, 0.0), ("top_k=-1", "0 (keeps all tokens)")),
        ((1.5, 0, -0.1), ("top_p=-0.1", "[0, 1]")),
        ((1.5, 0, 1.01), ("top_p=1.01",)),
        ((1.5, 0, math.nan), ("top_p=nan",)),
    ],
)
def test_options_out_of_range_are_refused(options: tuple[float, int, float], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        SamplingParams(*options)
    if options[0] == 1.5:
        with refused(*parts):
            filter_logits(torch.zeros(4), *options[1:])


def test_options_at_the_edges_are_accepted() -> None:
    for options in ((0.0, 0, 0.0), (30.0, 10**6, 1.0)):
        SamplingParams(*options)


@given(st.integers(0, 10**6), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_draw_never_returns_a_removed_token(seed: int, kept: int) -> None:
    logits = torch.full((1, 64, 50), -math.inf)
    places = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:kept]
    logits[:, :, places] = normal(64, kept, seed=seed) * 10
    uniform = torch.rand(1, 64, generator=torch.Generator().manual_seed(seed))
    uniform[:, :6] = torch.tensor([0, 1e-38, 1e-7, 1 - 2**-24, 1 - 2**-23, 0.5])
    before = logits.clone(), uniform.clone()
    tokens = sample_tokens(logits, uniform)
    assert tokens.shape == (1, 64)
    assert tokens.dtype == torch.int64
    assert logits.gather(-1, tokens[..., None]).isfinite().all()
    assert torch.equal(logits, before[0])
    assert torch.equal(uniform, before[1])


@pytest.mark.parametrize("vocab", [4096, 50000])
def test_draw_at_the_ends_of_the_unit_interval(vocab: int) -> None:
    logits = torch.full((1, 2, vocab), -math.inf)
    logits[..., 3:-3] = normal(2, vocab - 6)
    ends = torch.tensor([[0.0, 1 - 2**-24]])
    assert sample_tokens(logits, ends).tolist() == [[3, vocab - 4]]


def test_draw_splits_the_unit_interval_by_probability() -> None:
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(1, 6, 4)
    assert sample_tokens(logits, torch.tensor([[0.0, 0.49, 0.51, 0.74, 0.76, 0.99]])).tolist() == [[0, 0, 2, 2, 3, 3]]


def test_draw_matches_the_probabilities() -> None:
    logits = filter_logits(normal(1, 1, 12, seed=3) * 1.5, top_k=9)
    probabilities = logits[0, 0].double().softmax(dim=-1).numpy()
    number = 20_000
    uniform = RandomStreams(0, [1], [0]).uniform(number)
    counts = np.bincount(sample_tokens(logits.expand(1, number, 12), uniform)[0].numpy(), minlength=12)
    alive = probabilities > 0
    assert alive.sum() == 9
    assert counts[~alive].sum() == 0
    assert chisquare(counts[alive], probabilities[alive] * number).pvalue > 1e-3


def test_guidance() -> None:
    conditional, unconditional = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    expected = 2.5 * conditional - 1.5 * unconditional
    assert largest_difference(classifier_free_guidance(conditional, unconditional, 1.5), expected) < 1e-5
    assert torch.equal(classifier_free_guidance(conditional, unconditional, 0.0), conditional)


def test_guidance_rises_linearly_from_0_to_cfg() -> None:
    assert [cfg_at_scale(3.0, k, 4) for k in range(4)] == pytest.approx([0, 1, 2, 3])
    assert cfg_at_scale(3.0, 0, 1) == 0  # a single scale: no division by zero


@pytest.mark.parametrize("k", [0, 3, 9])
def test_smooth_choice_is_a_distribution_over_the_tokens_left(k: int) -> None:
    logits = filter_logits(normal(2, 5, 40), top_k=7)
    uniform = torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(0))
    uniform[0, 0, 0], uniform[0, 0, 1] = 0.0, 1 - 2**-24
    before = logits.clone(), uniform.clone()
    weights = gumbel_softmax(logits, uniform, k, 10)
    assert largest_difference(weights.sum(dim=-1), torch.ones(2, 5)) < 1e-5
    assert torch.equal(weights > 0, (weights > 0) & logits.isfinite())
    assert torch.equal(logits, before[0])
    assert torch.equal(uniform, before[1])


def test_smooth_choice_is_the_formula() -> None:
    logits, uniform = normal(1, 2, 6), torch.rand(1, 2, 6, generator=torch.Generator().manual_seed(0))
    for k in range(4):
        gumbel = -np.log(-np.log(uniform.double().numpy()))
        scores = (logits.double().numpy() * (1 + k / 3) + gumbel) / max(0.27 * (1 - 0.95 * k / 3), 0.005)
        expected = np.exp(scores - scores.max(axis=-1, keepdims=True))
        expected /= expected.sum(axis=-1, keepdims=True)
        assert largest_difference(gumbel_softmax(logits, uniform, k, 4), torch.from_numpy(expected)) < 1e-4


def test_smooth_choice_hardens_from_scale_to_scale() -> None:
    logits, uniform = normal(4, 50, 30), torch.rand(4, 50, 30, generator=torch.Generator().manual_seed(1))
    largest = [gumbel_softmax(logits, uniform, k, 10).amax(dim=-1).mean().item() for k in (0, 5, 9)]
    assert largest[0] < largest[1] < largest[2]
    assert largest[2] > 0.97


def test_smooth_choice_picks_tokens_with_their_probabilities() -> None:
    logits, number = normal(1, 1, 6, seed=2), 10_000
    uniform = torch.rand(1, number, 6, generator=torch.Generator().manual_seed(5))
    chosen = gumbel_softmax(logits.expand(1, number, 6), uniform, 0, 10).argmax(dim=-1)
    expected = logits[0, 0].double().softmax(dim=-1).numpy() * number
    assert chisquare(np.bincount(chosen[0].numpy(), minlength=6), expected).pvalue > 1e-3


def test_streams_are_keyed_by_seed_label_and_index() -> None:
    alone = RandomStreams(3, [207], [1]).uniform(5)
    assert torch.equal(RandomStreams(3, [4, 207, 9], [0, 1, 7]).uniform(5)[1:2], alone)
    others = RandomStreams(3, [207, 208, 1], [2, 1, 207]).uniform(5)
    others = torch.cat([others, RandomStreams(4, [207], [1]).uniform(5), alone])
    assert len({tuple(row) for row in others.tolist()}) == 5


def test_streams_go_on_from_draw_to_draw() -> None:
    whole = RandomStreams(0, [1, 2], [0, 0])
    first, second = whole.uniform(3), whole.uniform(3)
    assert not torch.equal(first, second)
    again = RandomStreams(0, [1, 2], [0, 0])
    assert torch.equal(torch.stack([again.uniform(3), again.uniform(3)]), torch.stack([first, second]))
    assert whole.uniform(2, 4).shape == (2, 2, 4)


def test_streams_are_uniform() -> None:
    numbers = RandomStreams(0, list(range(50)), [0] * 50).uniform(100)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert kstest(numbers[:, 0].numpy(), "uniform").pvalue > 1e-3  # first numbers of different streams
    assert kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3


def test_streams_stay_what_they_are() -> None:
    """A change here changes every image that a seed stands for."""
    drawn = RandomStreams(0, [207, 207, 970], [0, 1, 0]).uniform(3)
    expected = [
        [0.29123127, 0.05350542, 0.42157131],
        [0.58251381, 0.87925673, 0.07178527],
        [0.31310326, 0.08827549, 0.96556252],
    ]
    assert largest_difference(drawn, torch.tensor(expected)) < 1e-7


def test_streams_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    RandomStreams(0, [1], [0]).uniform(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_negative_seed_is_refused() -> None:
    with refused("seed=-1"):
        RandomStreams(-1, [0], [0])


def test_seeds_of_images_that_are_drawn_one_after_the_other() -> None:
    assert [derive_seed(seed, 0) for seed in (0, 7, 2**62)] == [0, 7, 2**62]
    seeds = [derive_seed(seed, n) for seed in (0, 1, 2) for n in range(5)]
    assert len(set(seeds)) == 15
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [derive_seed(seed, n) for seed in (0, 1, 2) for n in range(5)]
    assert derive_seed(-1, 3) == -1  # for the streams to refuse


@pytest.mark.parametrize(("name", "value"), [("top_k", 1.5), ("top_k", True), ("cfg", "4"), ("smooth", 1)])
def test_options_of_another_type_are_refused(name: str, value: object) -> None:
    with refused(f"{name}={value!r} must be"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]  # that is what is tried
    with refused("dilate=1.5 must be a whole number"):
        BlendParams(dilate=1.5)  # type: ignore[arg-type]  # likewise
