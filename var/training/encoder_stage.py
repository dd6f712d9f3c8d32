"""The part that stages share which pre-train an encoder of images, on pixels or on the tokens of a tokenizer."""

from pathlib import Path
from typing import Self, TypeVar

import torch
from pydantic import field_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.config import UserPath
from var.data.dataset import SampleDataset
from var.hub.checkpoint import save_model
from var.models.aim import EncoderConfig
from var.models.pretraining import Pretrainer
from var.training.config import Recipe, preset_sizes
from var.training.estimate.images import find_images
from var.training.stages.base import Outline, Stage, open_images, require
from var.training.tokenizers import open_tokenizer, tokenizer_config


class EncoderRecipe(Recipe):
    """Pre-training of an image encoder."""

    # By name, `model: aim-tiny` (-small, -base, -600M, ...: 224 px), or by name with others in place of single sizes,
    # `model: {preset: aim-tiny, image_size: 48, patch_size: 8}`.
    model: EncoderConfig
    _preset = field_validator("model", mode="before")(preset_sizes)
    tokenizer: UserPath | None = None  # for tokens as targets: as in VARRecipe


EncoderRecipeT = TypeVar("EncoderRecipeT", bound=EncoderRecipe)


class EncoderStage(Stage[EncoderRecipeT]):
    """Images in, of which a plain encoder is exported."""

    def __init__(
        self, recipe: EncoderRecipeT, vqvae: VQVAE | None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, train_data, validation_data, {} if vqvae is None else {"tokenizer": vqvae})
        self.vqvae = vqvae

    @classmethod
    def from_recipe(cls, recipe: EncoderRecipeT) -> Self:
        images = open_images(recipe, recipe.model.image_size)
        return cls(recipe, open_tokenizer(recipe.tokenizer) if recipe.tokenizer else None, *images)

    @classmethod
    def outline(cls, recipe: EncoderRecipeT) -> Outline:
        side, images = recipe.model.image_size, find_images(recipe.data)
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            vqvae = None
            if recipe.tokenizer is not None:
                vqvae = VQVAE(tokenizer_config(recipe.tokenizer)).eval().requires_grad_(False)
            return Outline(cls(recipe, vqvae, data, data), images, torch.empty(3, side, side), recipe.model.patches)

    def units(self) -> list[str]:
        """List the submodules of the model that are gathered one at a time when it is sharded."""
        return [f"encoder.blocks.{i}" for i in range(self.recipe.model.depth)]

    def export(self, model: nn.Module, folder: Path) -> None:
        save_model(folder, require(Pretrainer, model).encoder)


def encode(vqvae: VQVAE, images: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> (B, L) tokens, in float32 whatever the precision of training."""
    with torch.autocast(images.device.type, enabled=False):
        return vqvae.encode(images)


def check_tokens_fit(model: EncoderConfig, vqvae: VQVAE) -> None:
    """Raise InputError unless the tokenizer's last token map has one token a patch."""
    side, sides = vqvae.config.image_side, vqvae.config.scales
    if (side, sides[-1]) != (model.image_size, model.side):
        raise InputError(
            f"the tokenizer has {sides[-1]}x{sides[-1]} last tokens of images of {side} px, the encoder "
            f"{model.side}x{model.side} patches of {model.image_size} px: give "
            f"model.image_size={side} and model.patch_size={vqvae.config.downsample}"
        )
