"""Means over images with their standard errors, and what every measure refuses."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE


class MeanStderr(NamedTuple):
    """A mean over images, and its standard error; None of a single image."""

    mean: float
    error: float | None

    def times(self, factor: float) -> "MeanStderr":
        """In another unit."""
        return MeanStderr(self.mean * factor, None if self.error is None else self.error * abs(factor))


def mean_stderr(values: Tensor, what: str) -> MeanStderr:
    """(N,) values of images -> their mean, in float64. Raises InputError for none, and where they are not finite."""
    values = values.double()
    if not len(values):
        raise InputError(f"{what} of no picture cannot be told: give pictures")
    if not torch.isfinite(values).all():
        wrong = int((~torch.isfinite(values)).sum())
        raise InputError(f"{what} is not finite for {wrong} of {len(values)} pictures: the model's weights are damaged")
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return MeanStderr(values.mean().item(), error)


def check_float32(vqvae: VQVAE) -> None:
    """Raise InputError for a tokenizer in another type."""
    if vqvae.dtype != torch.float32:
        raise InputError(f"the tokenizer is in {vqvae.dtype}, which makes other tokens: load it in float32")


def concatenate(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the values of all images by name. Raises InputError if there are none."""
    if not batches:
        raise InputError("there are no pictures to measure on: give some")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
