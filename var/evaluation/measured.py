"""A mean over pictures with its standard error: what every measure of single pictures is told as."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError


class Measured(NamedTuple):
    """A mean over pictures.

    Attributes:
        mean: of the pictures' values.
        error: standard error of the mean: what it would vary by over other pictures of the same kind. None: one picture
            does not tell.
    """

    mean: float
    error: float | None

    def times(self, factor: float) -> "Measured":
        """In another unit."""
        return Measured(self.mean * factor, None if self.error is None else self.error * abs(factor))


def measured(values: Tensor, what: str) -> Measured:
    """(N,) values of pictures -> their mean, in float64.

    Raises:
        InputError: there are none, or some are not finite.
    """
    values = values.double()
    if not len(values):
        raise InputError(f"{what} of no picture cannot be told: give pictures")
    if not torch.isfinite(values).all():
        wrong = int((~torch.isfinite(values)).sum())
        raise InputError(f"{what} is not finite for {wrong} of {len(values)} pictures: the model's weights are damaged")
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return Measured(values.mean().item(), error)
