"""Orders in which the cells of a grid are predicted: an image's patches (AIM), or the tokens of a map (Raster)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from tokenizer.errors import InputError

Order = Literal["raster", "spiral", "checkerboard", "z-curve", "random"]


def sequence_order(kind: Order, side: int, seed: int = 0) -> Tensor:
    """Indices of the side x side cells of a grid in the order of their prediction, (side * side,) int64 on the CPU.

    Raster goes row by row, spiral outwards from the middle, checkerboard over all black fields and then all white ones,
    z-curve by the interleaved bits of row and column (Morton's order): all of a square of 2^n x 2^n cells are visited
    before the next. Random is one permutation, from the seed.

    Raises InputError: another kind.
    """
    if kind not in get_args(Order):
        raise InputError(f"order={kind!r} is unknown: take one of {', '.join(get_args(Order))}")
    indices = torch.arange(side * side, device="cpu")
    rows, columns = indices // side, indices % side
    if kind == "raster":
        return indices
    if kind == "checkerboard":
        return torch.cat([indices[(rows + columns) % 2 == color] for color in (0, 1)])
    if kind == "z-curve":
        return interleave_bits(rows, columns).argsort()
    if kind == "random":
        return torch.randperm(side * side, generator=torch.Generator().manual_seed(seed), device="cpu")
    return torch.tensor(_spiral(side), device="cpu").flip(0)


def interleave_bits(rows: Tensor, columns: Tensor) -> Tensor:
    """Return Morton's code of each cell, (n,) int64: bits of row and column in turn, the row's the higher ones."""
    bits = range(int(max(rows.max(), columns.max())).bit_length())
    parts = [((rows >> bit & 1) << 2 * bit + 1) | ((columns >> bit & 1) << 2 * bit) for bit in bits]
    return torch.stack([torch.zeros_like(rows), *parts]).sum(dim=0)


def _spiral(side: int) -> list[int]:
    """Order the cells inwards along the edge, clockwise from the top left."""
    rest = [list(range(row * side, (row + 1) * side)) for row in range(side)]
    visited: list[int] = []
    while rest:
        visited += rest.pop(0)
        rest = [list(column) for column in zip(*rest, strict=True)]
        rest.reverse()  # turned left, so that the next edge is on top
    return visited
