"""Pre-train an image encoder to predict the next patch (AIM, arXiv 2401.08541, section 3).

B batch, N patches, C numbers that describe a patch.
"""

import torch
from torch import Tensor, nn

from tokenizer.vqvae import VQVAE
from var.data.dataset import SampleDataset
from var.models.aim_pretraining import AIMPretrainer, HeadConfig
from var.models.orders import Order, sequence_order
from var.training.next_patch_stage import NextPatchRecipe, NextPatchStage
from var.training.stages.base import register


class AIMRecipe(NextPatchRecipe):
    """Pre-training of an image encoder (AIM, arXiv 2401.08541)."""

    fixed = NextPatchRecipe.fixed | {"head", "order"}

    head: HeadConfig = HeadConfig()  # is not exported
    order: Order = "raster"  # of the patches


@register("aim")
class AIMStage(NextPatchStage[AIMRecipe]):
    """Patches in an order that is the same for all images."""

    recipe_type = AIMRecipe

    def __init__(
        self, recipe: AIMRecipe, vqvae: VQVAE | None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        self.order = sequence_order(recipe.order, recipe.model.side, recipe.seed)  # (N,)
        super().__init__(recipe, vqvae, train_data, validation_data)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.order = self.order.to(device)

    def build(self) -> AIMPretrainer:
        return AIMPretrainer(self.recipe.model, self.recipe.head, self.outputs, self.order)

    def predict(self, model: nn.Module, images: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        return model(images, prefix), self.order
