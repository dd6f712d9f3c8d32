"""Pre-train an image encoder to predict the tokens of masked patches (BEiT, arXiv 2106.08254, section 2).

B batch, N patches, m of them predicted, V codebook size, K token maps that are predicted.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.config import Count
from var.data.dataset import SampleDataset
from var.models.aim import select_patches
from var.models.block_masks import BlockMasks
from var.models.masked_pretraining import MaskedPretrainer
from var.models.patch_masks import find_cells
from var.models.pretraining import token_errors
from var.training.encoder_stage import TokenTargetRecipe, check_tokens_fit, encode
from var.training.masked_stage import MaskedStage, mean_of_masked
from var.training.rng import StepRNG
from var.training.stages.base import register, require
from var.utils.images import normalize


class BEiTRecipe(TokenTargetRecipe):
    """Pre-training of an image encoder (BEiT, arXiv 2106.08254)."""

    fixed = TokenTargetRecipe.fixed | {
        "mask_ratio",
        "min_block",
        "min_aspect",
        "scales",
    }  # else losses could not be compared

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4  # of an image's patches, at least
    min_block: Count = 16  # patches of a masked block
    min_aspect: Annotated[float, Field(gt=0, le=1)] = 0.3  # of a block: height over width, or width over height
    # Predicted of a patch: its token in the tokenizer's last token map, which must have as many cells as the encoder
    # has patches; or, in each token map, the token of the cell in which the patch's center is.
    scales: Literal["last", "each"] = "last"

    @property
    def masks(self) -> BlockMasks:
        """The masks of the images. Raises InputError: the sizes do not fit."""
        return BlockMasks(self.model.side, self.mask_ratio, self.min_block, self.min_aspect)

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.tokenizer is None:
            raise InputError("tokenizer is missing: give the one whose tokens are predicted, such as var-mini")
        _ = self.masks  # raises where they cannot work
        return self


@register("beit")
class BEiTStage(MaskedStage[BEiTRecipe]):
    """Cross-entropy of the tokens of masked patches, which the encoder sees as one learned embedding.

    Tokenizer and encoder see the same image, unlike in the paper, whose tokenizer is a dVAE at half of the size.
    """

    recipe_type = BEiTRecipe

    def __init__(
        self, recipe: BEiTRecipe, vqvae: VQVAE | None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        self.tokenizer, self.masks = require(VQVAE, vqvae), recipe.masks
        sides = self.tokenizer.config.scales
        if recipe.scales == "last":
            check_tokens_fit(recipe.model, self.tokenizer)
        elif recipe.model.image_size != (side := self.tokenizer.config.image_side):
            raise InputError(
                f"the tokenizer is for images of {side} px, the encoder for {recipe.model.image_size} px: give "
                f"model.image_size={side}"
            )
        self.predicted = sides if recipe.scales == "each" else sides[-1:]  # K sides of token maps
        self.phases = self.single_phase()

    def build(self) -> MaskedPretrainer:
        return MaskedPretrainer(self.recipe.model, len(self.predicted) * self.tokenizer.config.vocab_size)

    def draw_masks(self, rng: StepRNG) -> Tensor:
        return self.masks.draw(rng.seeds("mask")).to(rng.device)

    def fixed_mask(self) -> Tensor:
        return self.masks.draw([0])[0]

    def image_errors(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        """The mean over the masked patches of an image and the tokens of each in the K maps, (B,)."""
        logits, patches = self._predict(model, images, masked)
        targets = select_patches(self._targets(images), patches)  # (B, m, K)
        errors = token_errors(logits.flatten(1, 2), targets.flatten(1)).unflatten(1, targets.shape[1:])  # (B, m, K)
        return mean_of_masked(errors.mean(dim=2), masked.gather(1, patches))

    def _predict(self, model: nn.Module, images: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, m, K, V) of patches, (B, m) int64: the masked ones, and as many others as make m for each image.

        m is the largest number of masked patches, so that shapes do not depend on the masks.
        """
        patches = find_cells(masked, self.masks.largest)
        logits = model(normalize(images), masked, patches)
        return rearrange(logits, "b m (k v) -> b m k v", k=len(self.predicted)), patches

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Tokens of the patches, row by row: (B, N, K) int64."""
        maps = self.tokenizer.scales.split(encode(self.tokenizer, images))[-len(self.predicted) :]
        cells = (nearest_cells(self.recipe.model.side, side) for side in self.predicted)
        return torch.stack([tokens[:, cell] for tokens, cell in zip(maps, cells, strict=True)], dim=2)

    def fill(self, model: nn.Module, images: Tensor, masked: Tensor) -> Tensor:
        """Draw what the tokenizer makes of the images' tokens, those of masked patches as guessed.

        Token maps that are not predicted, with `scales: last` all but one, are the image's own.

        Of a cell with several masked patches the guess for one of them is shown.
        """
        logits, patches = self._predict(model, images, masked)
        guesses = torch.zeros(*masked.shape, len(self.predicted), dtype=torch.int64, device=images.device)
        guesses = guesses.scatter(1, patches[..., None].expand(-1, -1, len(self.predicted)), logits.argmax(dim=-1))
        return self._draw(images, masked, guesses.unbind(dim=2))

    def _draw(self, images: Tensor, masked: Tensor, guesses: Sequence[Tensor]) -> Tensor:
        """Reconstruct images with the tokens of masked patches replaced by guesses, (B, N) for each token map."""
        tokens = encode(self.tokenizer, images)
        maps = self.tokenizer.scales.split(tokens)[-len(self.predicted) :]  # views
        for known, side, guess in zip(maps, self.predicted, guesses, strict=True):
            cells = nearest_cells(self.recipe.model.side, side).to(known.device)
            for one, hidden, guessed in zip(known, masked, guess, strict=True):
                one[cells[hidden]] = guessed[hidden]
        return self.tokenizer.decode(tokens)


def nearest_cells(side: int, cells: int) -> Tensor:
    """Index of the cell of a cells x cells map in which each of side x side patches has its center: (N,) int64."""
    place = (2 * torch.arange(side) + 1) * cells // (2 * side)
    return (place[:, None] * cells + place).flatten()
