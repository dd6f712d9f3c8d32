"""The part that the stages share in which each patch of a sequence predicts the next one.

B batch, N patches, C numbers that describe a patch.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Self, TypeVar

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.dataset import Batch, SampleDataset
from var.models.aim import select_patches
from var.models.aim_pretraining import prefix_lengths, target_mask
from var.models.pretraining import (
    denormalize_patches,
    patches,
    pixel_errors,
    token_errors,
    unpatchify,
)
from var.training.encoder_stage import (
    SHOWN,
    EncoderStage,
    TokenTargetRecipe,
    check_tokens_fit,
    encode,
    image_rows,
    pixel_targets,
)
from var.training.rng import StepRNG
from var.training.stages.base import Losses
from var.utils.images import denormalize, normalize


class NextPatchRecipe(TokenTargetRecipe):
    """Pre-training of an image encoder by the prediction of the next patch."""

    fixed = TokenTargetRecipe.fixed | {"attention", "targets"}  # else losses of one run could not be compared
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"targets": {"normalised": "normalized"}}

    # `prefix` draws for each image how many patches see one another; `causal` has no prefix.
    attention: Literal["prefix", "causal"] = "prefix"
    # Predicted of a patch: its pixels, normalized or not, or its token in the last token map of a tokenizer, which must
    # have as many cells as the encoder has patches.
    targets: Literal["normalized", "pixels", "tokens"] = "normalized"

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        if (self.targets == "tokens") != (self.tokenizer is not None):
            raise InputError(
                "targets=tokens needs a tokenizer, and a tokenizer needs targets=tokens: give both or none"
            )
        if self.model.patches < 2:
            raise InputError("model has a single patch: nothing comes next, take a smaller patch_size")
        return self


NextPatchRecipeT = TypeVar("NextPatchRecipeT", bound=NextPatchRecipe)


class NextPatchStage(EncoderStage[NextPatchRecipeT]):
    """Squared error of the pixels of the patches after a prefix, or cross-entropy of their tokens."""

    def __init__(
        self, recipe: NextPatchRecipeT, vqvae: VQVAE | None, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        if vqvae is not None:
            check_tokens_fit(recipe.model, vqvae)
        self.patches = recipe.model.patches
        self.phases = self.single_phase()

    @property
    def outputs(self) -> int:
        """C."""
        return 3 * self.recipe.model.patch_size**2 if self.vqvae is None else self.vqvae.config.vocab_size

    @abstractmethod
    def predict(self, model: nn.Module, images: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the second to the last patch of the sequence.

        Args:
            model: of `build`, possibly wrapped.
            images: (B, 3, S, S), normalized.
            prefix: (B,) int64, number of patches that see one another.

        Returns:
            (B, N - 1, C), and the indices of the patches in the order of the sequence: (B, N) int64, or (N,) for all
            images.
        """

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        prefix = self._prefix(rng)
        errors = self._errors(*self.predict(model, normalize(batch.content), prefix), batch.content)
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

    def _errors(self, predictions: Tensor, order: Tensor, images: Tensor) -> Tensor:
        """Return the error of each predicted patch, (B, N - 1) float32.

        Args:
            predictions: (B, N - 1, C).
            order: (B, N) int64, or (N,) for all images.
            images: (B, 3, S, S) in [-1, 1].
        """
        targets = select_patches(self._targets(images), order[..., 1:])
        return pixel_errors(predictions, targets) if self.vqvae is None else token_errors(predictions, targets[..., 0])

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Targets of the patches, row by row: (B, N, C) float32, or tokens (B, N, 1)."""
        if self.vqvae is not None:
            return self.vqvae.scales.split(encode(self.vqvae, images))[-1][..., None]
        return pixel_targets(images, self.recipe.model.patch_size, self.recipe.targets == "normalized")

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean error of an image's second half, given the first as its prefix."""
        half = self._half(batch.content)
        errors = self._errors(*self.predict(model, normalize(batch.content), half), batch.content)
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
        predictions, order = self.predict(model, normalize(images), self._half(images))
        return image_rows(images, self._draw_predictions(predictions.float(), order, images))

    def _draw_predictions(self, predictions: Tensor, order: Tensor, images: Tensor) -> Tensor:
        """Replace the images' second half by predictions; normalized ones get the true patches' mean and deviation."""
        counted = self._second_half(predictions)[0]
        indices, guess = order.expand(len(images), -1)[:, 1:][:, counted], predictions[:, counted]
        if self.vqvae is not None:
            tokens = encode(self.vqvae, images)
            self.vqvae.scales.split(tokens)[-1].scatter_(1, indices, guess.argmax(dim=-1))
            return self.vqvae.decode(tokens)
        pixels = patches(normalize(images), self.recipe.model.patch_size)
        if self.recipe.targets == "normalized":
            guess = denormalize_patches(guess, select_patches(pixels, indices))
        pixels = pixels.scatter(1, indices[..., None].expand_as(guess), guess)
        return denormalize(unpatchify(pixels, self.recipe.model.patch_size))
