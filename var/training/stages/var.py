"""Stage 2: train the transformer to predict every scale's tokens from the coarser ones (VAR paper, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.data.config import Rate
from var.data.dataset import Batch, SampleDataset
from var.hub.presets import RELEASED
from var.models.token_losses import TokenLosses, head_losses, image_means
from var.models.var import VAR, VARConfig
from var.training.config import Recipe
from var.training.rng import StepRNG
from var.training.scale_drop import draw_kept, quantize_kept
from var.training.self_correction import SelfCorrectionConfig, nearest_codewords, perturb
from var.training.stages.base import Losses, Outline, register
from var.training.transformer_stage import RecipeSizes, TransformerRecipe, TransformerStage


@dataclass(frozen=True)
class VARSizes(RecipeSizes):
    """Sizes of the transformer that a recipe chooses; a VARConfig's other sizes are the tokenizer's."""

    def config(self, tokenizer: TokenizerConfig | None, num_classes: int) -> VARConfig:
        return self.joined(VARConfig, tokenizer, num_classes)


class VARRecipe(TransformerRecipe):
    """Stage 2."""

    renamed: ClassVar[Mapping[str, str]] = {**Recipe.renamed, "tokens": "token_cache"}

    model: VARSizes
    self_correction: SelfCorrectionConfig | None = None  # replace some input tokens by wrong ones in training
    scale_drop: Rate = 0.0  # rate at which a step leaves out a scale between the ends

    @model_validator(mode="after")
    def _scale_drop_fits(self) -> Self:
        if self.scale_drop and self.self_correction is not None:
            raise InputError(
                f"scale_drop={self.scale_drop} and self_correction both quantize the tokens anew: leave one out"
            )
        return self


VARRecipeT = TypeVar("VARRecipeT", bound=VARRecipe)


@register("var")
class VARStage(TransformerStage[VARRecipeT]):
    """Cross-entropy of all L tokens under teacher forcing; a batch holds images, or tokens from the cache."""

    recipe_type: ClassVar[type[Recipe]] = VARRecipe
    kind = VAR

    def __init__(
        self, recipe: VARRecipeT, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        wrong = recipe.self_correction
        self.neighbors = nearest_codewords(vqvae.quantizer, wrong.neighbors) if wrong else None

    def choose_config(self) -> VARConfig:
        config = self.recipe.model.config(self.vqvae.config, self.num_classes)
        return replace(config, scale_drop=self.recipe.scale_drop)

    @classmethod
    def known_tokenizer(cls, recipe: VARRecipeT) -> tuple[TokenizerConfig, list[str]]:
        try:
            return super().known_tokenizer(recipe)
        except InputError:
            if recipe.tokenizer.exists():
                raise
            for name, released in RELEASED.items():
                tokenizer = TokenizerConfig(scales=released.scales)
                if recipe.model.config(tokenizer, released.num_classes) == released:
                    assumed = f"assumed the released one of {name}, {tokenizer.image_side} px"
                    return tokenizer, [f"tokenizer={str(recipe.tokenizer)!r} does not exist: {assumed}"]
            raise

    @classmethod
    def outline(cls, recipe: VARRecipeT) -> Outline:
        outline = super().outline(recipe)
        if not recipe.scale_drop:
            return outline
        outline.stage.recipe = recipe.model_copy(update={"scale_drop": 0.0})
        note = f"scale_drop={recipe.scale_drop:g}: counted with all scales, the most that a step takes"
        return outline._replace(notes=[*outline.notes, note])

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.neighbors = None if self.neighbors is None else self.neighbors.to(device)

    @torch.no_grad()
    def _features(self, batch: Batch) -> Tensor:
        """Return what the scales encode, (B, C, H, H): the encoder's features, or the sum of the cached tokens."""
        with torch.autocast(batch.content.device.type, enabled=False):
            if batch.content.is_floating_point():
                return self.vqvae.features(batch.content)
            return self.vqvae.quantizer.decode(batch.content)

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        self._check_streamed_labels(batch)
        labels, path_noise = self._drop(batch, rng)
        checkpoint, kept = self.recipe.gradient_checkpointing, None
        if self.recipe.scale_drop:
            kept = draw_kept(len(self.vqvae.scales), self.recipe.scale_drop, rng)
            inputs, targets = quantize_kept(self.vqvae.quantizer, self._features(batch), kept)
        else:
            inputs, targets = self._pyramid(self._tokens(batch), rng)
        read = partial(head_losses, tokens=targets)
        each: TokenLosses = model(labels, inputs, path_noise, checkpoint=checkpoint, kept=kept, read=read)
        if kept is not None:  # which scales there are changes from step to step: validation reports each
            return Losses(each.loss.mean(), {"loss": each.loss.detach().mean(), "accuracy": each.accuracy.mean()})
        means = image_means(TokenLosses(each.loss.detach(), each.accuracy), self.vqvae.scales)
        return Losses(each.loss.mean(), {name: values.mean() for name, values in means.items()})

    def _pyramid(self, tokens: Tensor, rng: StepRNG) -> tuple[Tensor, Tensor]:
        """Return the transformer's input, (B, L - 1, C), and its targets, (B, L)."""
        quantizer, config = self.vqvae.quantizer, self.recipe.self_correction
        if config is None or self.neighbors is None:
            return quantizer.teacher_forcing_input(tokens), tokens
        share = config.share * rng.uniform("self-correction: share")
        noise = rng.uniform("self-correction: tokens", tokens.shape[1], 2)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return perturb(quantizer, tokens, self.neighbors, share, noise)

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        tokens = self._tokens(batch)
        inputs = self.vqvae.quantizer.teacher_forcing_input(tokens)
        return image_means(model(batch.labels, inputs, read=partial(head_losses, tokens=tokens)), self.vqvae.scales)
