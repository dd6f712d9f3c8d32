"""The scale schedule, the sides of the token maps: 1x1 first, the full latent map last (VAR paper, section 3.2).

B batch, K scales, L tokens of all scales.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tokenizer.errors import InputError, abbreviate

MOST_TOKENS = 2**17  # of all scales together, 49 times as many as of 512 px images


@dataclass(frozen=True)
class Scales:
    """Sides of the square token maps, coarse to fine. Tokens of a map are row-major; maps are joined coarse to fine.

    Raises:
        InputError: the sides are empty, not positive, or not strictly increasing; more than MOST_TOKENS.
    """

    sides: tuple[int, ...]

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip(self.sides, self.sides[1:], strict=False))
        if not self.sides or self.sides[0] < 1 or not increasing:
            given = abbreviate(list(self.sides))
            raise InputError(f"scales {given} must be positive sides in increasing order, such as [1, 2, 4, 8]")
        if self.total > MOST_TOKENS:
            raise InputError(f"scales {abbreviate(list(self.sides))} have {self.total} tokens: at most {MOST_TOKENS}")

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(side * side for side in self.sides)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each scale in the joined sequence, and its end as the last entry (K + 1 numbers)."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def total(self) -> int:
        """L, the number of tokens of all scales together."""
        return self.offsets[-1]

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(B, L, ...) -> K views (B, side * side, ...).

        Raises:
            InputError: the sequence does not have L tokens.
        """
        if tokens.ndim < 2 or tokens.shape[1] != self.total:
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)} given, the scales {list(self.sides)} need (B, {self.total})"
            )
        return tokens.split(self.lengths, dim=1)

    def join(self, per_scale: list[Tensor]) -> Tensor:
        """K tensors (B, side * side, ...) -> (B, L, ...)."""
        return torch.cat(per_scale, dim=1)

    def levels(self) -> Tensor:
        """(L,) int64 on the CPU: the scale that each token belongs to."""
        return torch.cat([torch.full((length,), k, device="cpu") for k, length in enumerate(self.lengths)])


SCALES_256 = Scales((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))  # 256 px at f16, L = 680
SCALES_512 = Scales((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))  # 512 px at f16, L = 2240
