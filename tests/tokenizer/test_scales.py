"""The ladder of token maps."""

import dataclasses

import pytest
import torch
from helpers import refused

from tokenizer.scales import SCALES_256, SCALES_512, Scales


@pytest.mark.parametrize(("scales", "count", "total"), [(SCALES_256, 10, 680), (SCALES_512, 10, 2240)])
def test_presets_have_the_lengths_of_the_paper(scales: Scales, count: int, total: int) -> None:
    assert len(scales) == count
    assert scales.total == total == sum(side**2 for side in scales.sides)


def test_lengths_offsets_and_levels() -> None:
    scales = Scales((1, 2, 4))
    assert scales.lengths == (1, 4, 16)
    assert scales.offsets == (0, 1, 5, 21)
    assert scales.levels().tolist() == [0] + [1] * 4 + [2] * 16
    assert scales.levels().dtype == torch.int64


def test_levels_stay_on_the_cpu_while_models_are_built_without_memory() -> None:
    with torch.device("meta"):
        assert Scales((1, 2)).levels().tolist() == [0, 1, 1, 1, 1]


def test_split_cuts_where_join_sews() -> None:
    scales = Scales((1, 2, 4))
    tokens = torch.arange(42).reshape(2, 21)
    parts = scales.split(tokens)
    assert [part.shape for part in parts] == [(2, 1), (2, 4), (2, 16)]
    assert parts[1].tolist() == [[1, 2, 3, 4], [22, 23, 24, 25]]
    assert torch.equal(scales.join(list(parts)), tokens)
    assert scales.split(torch.zeros(2, 21, 3))[2].shape == (2, 16, 3)  # further dimensions come along


def test_split_refuses_another_number_of_tokens() -> None:
    with refused("20", "[1, 2, 4]", "21"):
        Scales((1, 2, 4)).split(torch.zeros(1, 20))


@pytest.mark.parametrize("sides", [(), (0, 1), (-1, 2), (1, 2, 2), (4, 2)])
def test_sides_that_are_no_ladder_are_refused(sides: tuple[int, ...]) -> None:
    with refused(str(list(sides)), "increasing"):
        Scales(sides)


def test_scales_are_values() -> None:
    assert Scales((1, 2)) == Scales((1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scales((1, 2)).sides = (1, 3)  # type: ignore[misc]
