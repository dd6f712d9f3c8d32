"""The baseline of VAR: train the same transformer to predict the next token of a single map (VAR paper, section 3.1).

Orders of the tokens at random in a part of the run are RAR's (arXiv 2411.00776).
B batch, L tokens of the map.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.data.config import Fraction, Section
from var.data.dataset import Batch, SampleDataset
from var.models.orders import sequence_order
from var.models.raster import Raster, RasterConfig, RasterOrder
from var.models.token_losses import TokenLosses, head_losses
from var.training.config import Recipe
from var.training.rng import StepRNG
from var.training.stages.base import Losses, register
from var.training.transformer_stage import RecipeSizes, TransformerRecipe, TransformerStage


@dataclass(frozen=True)
class RasterSizes(RecipeSizes):
    """Sizes of the transformer that a recipe chooses; a RasterConfig's other sizes are the tokenizer's."""

    def config(self, tokenizer: TokenizerConfig | None, num_classes: int) -> RasterConfig:
        return self.joined(RasterConfig, tokenizer, num_classes)


class RandomOrderConfig(Section):
    """Share of the samples whose tokens are in an order drawn at random: 1 until `start`, falling linearly to 0."""

    start: Fraction = 0.5  # as a share of the run's steps
    end: Fraction = 0.75

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.start >= self.end:
            raise InputError(f"random_order.start={self.start:g} must be below random_order.end={self.end:g}")
        return self

    def rate(self, progress: float) -> float:
        """Return the share at a point of the run in [0, 1]."""
        return min(max((self.end - progress) / (self.end - self.start), 0.0), 1.0)


class RasterRecipe(TransformerRecipe):
    """The baseline of stage 2."""

    fixed = TransformerRecipe.fixed | {"order"}

    model: RasterSizes
    order: RasterOrder = "raster"  # of the tokens
    random_order: RandomOrderConfig | None = None


@register("raster")
class RasterStage(TransformerStage[RasterRecipe]):
    """Cross-entropy of all L tokens under teacher forcing; a batch holds images, or tokens from the cache."""

    recipe_type: ClassVar[type[Recipe]] = RasterRecipe
    kind = Raster

    def __init__(
        self, recipe: RasterRecipe, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        self.order = sequence_order(recipe.order, vqvae.scales.sides[-1])

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.order = self.order.to(device)

    def choose_config(self) -> RasterConfig:
        return replace(self.recipe.model.config(self.vqvae.config, self.num_classes), order=self.recipe.order)

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        self._check_streamed_labels(batch)
        labels, path_noise = self._drop(batch, rng)
        order = self._draw_order(rng)
        checkpoint = self.recipe.gradient_checkpointing
        each = self._predict(model, labels, self._tokens(batch), order, path_noise=path_noise, checkpoint=checkpoint)
        return Losses(each.loss.mean(), {"loss": each.loss.detach().mean(), "accuracy": each.accuracy.mean()})

    def _draw_order(self, rng: StepRNG) -> Tensor:
        """Return each sample's order of the cells, (B, L), or that of all, (L,)."""
        if self.recipe.random_order is None:
            return self.order
        rate = self.recipe.random_order.rate(rng.step / self.steps)
        drawn = rng.uniform("random order: cells", len(self.order)).argsort(dim=1)
        is_random = rng.uniform("random order: samples") < rate
        return torch.where(is_random[:, None], drawn, self.order)

    def _predict(self, model: nn.Module, labels: Tensor, tokens: Tensor, order: Tensor, **more: object) -> TokenLosses:
        """Return loss and accuracy of tokens (B, L), row by row, in an order (L,) or (B, L)."""
        ordered = tokens.gather(1, order.expand_as(tokens))
        inputs = self.vqvae.quantizer.codebook(ordered[:, :-1])  # (B, L - 1, C)
        losses: TokenLosses = model(labels, inputs, order, read=partial(head_losses, tokens=ordered), **more)
        return losses

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        each = self._predict(model, batch.labels, self._tokens(batch), self.order)
        return {name: values.mean(dim=1) for name, values in each._asdict().items()}
