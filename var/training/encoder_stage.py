"""The part that stages share which pre-train an encoder of images, on pixels or on the tokens of a tokenizer.

B batch, N patches, C numbers that describe a patch.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Self, TypeVar

import torch
from PIL import Image
from pydantic import field_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.config import UserPath
from var.data.dataset import Batch, SampleDataset
from var.hub.checkpoint import save_model
from var.models.aim import EncoderConfig
from var.models.pretraining import Pretrainer, normalize_patches, patches, unpatchify
from var.training.config import Recipe, preset_sizes
from var.training.estimate.images import find_images
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Outline, Phase, Stage, open_images, require
from var.training.tokenizers import open_tokenizer, tokenizer_config
from var.utils.images import image_grid, normalize, to_pil

SHOWN = 8  # images on the sheet


class EncoderRecipe(Recipe):
    """Pre-training of an image encoder."""

    # By name, `model: aim-tiny` (-small, -base, -600M, ...: 224 px), or by name with others in place of single sizes,
    # `model: {preset: aim-tiny, image_size: 48, patch_size: 8}`.
    model: EncoderConfig
    _preset = field_validator("model", mode="before")(preset_sizes)


class TokenTargetRecipe(EncoderRecipe):
    """Pre-training of an image encoder, for which a tokenizer may give the targets."""

    tokenizer: UserPath | None = None  # for tokens as targets: as in VARRecipe


EncoderRecipeT = TypeVar("EncoderRecipeT", bound=EncoderRecipe)


class EncoderStage(Stage[EncoderRecipeT]):
    """Images in, of which a plain encoder is exported.

    A subclass sets what its `build` needs, and then `phases` to `single_phase`.
    """

    def __init__(
        self, recipe: EncoderRecipeT, vqvae: VQVAE | None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, train_data, validation_data, {} if vqvae is None else {"tokenizer": vqvae})
        self.vqvae = vqvae

    @classmethod
    def from_recipe(cls, recipe: EncoderRecipeT) -> Self:
        images, tokenizer = open_images(recipe, recipe.model.image_size), _tokenizer_of(recipe)
        return cls(recipe, None if tokenizer is None else open_tokenizer(tokenizer), *images)

    @classmethod
    def outline(cls, recipe: EncoderRecipeT) -> Outline:
        side, images, tokenizer = recipe.model.image_size, find_images(recipe.data), _tokenizer_of(recipe)
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            vqvae = None
            if tokenizer is not None:
                vqvae = VQVAE(tokenizer_config(tokenizer)).eval().requires_grad_(False)
            return Outline(cls(recipe, vqvae, data, data), images, torch.empty(3, side, side), recipe.model.patches)

    def single_phase(self) -> tuple[Phase]:
        """Build the model, and train it as a whole."""
        model = self.build()
        layers = repeated_layers(model)
        sharded = [name for name in layers if name not in self.list_layers_used_in_parts()]
        return (Phase("model", model, self.recipe.optimizer, self.losses, sharded=sharded, compiled=layers),)

    def list_layers_used_in_parts(self) -> tuple[str, ...]:
        """List the layers of which the model also uses parts by themselves."""
        return ()

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        """Return the loss of a micro-batch."""

    def export(self, model: nn.Module, folder: Path) -> None:
        save_model(folder, require(Pretrainer, model).encoder)


def _tokenizer_of(recipe: EncoderRecipe) -> Path | None:
    return recipe.tokenizer if isinstance(recipe, TokenTargetRecipe) else None


def repeated_layers(model: nn.Module) -> list[str]:
    """List the layers of which a model has several alike, one after another: the blocks, and the MLPs of AIM's head."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    return [
        f"{name}.{i}" for name, part in lists for i, layer in enumerate(part) if not isinstance(layer, nn.LayerNorm)
    ]


def pixel_targets(images: Tensor, patch_size: int, normalized: bool) -> Tensor:
    """Pixels of the patches, normalized or not, row by row: (B, 3, S, S) in [-1, 1] -> (B, N, C)."""
    pixels = patches(normalize(images), patch_size)
    return normalize_patches(pixels) if normalized else pixels


def hide(images: Tensor, masked: Tensor, patch_size: int) -> Tensor:
    """Make the masked patches, (B, N) bool, of images (B, 3, S, S) in [-1, 1] gray."""
    return unpatchify(patches(images, patch_size).masked_fill(masked[..., None], 0), patch_size)


def image_rows(*rows: Tensor) -> Image.Image:
    """Draw rows of as many images, (B, 3, S, S) in [-1, 1], one below the other."""
    return image_grid(to_pil(torch.cat(rows)), columns=len(rows[0]))


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
