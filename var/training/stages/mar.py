"""MAR: train the same transformer to predict masked continuous tokens by a diffusion head (arXiv 2406.11838).

B batch, L tokens of the map, C latent channels, M masked tokens of an image, n timesteps of each.
"""

import math
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tokenizer.vqvae import TokenizerConfig
from var.data.config import Count
from var.data.dataset import Batch
from var.models.diffusion_head import TIMESTEPS, DiffusionHead, HeadSizes, diffusion_loss
from var.models.mar import MAR, MARConfig
from var.training.config import Recipe
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Outline, register, require
from var.training.transformer_stage import RecipeSizes, TransformerRecipe, TransformerStage

# The share of masked tokens is drawn from a normal distribution that is cut to this range (MAR, section 4).
MASK_MEAN, MASK_STD, LEAST_MASK, MOST_MASK = 1.0, 0.25, 0.7, 1.0


@dataclass(frozen=True)
class MARSizes(HeadSizes, RecipeSizes):
    """Sizes of the transformer and its head that a recipe chooses; a MARConfig's other sizes are the tokenizer's."""

    def config(self, tokenizer: TokenizerConfig | None, num_classes: int) -> MARConfig:
        return self.joined(MARConfig, tokenizer, num_classes)


class MARRecipe(TransformerRecipe):
    """MAR."""

    model: MARSizes
    diffusion_batch_mul: Count = 4  # timesteps for each masked token in a step, as MAR's code calls them


class Draws(NamedTuple):
    """What is random in the loss of B images."""

    masked: Tensor  # (B, M) int64, cells
    timesteps: Tensor  # (n, B, M) int64
    noise: Tensor  # (n, B, M, C)


def masked_share(uniform: float) -> float:
    """Share of the tokens that a step masks, from a number in [0, 1): the truncated normal distribution."""
    normal = NormalDist(MASK_MEAN, MASK_STD)
    low, high = normal.cdf(LEAST_MASK), normal.cdf(MOST_MASK)
    return min(max(normal.inv_cdf(low + uniform * (high - low)), LEAST_MASK), MOST_MASK)


def mean_masked_share() -> float:
    """Mean of the shares that steps mask."""
    normal = NormalDist(MASK_MEAN, MASK_STD)
    fall = normal.pdf(LEAST_MASK) - normal.pdf(MOST_MASK)
    return MASK_MEAN + MASK_STD**2 * fall / (normal.cdf(MOST_MASK) - normal.cdf(LEAST_MASK))


@register("mar")
class MARStage(TransformerStage[MARRecipe]):
    """Diffusion loss of the masked tokens; a batch holds images, or continuous tokens from the cache."""

    recipe_type: ClassVar[type[Recipe]] = MARRecipe
    kind = MAR
    regularization = MARConfig.regularization
    share: float | None = None  # of the tokens that every step masks; None: each step draws it

    @classmethod
    def outline(cls, recipe: MARRecipe) -> Outline:
        outline = super().outline(recipe)
        stage = require(MARStage, outline.stage)
        stage.share = mean_masked_share()
        range_and_mean = f"{LEAST_MASK:.0%} to {MOST_MASK:.0%} of the tokens: counted with {stage.share:.0%}, the mean"
        note = f"a step masks {range_and_mean}"
        return outline._replace(notes=[*outline.notes, note])

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        self._check_streamed_labels(batch)
        labels, path_noise = self._drop(batch, rng)
        checkpoint = self.recipe.gradient_checkpointing
        tokens = self._tokens(batch)
        each = self._predict(model, labels, tokens, self._draw(rng), path_noise=path_noise, checkpoint=checkpoint)
        return Losses(each.mean(), {"loss": each.detach().mean()})

    def _draw(self, rng: StepRNG) -> Draws:
        """Draw what a step masks, the same number of tokens of every image, and noise."""
        length, channels, repeats = self.vqvae.scales.total, self.config.latent_dim, self.recipe.diffusion_batch_mul
        share = masked_share(rng.number("mask: share")) if self.share is None else self.share
        masked = rng.uniform("mask: order", length).argsort(dim=1)[:, : math.ceil(length * share)]
        number = masked.shape[1]
        timesteps = (rng.uniform("timesteps", repeats, number) * TIMESTEPS).long()
        noise = rng.normal("noise", repeats, number, channels)
        return Draws(masked, timesteps.transpose(0, 1), noise.transpose(0, 1))

    def _predict(self, model: nn.Module, labels: Tensor, tokens: Tensor, draws: Draws, **more: object) -> Tensor:
        """Return the mean loss of each image's masked tokens, (B,), of tokens (B, L, C)."""
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, draws.masked, True)
        read = partial(masked_loss, tokens=tokens, draws=draws)
        losses: Tensor = model(labels, tokens, mask, read=read, **more)
        return losses

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        tokens = self._tokens(batch)
        draws = Draws(*(each.to(tokens.device) for each in self._fixed_draws(len(tokens))))
        return {"loss": self._predict(model, batch.labels, tokens, draws)}

    def _fixed_draws(self, batch: int) -> Draws:
        """Return the same draws for every image, with timesteps evenly spaced over its tokens."""
        length, repeats = self.vqvae.scales.total, self.recipe.diffusion_batch_mul
        generator = torch.Generator().manual_seed(0)
        masked = torch.rand(length, generator=generator).argsort()[: math.ceil(length * masked_share(0.5))]
        number = repeats * len(masked)
        timesteps = (torch.randperm(number, generator=generator) + 0.5) / number * TIMESTEPS
        noise = torch.randn(repeats, 1, len(masked), self.config.latent_dim, generator=generator)
        timesteps = timesteps.long().view(repeats, 1, -1).expand(-1, batch, -1)
        return Draws(masked.expand(batch, -1), timesteps, noise.expand(-1, batch, -1, -1))


def masked_loss(head: DiffusionHead, conditions: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
    """Mean loss of each image's masked tokens, (B,), from the conditions (B, L, D) and tokens (B, L, C) of all."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    condition, target = (each[rows, draws.masked].flatten(0, 1) for each in (conditions, tokens))  # (B * M, ...)
    losses = diffusion_loss(head, condition, target, draws.timesteps.flatten(1), draws.noise.flatten(1, 2))
    return losses.unflatten(0, draws.masked.shape).mean(dim=1)
