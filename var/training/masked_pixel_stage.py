"""The part that the stages share which predict the pixels of masked patches: MAE, SimMIM.

B batch, N patches, M cells that are masked or visible as a whole, C numbers that describe a patch.
"""

from abc import abstractmethod
from typing import Annotated, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from var.data.dataset import SampleDataset
from var.models.patch_masks import count_masked
from var.models.pretraining import denormalize_patches, patches, unpatchify
from var.training.encoder_stage import EncoderRecipe, pixel_targets
from var.training.masked_stage import MaskedStage, mean_of_masked
from var.training.rng import StepRNG
from var.utils.images import denormalize, normalize


class MaskedPixelRecipe(EncoderRecipe):
    """Pre-training of an image encoder by predicting the pixels of masked patches."""

    fixed = EncoderRecipe.fixed | {"mask_ratio", "targets"}  # else losses of one run could not be compared

    mask_ratio: Annotated[float, Field(gt=0, lt=1)]  # of an image's cells
    targets: Literal["normalized", "pixels"]  # predicted of a patch: its pixels, normalized or not

    @property
    def cells(self) -> int:
        """M."""
        return self.model.patches

    @property
    def masked_cells(self) -> int:
        """Number of masked cells of every image. Raises InputError: none of them is masked, or all."""
        return count_masked(self.cells, self.mask_ratio)

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        _ = self.masked_cells  # raises where it cannot work
        return self


MaskedPixelRecipeT = TypeVar("MaskedPixelRecipeT", bound=MaskedPixelRecipe)


class MaskedPixelStage(MaskedStage[MaskedPixelRecipeT]):
    """The mean error of the masked patches' pixels, of as many patches in every image."""

    def __init__(
        self, recipe: MaskedPixelRecipeT, vqvae: None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        self.phases = self.single_phase()

    @abstractmethod
    def mask(self, noise: Tensor) -> Tensor:
        """Mask patches by uniform numbers: (B, M) -> (B, N) bool."""

    @abstractmethod
    def predict(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        """Predict the patches, row by row, of normalized images (B, 3, S, S): (B, N, C); masked is (B, N) bool."""

    @abstractmethod
    def patch_errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Error of each patch: (B, N, C) each -> (B, N) float32."""

    def draw_masks(self, rng: StepRNG) -> Tensor:
        return self.mask(rng.uniform("mask", self.recipe.cells))

    def fixed_mask(self) -> Tensor:
        return self.mask(torch.rand(1, self.recipe.cells, generator=torch.Generator().manual_seed(0)))[0]

    def image_errors(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        predictions = self.predict(model, normalize(images), masked)
        return mean_of_masked(self.patch_errors(predictions, self.targets(images)), masked)

    def targets(self, images: Tensor) -> Tensor:
        """Targets of the patches, row by row: (B, 3, S, S) in [-1, 1] -> (B, N, C)."""
        return pixel_targets(images, self.recipe.model.patch_size, self.recipe.targets == "normalized")

    def fill(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        """Draw the masked patches as predicted; normalized targets get the true patches' mean and deviation."""
        patch_size, normalized = self.recipe.model.patch_size, normalize(images)
        true, pixels = patches(normalized, patch_size), self.predict(model, normalized, masked).float()
        if self.recipe.targets == "normalized":
            pixels = denormalize_patches(pixels, true)
        return denormalize(unpatchify(torch.where(masked[..., None], pixels, true), patch_size))
