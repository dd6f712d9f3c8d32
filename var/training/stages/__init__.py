"""What is trained: each stage turns batches into losses and knows nothing of processes, checkpoints or logging."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from var.training.data import Batch, StepSampler
from var.training.tokens import TokenBatch


class Losses(NamedTuple):
    """What a batch says: what to minimise, numbers to show (0-dimensional), and the batch's tokens (B, L)."""

    total: Tensor
    logs: dict[str, Tensor]
    tokens: Tensor


class Stage(Protocol):
    """One kind of training.

    Attributes:
        model: what the loop optimises.
        never_decayed: ends of the names of parameters that weight decay leaves alone.
        length: number of training images.
    """

    model: nn.Module
    never_decayed: tuple[str, ...]

    @property
    def length(self) -> int: ...

    def prepare(self, device: torch.device) -> None:
        """Move what is not trained to the device and read ahead what training needs."""

    def batches(self, sampler: StepSampler) -> Iterable[Batch | TokenBatch]:
        """The training batches of a sampler's steps, on the CPU."""

    def validation_batches(self, batch_size: int, rank: int, world: int) -> Iterable[Batch]:
        """The validation images, always the same, on the CPU."""

    def losses(self, model: nn.Module, batch: Batch | TokenBatch) -> Losses:
        """One training pass. `model` is self.model, possibly wrapped for several processes."""

    def after_step(self, batch: Batch | TokenBatch, tokens: Tensor) -> bool:
        """Upkeep without gradients after a step; True if it changed weights."""

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch's images of what validation averages; nothing random."""

    def picture(self, model: nn.Module, batch: Batch) -> Image.Image:
        """A sheet that shows how far the model is."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as users load it."""
