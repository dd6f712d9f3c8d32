"""Pre-train an image encoder to predict the next patch (AIM, arXiv 2401.08541, section 3).

B batch, N patches, C numbers that describe a patch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from PIL import Image
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.config import UserPath
from var.data.dataset import Batch, SampleDataset
from var.hub.checkpoint import save_model
from var.models.aim import EncoderConfig
from var.models.aim_pretraining import AIMPretrainer, HeadConfig, prefix_lengths, sequence_order, target_mask
from var.models.pretraining import (
    Pretrainer,
    normalize_patches,
    patch_statistics,
    patches,
    pixel_errors,
    token_errors,
    unpatchify,
)
from var.training.config import Recipe, preset_sizes
from var.training.estimate.images import find_images
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Outline, Phase, Stage, open_images, register, require
from var.training.tokenizers import open_tokenizer, tokenizer_config
from var.utils.images import denormalize, image_grid, normalize, to_pil

SHOWN = 8  # images on the sheet


class AIMRecipe(Recipe):
    """Pre-training of an image encoder (AIM, arXiv 2401.08541)."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"targets": {"normalised": "normalized"}}

    # By name, `model: aim-tiny` (-small, -base, -600M, ...: 224 px), or by name with others in place of single sizes,
    # `model: {preset: aim-tiny, image_size: 48, patch_size: 8}`.
    model: EncoderConfig
    _preset = field_validator("model", mode="before")(preset_sizes)
    head: HeadConfig = HeadConfig()  # is not exported
    # `prefix` draws for each image how many patches see one another; `causal` has no prefix.
    attention: Literal["prefix", "causal"] = "prefix"
    order: Literal["raster", "spiral", "checkerboard", "random"] = "raster"  # of the patches
    # Predicted of a patch: its pixels, normalized or not, or its token in the last token map of a tokenizer, which must
    # have as many cells as the encoder has patches.
    targets: Literal["normalized", "pixels", "tokens"] = "normalized"
    tokenizer: UserPath | None = None  # for targets=tokens: as in VARRecipe

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        if (self.targets == "tokens") != (self.tokenizer is not None):
            raise InputError(
                "targets=tokens needs a tokenizer, and a tokenizer needs targets=tokens: give both or none"
            )
        if self.model.patches < 2:
            raise InputError("model has a single patch: nothing comes next, take a smaller patch_size")
        return self


