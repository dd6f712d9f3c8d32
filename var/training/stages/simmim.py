"""Pre-train an image encoder to predict the pixels of masked squares (SimMIM, arXiv 2111.09886, section 3).

B batch, N patches, M squares.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.data.config import Size
from var.models.masked_pretraining import MaskedPretrainer
from var.models.patch_masks import choose_cells, mark_cells, squares_to_patches
from var.models.pretraining import absolute_errors
from var.training.masked_pixel_stage import MaskedPixelRecipe, MaskedPixelStage
from var.training.stages.base import register


class SimMIMRecipe(MaskedPixelRecipe):
    """Pre-training of an image encoder (SimMIM, arXiv 2111.09886)."""

    fixed = MaskedPixelRecipe.fixed | {"mask_size"}

    mask_size: Size = 32  # side of a square in pixels, a multiple of the patch size that divides the image's side
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6  # of the squares
    targets: Literal["normalized", "pixels"] = "pixels"

    @property
    def cells(self) -> int:
        """M. Raises InputError: the squares do not fit."""
        side, patch = self.model.image_size, self.model.patch_size
        if self.mask_size % patch or side % self.mask_size:
            raise InputError(
                f"mask_size={self.mask_size} must be a multiple of model.patch_size={patch} that divides "
                f"model.image_size={side}"
            )
        return (side // self.mask_size) ** 2


@register("simmim")
class SimMIMStage(MaskedPixelStage[SimMIMRecipe]):
    """Absolute error of the pixels of masked squares, which the encoder sees as one learned embedding."""

    recipe_type = SimMIMRecipe

    def build(self) -> MaskedPretrainer:
        model = self.recipe.model
        return MaskedPretrainer(model, outputs=3 * model.patch_size**2)

    def mask(self, noise: Tensor) -> Tensor:
        squares = mark_cells(choose_cells(noise, self.recipe.masked_cells), self.recipe.cells)
        return squares_to_patches(squares, self.recipe.mask_size // self.recipe.model.patch_size)

    def predict(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        return model(images, masked)

    def patch_errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return absolute_errors(predictions, targets)
