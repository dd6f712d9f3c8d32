"""Random masks of an image's patches, as functions of uniform random numbers.

B batch, N patches, M cells that are masked or visible as a whole: patches (MAE) or squares of them (SimMIM).
"""

import torch
from torch import Tensor

from tokenizer.errors import InputError


def count_masked(cells: int, ratio: float) -> int:
    """Return the number of masked cells of an image. Raises InputError: none of them is masked, or all."""
    count = round(ratio * cells)
    if not 0 < count < cells:
        rule = "at least one must be masked and one visible, change the ratio or the sizes"
        raise InputError(f"mask_ratio={ratio:g} masks {count} of {cells} cells of an image: {rule}")
    return count


def choose_cells(noise: Tensor, count: int) -> Tensor:
    """Choose `count` cells of each image, every subset alike: noise (B, M), uniform -> indices (B, count) int64."""
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
    """Masks of square cells, row by row, (B, M), -> those of their side x side patches each: (B, N)."""
    cells = round(mask.shape[1] ** 0.5)
    squares = mask.unflatten(1, (cells, cells))
    return squares.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2).flatten(1)
