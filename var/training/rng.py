"""Random numbers of a training step, as arguments: those of a sample follow from seed, step and its place in the batch.

So the same samples get the same numbers however many processes and micro-batches share them, and a resumed run draws
what an uninterrupted one would have drawn.
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from var.sampling.logits import mix_seed

_DRAWS = 3  # first word of these random streams, beside those of dataset.py


@dataclass(frozen=True)
class StepRNG:
    """Numbers that the samples at some places of a step's batch draw."""

    seed: int  # of the run
    step: int  # counted from 0
    batch_size: int  # B, over all processes
    places: range  # which of the B samples this micro-batch of this process holds
    device: torch.device  # where the numbers are wanted

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(len(places), *shape) float32 in [0, 1), the same in every call with the same purpose."""
        whole = torch.rand(self.batch_size, *shape, generator=self._generator(purpose))
        return whole[self.places.start : self.places.stop : self.places.step].to(self.device)

    def integers(self, purpose: str, bound: int, count: int) -> list[int]:
        """Numbers in 0..bound - 1 that concern the whole batch: the same on every process."""
        return torch.randint(bound, (count,), generator=self._generator(purpose)).tolist()

    def _generator(self, purpose: str) -> torch.Generator:
        words = (_DRAWS, zlib.crc32(purpose.encode()), self.seed, self.step)
        return torch.Generator().manual_seed(mix_seed(*words))
