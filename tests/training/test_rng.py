"""What is random in a step follows from seed, step, purpose and the sample's place, and from nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from var.sampling.logits import mix_seed
from var.training.rng import StepRNG

CPU = torch.device("cpu")
BATCH = 12


def draws(indices: range = range(BATCH), seed: int = 3, step: int = 7) -> StepRNG:
    return StepRNG(seed, step, BATCH, indices, CPU)


@given(st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_a_sample_draws_the_same_however_the_batch_is_divided(world: int, accumulate: int) -> None:
    whole = draws().uniform("flip", 2, 3)
    parts = world * accumulate
    seen = torch.full_like(whole, -1.0)
    for part in range(parts):
        indices = range(part, BATCH, parts)
        mine = draws(indices).uniform("flip", 2, 3)
        assert mine.shape == (len(indices), 2, 3)
        seen[list(indices)] = mine
    assert torch.equal(seen, whole)


@pytest.mark.parametrize("indices", [range(4, 8), range(2, 11, 4), range(BATCH - 1, BATCH), range(0)])
def test_indices_are_rows_of_the_whole_batch(indices: range) -> None:
    assert torch.equal(draws(indices).uniform("a", 5), draws().uniform("a", 5)[list(indices)])


@pytest.mark.parametrize("indices", [range(4, 8), range(2, 11, 4), range(0)])
def test_every_sample_has_a_seed_of_its_own(indices: range) -> None:
    whole = draws().seeds("mask")
    assert draws(indices).seeds("mask") == [whole[index] for index in indices]
    others = draws().seeds("a"), draws(seed=4).seeds("mask"), draws(step=8).seeds("mask")
    assert len({*whole, *(seed for seeds in others for seed in seeds)}) == 4 * BATCH


def test_numbers_are_uniform_and_of_every_sample_its_own() -> None:
    whole = StepRNG(0, 0, 4096, range(4096), CPU).uniform("a")
    assert whole.shape == (4096,)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() < 1
    counts = torch.histc(whole, bins=8, min=0, max=1)
    assert (counts - 512).abs().max() < 110  # five standard deviations
    assert len(whole.unique()) > 4090


def test_asking_again_gives_the_same_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = draws().uniform("a", 4)
    draws().integers("a", 9, 4)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(100)
    assert torch.equal(draws().uniform("a", 4), first)


@pytest.mark.parametrize("other", [{"seed": 4}, {"step": 8}])
def test_another_seed_or_step_draws_others(other: dict[str, Any]) -> None:
    assert not torch.isclose(draws().uniform("a"), draws(**other).uniform("a")).any()
    assert draws().integers("a", 10**6, 8) != draws(**other).integers("a", 10**6, 8)


def test_another_purpose_draws_others() -> None:
    purposes = ["label drop", "stochastic depth", "quantiser dropout", "DiffAugment real", "DiffAugment fake"]
    drawn = torch.stack([draws().uniform(purpose) for purpose in purposes])
    assert len(drawn.unique()) == drawn.numel()


def test_seed_and_step_do_not_stand_in_for_each_other() -> None:
    assert not torch.equal(draws(seed=1, step=2).uniform("a"), draws(seed=2, step=1).uniform("a"))
    assert not torch.equal(draws(seed=0, step=5).uniform("a"), draws(seed=5, step=0).uniform("a"))


def test_integers_concern_the_whole_batch_and_are_within_bounds() -> None:
    ours = draws(range(0, BATCH, 2)).integers("restart: sample", 5, 200)
    assert ours == draws(range(1, BATCH, 2)).integers("restart: sample", 5, 200)
    assert set(ours) == {0, 1, 2, 3, 4}
    assert all(isinstance(number, int) for number in ours)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 2**31))
@settings(deadline=None)
def test_a_seed_of_words_fits_torch_and_depends_on_every_word(words: list[int], which: int, change: int) -> None:
    seed = mix_seed(*words)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
    other = list(words)
    other[which % len(words)] = (other[which % len(words)] + change) % 2**32
    assert mix_seed(*other) != seed
    assert mix_seed(*words) == seed
