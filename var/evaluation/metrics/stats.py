"""Means over images with their standard errors, and checks that all measures share."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError


class MeanStderr(NamedTuple):
    """A mean over images and its standard error, None for a single image."""

    mean: float
    error: float | None

    def times(self, factor: float) -> "MeanStderr":
        """Return the mean and its error multiplied by a factor, as for another unit."""
        return MeanStderr(self.mean * factor, None if self.error is None else self.error * abs(factor))


def mean_stderr(values: Tensor, what: str) -> MeanStderr:
    """Return the mean of (N,) values in float64. Raises InputError for no values, or if some are not finite."""
    values = values.double()
    if not len(values):
        raise InputError(f"{what} needs at least one image: give images")
    if not torch.isfinite(values).all():
        wrong = int((~torch.isfinite(values)).sum())
        raise InputError(f"{what} is not finite for {wrong} of {len(values)} images: the model's weights are damaged")
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return MeanStderr(values.mean().item(), error)


def concatenate(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the values of all images by name. Raises InputError if there are none."""
    if not batches:
        raise InputError("there are no images to measure on: give at least one")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
