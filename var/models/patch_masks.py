"""Random masks of an image's patches, as functions of uniform random numbers.

B batch, N patches, M cells that are masked or visible as a whole: patches (MAE) or squares of them (SimMIM).
"""

import torch
from torch import Tensor

from tokenizer.errors import InputError


def count_masked(cells: int, ratio: float) -> int:
    """Return the number of masked cells of an image: ratio * M, rounded, `cells` being M.

    Raises InputError: none of them is masked, or all.
    """
    count = round(ratio * cells)
    if not 0 < count < cells:
        rule = "at least one must be masked and one visible, change the ratio or the sizes"
        raise InputError(f"mask_ratio={ratio:g} masks {count} of {cells} cells of an image: {rule}")
    return count


def choose_cells(noise: Tensor, count: int) -> Tensor:
    """Choose cells of each image, every subset as likely: noise (B, M), uniform -> indices (B, count) int64, unsorted.

    Args:
        count: in 0..M.
    """
    return noise.argsort(dim=1)[:, :count]


def mark_cells(indices: Tensor, cells: int) -> Tensor:
    """Mark the cells of these indices: (B, n) int64 in 0..M - 1 -> (B, M) bool, true where marked; `cells` is M."""
    return torch.zeros(len(indices), cells, dtype=torch.bool, device=indices.device).scatter(1, indices, True)


def find_cells(mask: Tensor, count: int) -> Tensor:
    """Find the cells where a mask is true, in their order: (B, M) bool -> indices (B, count) int64.

    Where an image has fewer of them, the first of its other cells come after them.
    """
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def squares_to_patches(mask: Tensor, side: int) -> Tensor:
    """Masks of squares -> masks of their patches, row by row both: (B, M) -> (B, N), N being M * side**2.

    Args:
        side: of a square in patches; the image has as many squares in a row as in a column.
    """
    cells = round(mask.shape[1] ** 0.5)
    squares = mask.unflatten(1, (cells, cells))
    return squares.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2).flatten(1)
