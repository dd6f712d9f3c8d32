"""Masks of rectangular blocks of patches (BEiT, arXiv 2106.08254, section 2.3 and algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError
from var.models.patch_masks import count_masked


@dataclass(frozen=True)
class BlockMasks:
    """Blocks at random places of an image of side x side patches, until the share of masked patches is reached.

    A block has at least min_block patches and at most as many as are still missing, or the fewest that it can have, so
    that somewhat more than the share may be masked in the end. Its height over its width is between min_aspect and
    1 / min_aspect. Blocks may overlap. All pairs of whole numbers that fit as height and width are equally likely. Of
    continuous ones that would be a uniform size and a log-uniform aspect: the paper's algorithm 1 draws both uniformly,
    its released code the aspect log-uniformly.

    Raises InputError: sizes that cannot work.
    """

    side: int  # of the image in patches
    ratio: float  # of the patches that are masked, between 0 and 1
    min_block: int = 16  # patches of a block
    min_aspect: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.ratio < 1 and 0 < self.min_aspect <= 1):
            raise InputError(
                f"mask_ratio={self.ratio:g} must be between 0 and 1, and min_aspect={self.min_aspect:g} in (0, 1]"
            )
        if not len(self.shapes):
            raise InputError(
                f"no block has at least min_block={self.min_block} patches, at most the {self.count} of "
                f"{self.side}x{self.side} that are masked, and min_aspect={self.min_aspect:g}: lower min_block"
            )

    @property
    def count(self) -> int:
        """The number of patches that are masked at least."""
        return count_masked(self.side**2, self.ratio)

    @property
    def largest(self) -> int:
        """The number of patches that are masked at most: one is missing, and a block of the fewest patches is added."""
        return min(self.count - 1 + int(self.shapes[0].prod()), self.side**2)

    @property
    def shapes(self) -> NDArray[np.int64]:
        """(n, 2): heights and widths of the blocks that may be drawn, the fewest patches first."""
        heights, widths = (1 + axis.ravel() for axis in np.indices((self.side, self.side)))
        sizes, aspects = heights * widths, heights / widths
        allowed = (sizes >= self.min_block) & (sizes <= self.count)
        allowed &= (aspects >= self.min_aspect) & (aspects <= 1 / self.min_aspect)
        order = np.argsort(sizes[allowed], kind="stable")
        return np.stack([heights[allowed], widths[allowed]], axis=1)[order]

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Draw a mask for each of B seeds, B >= 1: (B, side * side) bool on the CPU, row by row, true where masked."""
        shapes = self.shapes
        return torch.tensor(np.stack([self._draw_mask(seed, shapes) for seed in seeds])).flatten(1)

    def _draw_mask(self, seed: int, shapes: NDArray[np.int64]) -> NDArray[np.bool_]:
        random, sizes = np.random.default_rng(seed), shapes.prod(axis=1)
        mask = np.zeros((self.side, self.side), dtype=bool)
        while (missing := self.count - int(mask.sum())) > 0:
            # Blocks of no more patches than are missing; where fewer are missing than any block has, the smallest ones.
            fitting = np.searchsorted(sizes, max(missing, sizes[0]), side="right")
            height, width = shapes[random.integers(fitting)]
            top, left = random.integers(self.side - height + 1), random.integers(self.side - width + 1)
            mask[top : top + height, left : left + width] = True
        return mask
