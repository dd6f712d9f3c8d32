"""Random numbers of a training step, as arguments: a sample's follow from seed, step and its index in the batch.

So samples get the same numbers on any number of processes and micro-batches, and a resumed run draws the same as an
uninterrupted one.
"""

import zlib
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from var.sampling.logits import mix_seed


class Stream(IntEnum):
    """First words of a training's random streams, so that no two of them are the same; 2 was once in use."""

    WEIGHTS = 0  # the initial weights
    MODULES = 1  # of torch's global generator in a step, which modules such as the tokenizer's dropout draw from
    SAMPLES = 3  # those of `StepRNG`
    REFERENCE_SAMPLES = 4  # the order in which stage ddo takes those of the reference
    ADAPTERS = 5  # the adapters' initial weights


@dataclass(frozen=True)
class StepRNG:
    """Random numbers of the samples of one micro-batch in a step."""

    seed: int  # of the run
    step: int  # counted from 0
    batch_size: int  # B, over all processes
    indices: range  # of this micro-batch's samples among the B
    device: torch.device  # of the numbers returned by `uniform` and `normal`

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(len(indices), *shape) float32 in [0, 1), the same in every call with the same purpose."""
        return self._own(torch.rand(self.batch_size, *shape, generator=self._generator(purpose)))

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(len(indices), *shape) float32, standard normal, the same in every call with the same purpose."""
        return self._own(torch.randn(self.batch_size, *shape, generator=self._generator(purpose)))

    def number(self, purpose: str) -> float:
        """Return a number in [0, 1) for the whole batch, the same on every process."""
        return mix_seed(*self._words(purpose)) / 2**63

    def integers(self, purpose: str, bound: int, count: int) -> list[int]:
        """Draw numbers in 0..bound - 1 for the whole batch, the same on every process."""
        return torch.randint(bound, (count,), generator=self._generator(purpose)).tolist()

    def seeds(self, purpose: str) -> list[int]:
        """Derive a seed of 63 bits for each sample, for draws of which their number is not known before."""
        return [mix_seed(*self._words(purpose), index) for index in self.indices]

    def _own(self, whole: Tensor) -> Tensor:
        """Return this micro-batch's part of numbers of the whole batch."""
        return whole[self.indices.start : self.indices.stop : self.indices.step].to(self.device)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(mix_seed(*self._words(purpose)))

    def _words(self, purpose: str) -> tuple[int, ...]:
        return Stream.SAMPLES, zlib.crc32(purpose.encode()), self.seed, self.step
