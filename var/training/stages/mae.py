"""Pre-train an image encoder to predict masked patches that it does not see (MAE, arXiv 2111.06377, section 3).

B batch, N patches.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from var.models.mae import MAEDecoderConfig, MAEPretrainer
from var.models.patch_masks import choose_cells, find_cells, mark_cells
from var.models.pretraining import pixel_errors
from var.training.masked_pixel_stage import MaskedPixelRecipe, MaskedPixelStage
from var.training.stages.base import register


class MAERecipe(MaskedPixelRecipe):
    """Pre-training of an image encoder (MAE, arXiv 2111.06377)."""

    fixed = MaskedPixelRecipe.fixed | {"decoder"}

    decoder: MAEDecoderConfig = MAEDecoderConfig()  # is not exported
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75  # of the patches
    targets: Literal["normalized", "pixels"] = "normalized"


@register("mae")
class MAEStage(MaskedPixelStage[MAERecipe]):
    """Squared error of the pixels of masked patches, which the encoder does not see."""

    recipe_type = MAERecipe

    def build(self) -> MAEPretrainer:
        model = self.recipe.model
        return MAEPretrainer(model, self.recipe.decoder, outputs=3 * model.patch_size**2)

    def mask(self, noise: Tensor) -> Tensor:
        return ~mark_cells(choose_cells(noise, self._visible_patches), self.recipe.cells)

    @property
    def _visible_patches(self) -> int:
        """Their number in every image."""
        return self.recipe.cells - self.recipe.masked_cells

    def predict(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        return model(images, find_cells(~masked, self._visible_patches))

    def patch_errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return pixel_errors(predictions, targets)
