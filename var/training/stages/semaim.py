"""Pre-train an image encoder to predict patches from more semantic ones (SemAIM, arXiv 2312.10457).

B batch, N patches, C numbers that describe a patch.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.models.pretraining import DecoderConfig
from var.models.semantic_pretraining import SemAIMPretrainer
from var.training.next_patch_stage import NextPatchRecipe, NextPatchStage
from var.training.stages.base import register

NARROWEST = 0.2  # smoothing in patches: below, the share of a neighbor is lost in the rounding of float32


class SemAIMRecipe(NextPatchRecipe):
    """Pre-training of an image encoder (SemAIM, arXiv 2312.10457)."""

    fixed = NextPatchRecipe.fixed | {"decoder", "smoothing"}

    decoder: DecoderConfig = DecoderConfig()  # is not exported
    attention: Literal["prefix", "causal"] = "causal"  # as in the paper
    # Of the attention by which patches are ordered: standard deviation in patches of a Gaussian; 0: none.
    smoothing: Annotated[float, Field(ge=0, le=1e3)] = 1.0

    @field_validator("smoothing")
    @classmethod
    def _not_lost_in_rounding(cls, given: float) -> float:
        if 0 < given < NARROWEST:
            raise InputError(f"{given:g} is too narrow: give at least {NARROWEST:g} patches, or 0 for none")
        return given


@register("semaim")
class SemAIMStage(NextPatchStage[SemAIMRecipe]):
    """Patches in each image's own order, by the attention of the encoder in its current state."""

    recipe_type = SemAIMRecipe

    def list_layers_used_in_parts(self) -> tuple[str, ...]:
        return (f"encoder.blocks.{self.recipe.model.depth - 1}",)  # by the order

    def build(self) -> SemAIMPretrainer:
        return SemAIMPretrainer(self.recipe.model, self.recipe.decoder, self.outputs, self.recipe.smoothing)

    def predict(self, model: nn.Module, images: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        return model(images, prefix)
