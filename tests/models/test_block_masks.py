"""Masks of blocks: counts, sizes and aspects, and that no place is favored."""

import numpy as np
import pytest
import torch
from helpers import refused
from scipy import stats

from var.models.block_masks import BlockMasks

IMAGENET = BlockMasks(side=14, ratio=0.4)


def drawn_blocks(masks: BlockMasks, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """Height, width, top and left of each block of a mask, from the random numbers it takes."""
    numbers: list[int] = []
    generator = np.random.default_rng(seed)

    class Recorder:
        def integers(self, bound: int) -> int:
            numbers.append(int(generator.integers(bound)))
            return numbers[-1]

    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda seed: Recorder())
        masks.draw([seed])
    shapes = masks.shapes.tolist()
    return [(*shapes[shape], *place) for shape, *place in zip(*[iter(numbers)] * 3, strict=True)]


def test_a_mask_is_the_union_of_blocks_drawn_until_the_share_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(200):
        mask, before = np.zeros((14, 14), dtype=bool), 0
        for height, width, top, left in drawn_blocks(IMAGENET, seed, monkeypatch):
            before = int(mask.sum())
            assert before < 78  # 40% of 196
            assert 16 <= height * width <= max(16, 78 - before)
            assert 0.3 <= height / width <= 1 / 0.3
            assert 0 <= top <= 14 - height
            assert 0 <= left <= 14 - width
            mask[top : top + height, left : left + width] = True
        assert mask.sum() >= 78
        assert np.array_equal(IMAGENET.draw([seed])[0].numpy(), mask.ravel())


def test_about_the_share_is_masked_and_every_patch_at_times() -> None:
    masks = IMAGENET.draw(range(4000))
    assert masks.dtype == torch.bool
    counts = masks.sum(dim=1)
    assert counts.min() >= 78
    assert counts.max() <= IMAGENET.largest == 78 - 1 + 16
    of_pairs = BlockMasks(side=4, ratio=0.4, min_block=2)
    assert of_pairs.draw(range(200)).sum(dim=1).max() == of_pairs.largest == 7
    assert 78 <= counts.float().mean() < 86
    rates = masks.float().mean(dim=0)
    assert rates.min() > 0.03
    assert rates.max() < 0.8


def test_masks_have_no_side_that_they_prefer() -> None:
    """The numbers of masked patches are distributed alike in mirrored and turned places."""
    maps = IMAGENET.draw(range(4000)).view(-1, 14, 14).float()
    for other in (maps.flip(1), maps.flip(2), maps.transpose(1, 2)):
        deviation = (maps[:2000].mean(dim=0) - other[2000:].mean(dim=0)) / (2 * 0.25 / 2000) ** 0.5
        assert deviation.abs().max() < 4.5  # of 196 nearly normal numbers, independent halves of the masks
        assert stats.ks_2samp(maps[:2000, :4].sum(dim=(1, 2)), other[2000:, :4].sum(dim=(1, 2))).pvalue > 1e-3


def test_heights_and_widths_that_fit_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first block; of continuous ones that would be a uniform size and a log-uniform aspect."""
    counts = np.zeros((15, 15), dtype=int)
    for seed in range(600):
        height, width, *_ = drawn_blocks(IMAGENET, seed, monkeypatch)[0]
        counts[height, width] += 1
    assert stats.chisquare(counts[tuple(IMAGENET.shapes.T)]).pvalue > 1e-3


def test_a_mask_follows_from_its_seed_alone() -> None:
    masks = IMAGENET.draw([5, 2**62, 5])
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[1:2], IMAGENET.draw([2**62]))


@pytest.mark.parametrize(("side", "ratio", "min_block", "min_aspect"), [(6, 0.9, 7, 0.9), (3, 0.5, 1, 0.3)])
def test_small_images_end_too(side: int, ratio: float, min_block: int, min_aspect: float) -> None:
    masks = BlockMasks(side, ratio, min_block, min_aspect)
    assert (masks.draw(range(50)).sum(dim=1) >= masks.count).all()


def test_blocks_that_cannot_be_are_refused() -> None:
    with refused("min_block=16", "at most the 14 of 6x6", "lower min_block"):
        BlockMasks(side=6, ratio=0.4)
    with refused("min_block=5", "min_aspect=1"):
        BlockMasks(side=4, ratio=0.4, min_block=5, min_aspect=1.0)
    with refused("mask_ratio=0.01 masks 0 of 36"):
        BlockMasks(side=6, ratio=0.01)