@register("aim")
class AIMStage(Stage[AIMRecipe]):
    """Squared error of the pixels of the patches after a prefix, or cross-entropy of their tokens."""

    recipe_type = AIMRecipe

    def __init__(
        self, recipe: AIMRecipe, vqvae: VQVAE | None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, train_data, validation_data, {} if vqvae is None else {"tokenizer": vqvae})
        self.vqvae = vqvae
        if vqvae is not None:
            check_tokens_fit(recipe, vqvae)
        self.patches = recipe.model.patches
        self.order = sequence_order(recipe.order, recipe.model.side, recipe.seed)
        units = [f"encoder.blocks.{i}" for i in range(recipe.model.depth)]
        self.phases = (Phase("model", self.build(), recipe.optimizer, self.losses, units=units),)

    @classmethod
    def from_recipe(cls, recipe: AIMRecipe) -> Self:
        images = open_images(recipe, recipe.model.image_size)
        return cls(recipe, open_tokenizer(recipe.tokenizer) if recipe.tokenizer else None, *images)

    @classmethod
    def outline(cls, recipe: AIMRecipe) -> Outline:
        side, images = recipe.model.image_size, find_images(recipe.data)
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            vqvae = None
            if recipe.tokenizer is not None:
                vqvae = VQVAE(tokenizer_config(recipe.tokenizer)).eval().requires_grad_(False)
            return Outline(cls(recipe, vqvae, data, data), images, torch.empty(3, side, side), recipe.model.patches)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.order = self.order.to(device)

    def build(self) -> AIMPretrainer:
        model = self.recipe.model
        outputs = 3 * model.patch_size**2 if self.vqvae is None else self.vqvae.config.vocab_size
        return AIMPretrainer(model, self.recipe.head, outputs, self.order)

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        prefix = self._prefix(rng)
        errors = self._errors(model(normalize(batch.content), prefix), batch.content)
        # Dividing by the mean number of targets gives every target the same weight, whatever its image's prefix, and
        # makes the mean over micro-batches that of the batch.
        targets = self.patches / 2 if self.recipe.attention == "prefix" else self.patches - 1
        loss = (errors * target_mask(prefix, self.patches)).sum() / (targets * len(errors))
        return Losses(loss, {"loss": loss.detach()})

    def _prefix(self, rng: StepRNG) -> Tensor:
        """(B,) int64, uniform in 1..N - 1; 0 for causal attention."""
        if self.recipe.attention == "causal":
            return torch.zeros(len(rng.indices), dtype=torch.int64, device=rng.device)
        return 1 + (rng.uniform("prefix") * (self.patches - 1)).long()

    def _errors(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Error of each patch: predictions (B, N - 1, C), images (B, 3, S, S) in [-1, 1] -> (B, N - 1) float32."""
        targets = self._targets(images)[:, self.order[1:]]
        return pixel_errors(predictions, targets) if self.vqvae is None else token_errors(predictions, targets)

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Targets of the patches, row by row: (B, N, C) float32, or tokens (B, N)."""
        if self.vqvae is not None:
            return self.vqvae.scales.split(encode(self.vqvae, images))[-1]
        pixels = patches(normalize(images), self.recipe.model.patch_size)
        return pixels if self.recipe.targets == "pixels" else normalize_patches(pixels)

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean error of an image's second half, given the first as its prefix."""
        errors = self._errors(model(normalize(batch.content), self._half(batch.content)), batch.content)
        counted = self._second_half(errors)
        return {"loss": (errors * counted).sum(dim=1) / counted.sum(dim=1)}

    def _half(self, images: Tensor) -> Tensor:
        """(B,) prefixes in validation: half of the patches, or none where training has none."""
        length = self.patches // 2 if self.recipe.attention == "prefix" else 0
        return prefix_lengths([length] * len(images), self.patches).to(images.device)

    def _second_half(self, predictions: Tensor) -> Tensor:
        """(B, N - 1) bool for predictions (B, N - 1, ...): those that validation counts, with a prefix or without."""
        half = prefix_lengths([self.patches // 2] * len(predictions), self.patches)
        return target_mask(half.to(predictions.device), self.patches)

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw two rows: images, and the same with their second half as predicted, each patch from all before it."""
        images = batch.content[:SHOWN]
        predictions = model(normalize(images), self._half(images)).float()
        drawn = self._draw_predictions(predictions, images)
        return image_grid(to_pil(torch.cat([images, drawn])), columns=len(images))

    def _draw_predictions(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Replace the images' second half by predictions; normalized ones get the true patches' mean and deviation."""
        counted = self._second_half(predictions)[0]
        indices = self.order[1:][counted]
        if self.vqvae is not None:
            tokens = encode(self.vqvae, images)
            last = self.vqvae.scales.split(tokens)[-1]
            last[:, indices] = predictions[:, counted].argmax(dim=-1)
            return self.vqvae.decode(tokens)
        pixels = patches(normalize(images), self.recipe.model.patch_size)
        guess = predictions[:, counted]
        if self.recipe.targets == "normalized":
            mean, deviation = patch_statistics(pixels[:, indices])
            guess = guess * deviation + mean
        pixels[:, indices] = guess
        return denormalize(unpatchify(pixels, self.recipe.model.patch_size))

    def export(self, model: nn.Module, folder: Path) -> None:
        save_model(folder, require(Pretrainer, model).encoder)


def encode(vqvae: VQVAE, images: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> (B, L) tokens, in float32 whatever the precision of training."""
    with torch.autocast(images.device.type, enabled=False):
        return vqvae.encode(images)


def check_tokens_fit(recipe: AIMRecipe, vqvae: VQVAE) -> None:
    """Raise InputError unless the tokenizer's last token map has one token a patch."""
    side, sides = vqvae.config.image_side, vqvae.config.scales
    if (side, sides[-1]) != (recipe.model.image_size, recipe.model.side):
        raise InputError(
            f"the tokenizer has {sides[-1]}x{sides[-1]} last tokens of images of {side} px, the encoder "
            f"{recipe.model.side}x{recipe.model.side} patches of {recipe.model.image_size} px: give "
            f"model.image_size={side} and model.patch_size={vqvae.config.downsample}"
        )
