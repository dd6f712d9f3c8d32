"""Health of the codebook against counts made by hand, and the vectors that scales look up."""

import math

import pytest
import torch
from helpers import LATENT, SIDES, VOCAB, largest_difference, normal, random_tokens, small_quantizer
from torch import Tensor

from tokenizer.quantizer import resize_down
from var.training.codebook import CodebookHealth, count_tokens, describe, lookup_vectors

K, V = 2, 6


def counts(*rows: dict[int, int]) -> Tensor:
    """(len(rows), V) from {codeword: count}."""
    result = torch.zeros(len(rows), V, dtype=torch.int64)
    for k, row in enumerate(rows):
        for code, count in row.items():
            result[k, code] = count
    return result


def met(*codes: int) -> Tensor:
    """(K, V): the first scale met these once each, the second the first of them."""
    return counts(dict.fromkeys(codes, 1), {codes[0]: 1})


# --- usage and perplexity


@pytest.mark.parametrize("times", [1, 50])
def test_a_scale_that_uses_all_codewords_alike_reaches_one(times: int) -> None:
    of = describe(counts(dict.fromkeys(range(V), times)))
    assert of["usage"].tolist() == [1.0]
    assert of["perplexity"].tolist() == pytest.approx([1.0], rel=1e-6)


def test_a_scale_that_uses_one_codeword_alone() -> None:
    of = describe(counts({4: 1000}))
    assert of["usage"].tolist() == pytest.approx([1 / V])
    assert of["perplexity"].tolist() == pytest.approx([1 / V])


def test_a_scale_with_few_tokens_is_measured_by_what_it_could_reach() -> None:
    few = counts({0: 1, 5: 1, 2: 1}, {0: 2, 5: 1}, {3: 3}, {1: 1})
    of = describe(few)
    assert of["usage"].tolist() == pytest.approx([1.0, 2 / 3, 1 / 3, 1.0])
    two_to_one = math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3))
    assert of["perplexity"].tolist() == pytest.approx([1.0, two_to_one / 3, 1 / 3, 1.0])


def test_perplexity_is_the_exponential_of_the_entropy_over_the_codebook() -> None:
    of = describe(counts({0: 50, 1: 25, 2: 25}))
    assert of["usage"].tolist() == pytest.approx([3 / V])
    assert of["perplexity"].tolist() == pytest.approx([2**1.5 / V])  # 1.5 bits


def test_a_scale_that_met_nothing_uses_nothing() -> None:
    of = describe(counts({}, {0: 1}))
    assert of["usage"].tolist() == [0.0, 1.0]
    assert torch.isfinite(of["perplexity"]).all()


# --- windows and ages


def test_a_window_adds_up_steps_and_the_next_one_begins_empty() -> None:
    health = CodebookHealth(K, V)
    health.count(counts({0: 2}, {1: 4}))
    health.count(counts({3: 2}, {1: 4}))
    assert health.steps == 2
    assert torch.equal(health.counts, counts({0: 2, 3: 2}, {1: 8}))
    of = health.close_window()
    assert of["usage"].tolist() == pytest.approx([2 / 4, 1 / V])  # of four tokens, of more tokens than codewords
    assert health.steps == 0
    assert not health.counts.any()
    health.count(counts({5: 1}, {5: 1}))
    assert health.close_window()["usage"].tolist() == [1.0, 1.0]


def test_windows_do_not_touch_what_was_handed_in_or_out() -> None:
    health, step = CodebookHealth(K, V), met(0)
    health.count(step)
    kept = {name: value.clone() for name, value in health.state_dict().items()}
    handed = health.state_dict()
    health.close_window()
    assert torch.equal(step, met(0))
    assert torch.equal(handed["counts"], kept["counts"])


def test_a_codeword_is_dead_after_a_window_without_any_scale_meeting_it() -> None:
    health = CodebookHealth(K, V)
    health.count(counts({0: 1, 1: 1}, {2: 1}))
    assert health.dead(window=1) == [3, 4, 5]
    for step in range(2, 5):
        health.count(counts({0: 1}, {2: 9}))
        assert health.dead(window=4) == ([3, 4, 5] if step == 4 else [])
        assert health.dead(window=step - 1) == [1, 3, 4, 5]
    health.count(counts({4: 1}, {}))
    assert health.age.tolist() == [1, 4, 1, 5, 0, 5]
    assert health.dead(window=4) == [1, 3, 5]


def test_ages_outlive_windows() -> None:
    health = CodebookHealth(K, V)
    for _ in range(3):
        health.count(met(0))
        health.close_window()
    assert health.age.tolist() == [0, 3, 3, 3, 3, 3]


def test_state_goes_on_where_it_stopped() -> None:
    health, other = CodebookHealth(K, V), CodebookHealth(K, V)
    for codes in ((0, 1), (1,), (2, 3)):
        health.count(met(*codes))
    state = {name: value.clone() for name, value in health.state_dict().items()}
    other.load_state_dict({name: value.clone() for name, value in state.items()})
    for each in (health, other):
        each.count(met(1, 4))
    assert torch.equal(other.age, health.age)
    assert other.steps == health.steps == 4
    ours, theirs = health.close_window(), other.close_window()
    assert all(torch.equal(ours[name], theirs[name]) for name in ("usage", "perplexity"))
    assert other.dead(3) == health.dead(3)
    assert state["steps"] == 3  # loading it took no hold of it


# --- what a batch holds


def test_tokens_are_counted_for_each_scale() -> None:
    tokens = torch.cat([torch.full((2, 1), 3), torch.full((2, 4), 5), torch.arange(32).view(2, 16)], dim=1)
    of = count_tokens(small_quantizer(), tokens)
    expected = torch.zeros(3, VOCAB, dtype=torch.int64)
    expected[0, 3], expected[1, 5], expected[2] = 2, 8, 1
    assert torch.equal(of, expected)


def test_counts_of_parts_add_up_to_those_of_the_batch() -> None:
    quantizer, tokens = small_quantizer(), random_tokens(6, 21)
    parts = torch.stack([count_tokens(quantizer, tokens[i::3]) for i in range(3)])
    assert torch.equal(parts.sum(dim=0), count_tokens(quantizer, tokens))


@pytest.mark.parametrize("cosine", [False, True])
@torch.no_grad()
def test_vectors_seen_are_those_that_were_looked_up(cosine: bool) -> None:
    quantizer, features = small_quantizer(cosine=cosine), normal(3, LATENT, 4, 4) * 2
    tokens = quantizer.encode(features)
    seen = lookup_vectors(quantizer, features)
    assert [part.shape for part in seen] == [(3, side * side, LATENT) for side in SIDES]
    for k, (part, chosen) in enumerate(zip(seen, quantizer.scales.split(tokens), strict=True)):
        coarser = quantizer.decode(tokens, num_scales=k) if k else torch.zeros_like(features)
        expected = resize_down(features - coarser, SIDES[k]).flatten(2).mT
        assert largest_difference(part, expected) < 1e-5
        maps = part.mT.reshape(3, LATENT, SIDES[k], SIDES[k])
        assert torch.equal(quantizer.nearest(maps), chosen)


@torch.no_grad()
def test_vectors_seen_are_float32_of_features_that_are_not() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4)
    seen = lookup_vectors(quantizer, features.bfloat16())
    exact = lookup_vectors(quantizer, features.bfloat16().float())
    assert all(part.dtype == torch.float32 for part in seen)
    assert all(torch.equal(a, b) for a, b in zip(seen, exact, strict=True))
