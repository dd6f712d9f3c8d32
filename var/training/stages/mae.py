"""Pre-train an image encoder to predict masked patches that it does not see (MAE, arXiv 2111.06377, section 3).

B batch, N patches.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from var.models.mae import MAEDecoderConfig, MAEPretrainer
from var.models.patch_masks import choose_cells, mark_cells
from var.models.pretraining import pixel_errors
from var.training.masked_stage import MaskedRecipe, MaskedStage, Predictions
from var.training.stages.base import register


class MAERecipe(MaskedRecipe):
    """Pre-training of an image encoder (MAE, arXiv 2111.06377)."""

    fixed = MaskedRecipe.fixed | {"decoder"}

    decoder: MAEDecoderConfig = MAEDecoderConfig()  # is not exported
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75  # of the patches
    targets: Literal["normalized", "pixels"] = "normalized"


@register("mae")
class MAEStage(MaskedStage[MAERecipe]):
    """Squared error of the pixels of masked patches, which the encoder does not see."""

    recipe_type = MAERecipe

    def build(self) -> MAEPretrainer:
        model = self.recipe.model
        return MAEPretrainer(model, self.recipe.decoder, outputs=3 * model.patch_size**2)

    def predict(self, model: nn.Module, images: Tensor, noise: Tensor) -> Predictions:
        patches = self.recipe.cells
        visible = choose_cells(noise, patches - self.recipe.masked_cells)
        return Predictions(model(images, visible), ~mark_cells(visible, patches))

    def patch_errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return pixel_errors(predictions, targets)
