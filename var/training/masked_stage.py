"""The part that the stages share which predict masked patches: BEiT, MAE, SimMIM.

B batch, N patches, n of them predicted.
"""

from abc import abstractmethod

import torch
from PIL import Image
from torch import Tensor, nn

from var.data.dataset import Batch
from var.training.encoder_stage import SHOWN, EncoderRecipeT, EncoderStage, hide, image_rows
from var.training.rng import StepRNG
from var.training.stages.base import Losses


class MaskedStage(EncoderStage[EncoderRecipeT]):
    """The mean error of masked patches; the masks of a step are drawn for each image."""

    @abstractmethod
    def draw_masks(self, rng: StepRNG) -> Tensor:
        """Draw the masks of a micro-batch: (B, N) bool on the device of `rng`, true where masked."""

    @abstractmethod
    def fixed_mask(self) -> Tensor:
        """Return the mask of all validation images, the same in every run: (N,) bool on the CPU."""

    @abstractmethod
    def image_errors(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        """Return the mean error of each image's masked patches, (B,) float32.

        Args:
            model: of `build`, possibly wrapped.
            images: (B, 3, S, S) in [-1, 1].
            masked: (B, N) bool.
        """

    @abstractmethod
    def fill(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        """Draw images (B, 3, S, S) in [-1, 1] with their masked patches, (B, N) bool, as predicted."""

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        loss = self.image_errors(model, batch.content, self.draw_masks(rng)).mean()
        return Losses(loss, {"loss": loss.detach()})

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean error of each image's patches that `fixed_mask` masks, (B,)."""
        return {"loss": self.image_errors(model, batch.content, self._repeat_fixed_mask(batch.content))}

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw three rows: images, what the encoder sees of them, and the same with the other patches as predicted."""
        images = batch.content[:SHOWN]
        masked = self._repeat_fixed_mask(images)
        seen = hide(images, masked, self.recipe.model.patch_size)
        return image_rows(images, seen, self.fill(model, images, masked))

    def _repeat_fixed_mask(self, images: Tensor) -> Tensor:
        """(B, N) bool on the device of the images."""
        return self.fixed_mask().to(images.device).expand(len(images), -1)


def mean_of_masked(errors: Tensor, masked: Tensor) -> Tensor:
    """Mean over the masked patches of each image, at least one: errors (B, n), masked (B, n) bool -> (B,)."""
    return (errors * masked).sum(dim=1) / masked.sum(dim=1)
