"""The part that stages share which predict the pixels of masked patches: MAE, SimMIM.

B batch, N patches, M cells that are masked or visible as a whole, C numbers that describe a patch.
"""

from abc import abstractmethod
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from var.data.dataset import Batch, SampleDataset
from var.models.patch_masks import count_masked
from var.models.pretraining import denormalize_patches, patches, unpatchify
from var.training.encoder_stage import SHOWN, EncoderRecipe, EncoderStage, hide, image_rows, pixel_targets
from var.training.rng import StepRNG
from var.training.stages.base import Losses
from var.utils.images import denormalize, normalize


class MaskedRecipe(EncoderRecipe):
    """Pre-training of an image encoder by predicting masked patches."""

    fixed = EncoderRecipe.fixed | {"mask_ratio", "targets"}  # else losses of one run could not be compared

    mask_ratio: Annotated[float, Field(gt=0, lt=1)]  # of an image's cells
    targets: Literal["normalized", "pixels"]  # predicted of a patch: its pixels, normalized or not

    @property
    def cells(self) -> int:
        """M."""
        return self.model.patches

    @property
    def masked_cells(self) -> int:
        """Number of masked cells of every image."""
        return count_masked(self.cells, self.mask_ratio)

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        _ = self.masked_cells  # raises where it cannot work
        return self


MaskedRecipeT = TypeVar("MaskedRecipeT", bound=MaskedRecipe)


class Predictions(NamedTuple):
    """Predictions of an image's patches, row by row."""

    values: Tensor  # (B, N, C)
    masked: Tensor  # (B, N) bool: those that the encoder did not see


class MaskedStage(EncoderStage[MaskedRecipeT]):
    """The mean error of the masked patches' pixels; the masks of a step are drawn for each image."""

    def __init__(
        self, recipe: MaskedRecipeT, vqvae: None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        self.phases = self.single_phase()

    @abstractmethod
    def predict(self, model: nn.Module, images: Tensor, noise: Tensor) -> Predictions:
        """Mask normalized images (B, 3, S, S) by uniform numbers (B, M), and predict them."""

    @abstractmethod
    def patch_errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Error of each patch: (B, N, C) each -> (B, N) float32."""

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        loss = self._errors(model, batch.content, rng.uniform("mask", self.recipe.cells)).mean()
        return Losses(loss, {"loss": loss.detach()})

    def _errors(self, model: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
        """The mean error of each image's masked patches, (B,); images (B, 3, S, S) in [-1, 1]."""
        predictions, masked = self.predict(model, normalize(images), noise)
        errors = self.patch_errors(predictions, self.targets(images))
        return (errors * masked).sum(dim=1) / masked.sum(dim=1)

    def targets(self, images: Tensor) -> Tensor:
        """Targets of the patches, row by row: (B, 3, S, S) in [-1, 1] -> (B, N, C)."""
        return pixel_targets(images, self.recipe.model.patch_size, self.recipe.targets == "normalized")

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean error of an image's masked patches, see `_fixed_noise`."""
        return {"loss": self._errors(model, batch.content, self._fixed_noise(batch.content))}

    def _fixed_noise(self, images: Tensor) -> Tensor:
        """(B, M): one mask for all images, the same in every run."""
        noise = torch.rand(self.recipe.cells, generator=torch.Generator().manual_seed(0))
        return noise.to(images.device).expand(len(images), -1)

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw three rows: images, what the encoder sees of them, and the same with the other patches as predicted."""
        images = batch.content[:SHOWN]
        predictions = self.predict(model, normalize(images), self._fixed_noise(images))
        drawn = self._fill(images, self._pixels(predictions.values, images), predictions.masked)
        return image_rows(images, hide(images, predictions.masked, self.recipe.model.patch_size), drawn)

    def _pixels(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Normalized pixels (B, N, C) of predictions; normalized targets get the true patches' mean and deviation."""
        if self.recipe.targets == "pixels":
            return predictions.float()
        return denormalize_patches(predictions.float(), patches(normalize(images), self.recipe.model.patch_size))

    def _fill(self, images: Tensor, pixels: Tensor, masked: Tensor) -> Tensor:
        """Replace the masked patches of images (B, 3, S, S) in [-1, 1] by normalized pixels (B, N, C)."""
        patch_size = self.recipe.model.patch_size
        shown = torch.where(masked[..., None], pixels, patches(normalize(images), patch_size))
        return denormalize(unpatchify(shown, patch_size))
