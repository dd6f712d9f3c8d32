"""Random masks of patches: exact counts, every subset alike, whole squares."""

import pytest
import torch
from helpers import refused
from scipy import stats
from torch import Tensor

from var.models.patch_masks import choose_cells, count_masked, find_cells, mark_cells, squares_to_patches


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("cells", "ratio", "count"), [(196, 0.75, 147), (49, 0.6, 29), (36, 0.75, 27), (9, 0.6, 5)])
def test_every_image_has_the_same_number_of_masked_cells(cells: int, ratio: float, count: int) -> None:
    assert count_masked(cells, ratio) == count
    masked = mark_cells(choose_cells(uniform(50, cells), count), cells)
    assert masked.shape == (50, cells)
    assert masked.sum(dim=1).tolist() == [count] * 50
    assert len(masked.unique(dim=0)) > 1


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_ratios_that_mask_nothing_or_all(ratio: float) -> None:
    with refused(f"mask_ratio={ratio} masks {round(ratio * 9)} of 9 cells", "at least one must be masked"):
        count_masked(9, ratio)


def test_every_subset_is_as_likely() -> None:
    masked = mark_cells(choose_cells(uniform(5000, 5), 2), 5)
    subsets, counts = masked.unique(dim=0, return_counts=True)
    assert len(subsets) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_every_patch_is_masked_as_often() -> None:
    images, cells, count = 4000, 36, 27
    times = mark_cells(choose_cells(uniform(images, cells, seed=1), count), cells).sum(dim=0).double()
    share = count / cells
    # Exactly `count` are masked of every image, so the counts vary less than independent ones.
    distance = ((times - images * share) ** 2 / (images * share * (1 - share))).sum().item() * (cells - 1) / cells
    assert 1e-3 < stats.chi2.sf(distance, cells - 1) < 1 - 1e-3


def test_cells_are_found_in_their_order_and_others_make_up_the_number() -> None:
    mask = torch.tensor([[False, True, False, True], [True, True, True, False], [False, False, False, True]])
    assert find_cells(mask, 3).tolist() == [[1, 3, 0], [0, 1, 2], [3, 0, 1]]
    chosen = choose_cells(uniform(20, 9), 4)
    assert torch.equal(find_cells(mark_cells(chosen, 9), 4), chosen.sort(dim=1).values)


def test_squares_are_whole() -> None:
    squares = mark_cells(choose_cells(uniform(20, 9), 5), 9)
    masked = squares_to_patches(squares, 2)
    assert masked.shape == (20, 36)
    for b in range(20):
        for row in range(6):
            for column in range(6):
                assert masked[b, 6 * row + column] == squares[b, 3 * (row // 2) + column // 2]
    assert torch.equal(squares_to_patches(squares, 1), squares)
