"""Stage 2: train the transformer to predict every scale's tokens from the coarser ones (VAR paper, section 3.2)."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.dataset import Batch, SampleDataset, open_dataset
from var.data.listing import Split
from var.data.token_dataset import open_tokens
from var.hub.checkpoint import load_tokenizer
from var.models.token_losses import TokenLosses, image_means, token_losses
from var.models.var import VAR
from var.pipeline import VARPipeline
from var.sampling.generate import generate
from var.sampling.params import SamplingParams
from var.training.config import VARRecipe
from var.training.rng import StepRNG
from var.training.self_correction import nearest_codewords, perturb
from var.training.stages import Losses, Phase
from var.utils.classes import spread
from var.utils.images import image_grid, to_pil

PICTURED_CLASSES, PICTURED_PER_CLASS = 8, 4

# What has no direction to shrink towards zero: positions, levels, the start and the AdaLN offsets.
NEVER_DECAYED = ("start_position", "position", "level_embedding.weight", "offset")


def open_tokenizer(folder: Path) -> VQVAE:
    """A recipe's tokenizer, without gradients.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    if not folder.is_dir():
        raise InputError(f"tokenizer={str(folder)!r} does not exist: train stage 1 first, and give its model")
    return load_tokenizer(folder).requires_grad_(False)


def open_split(recipe: VARRecipe, vqvae: VQVAE, split: Split) -> SampleDataset:
    """What the recipe's transformer is trained or validated on: its token cache, or images without one.

    Raises:
        InputError: no such data, or none that is complete; see `open_tokens` and `open_dataset`.
    """
    if recipe.tokens is not None:
        return open_tokens(recipe, vqvae, split)
    return open_dataset(recipe.data, split, vqvae.config.image_side, recipe.seed)


def check_labels(data: SampleDataset, num_classes: int) -> None:
    """Raise InputError if the data is known to have a label that the model has no room for."""
    if data.labels is not None:
        check_label(int(data.labels.max()), num_classes)


def check_label(largest: int, num_classes: int) -> None:
    """Raise InputError if the model has no room for a label."""
    if largest >= num_classes:
        raise InputError(
            f"the data has label {largest}, model.num_classes={num_classes} has room for 0..{num_classes - 1}: "
            f"set model.num_classes to at least {largest + 1}"
        )


class VARStage:
    """Cross-entropy of all L tokens under teacher forcing; a batch holds images, or tokens from the cache.

    Args:
        vqvae: the tokenizer, without gradients.
    """

    best = "loss"

    def __init__(
        self, recipe: VARRecipe, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        self.recipe = recipe
        self.vqvae = vqvae
        self.frozen = {"tokenizer": vqvae}
        self.train_data, self.validation_data = train_data, validation_data
        self.steps = recipe.total_steps(len(self.train_data))
        self.num_classes = recipe.model.num_classes or self.train_data.num_classes
        self.present = self._labels()
        self.neighbors = self._neighbors()
        self.config = recipe.model.config(self.vqvae.config, self.num_classes)
        # A block's AdaLN computes before all blocks, apart from the rest of its block.
        units = [unit for i in range(self.config.depth) for unit in (f"blocks.{i}.adaln", f"blocks.{i}")]
        self.phases = (Phase("model", self.build(), recipe.optimizer, NEVER_DECAYED, units=units),)
        self.workers = recipe.data.workers if recipe.tokens is None else 0  # tokens are read faster than handed over

    def _labels(self) -> list[int]:
        """The labels that the training data has; all that the model knows, where only reading tells."""
        for data in (self.train_data, self.validation_data):
            check_labels(data, self.num_classes)
        labels = self.train_data.labels
        return list(range(self.num_classes)) if labels is None else sorted(set(labels.tolist()))

    def _neighbors(self) -> Tensor | None:
        """(V, N): by what self-correction replaces a token."""
        config = self.recipe.self_correction
        return None if config is None else nearest_codewords(self.vqvae.quantizer, config.neighbors)

    def prepare(self, device: torch.device) -> None:
        self.vqvae.to(device)
        self.neighbors = None if self.neighbors is None else self.neighbors.to(device)

    def build(self) -> VAR:
        return VAR(self.config)

    def kind(self, phase: str, step: int) -> Hashable:
        return "any"

    def _tokens(self, batch: Batch) -> Tensor:
        if not batch.content.is_floating_point():
            return batch.content
        with torch.no_grad(), torch.autocast(batch.content.device.type, enabled=False):  # the same as the cache's
            return self.vqvae.encode(batch.content)

    def losses(self, phase: str, model: nn.Module, batch: Batch, draws: StepRNG, kept: Any) -> Losses:
        if self.train_data.labels is None:
            check_label(int(batch.labels.max()), self.num_classes)
        tokens = self._tokens(batch)
        dropped = draws.uniform("label drop") < self.recipe.label_drop
        labels = batch.labels.masked_fill(dropped, self.num_classes)
        path_noise = draws.uniform("stochastic depth", 2 * self.config.depth)
        inputs, targets = self._pyramid(tokens, draws)
        logits = model(labels, inputs, path_noise, checkpoint=self.recipe.gradient_checkpointing)
        each = token_losses(logits, targets)
        means = image_means(TokenLosses(each.loss.detach(), each.accuracy), self.vqvae.scales)
        return Losses(each.loss.mean(), {name: values.mean() for name, values in means.items()})

    def _pyramid(self, tokens: Tensor, draws: StepRNG) -> tuple[Tensor, Tensor]:
        """What the transformer reads, (B, L - 1, C), and what it has to predict, (B, L)."""
        quantizer, config = self.vqvae.quantizer, self.recipe.self_correction
        if config is None or self.neighbors is None:
            return quantizer.teacher_forcing_input(tokens), tokens
        share = config.share * draws.uniform("self-correction: share")
        noise = draws.uniform("self-correction: tokens", tokens.shape[1], 2)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return perturb(quantizer, tokens, self.neighbors, share, noise)

    def after_step(
        self, draws: StepRNG, kept: Sequence[Any], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        return {}

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        tokens = self._tokens(batch)
        logits = model(batch.labels, self.vqvae.quantizer.teacher_forcing_input(tokens))
        return image_means(token_losses(logits, tokens), self.vqvae.scales)

    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """One row a class: pictures that the model draws, with the same random streams every time."""
        labels = [label for label in spread(self.present, PICTURED_CLASSES) for _ in range(PICTURED_PER_CLASS)]
        params = self.recipe.sampling or SamplingParams(cfg=2.0)
        return image_grid(
            to_pil(generate(_var(model), self.vqvae, labels, **params.to_dict()).images), PICTURED_PER_CLASS
        )

    def export(self, model: nn.Module, folder: Path) -> None:
        names = {label: self.train_data.class_names.get(label, str(label)) for label in self.present}
        VARPipeline(_var(model), self.vqvae, names, self.recipe.sampling).save_pretrained(folder)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered besides the model."""


def _var(model: nn.Module) -> VAR:
    if not isinstance(model, VAR):
        raise TypeError(f"a VAR is trained in this stage, got {type(model).__name__}")
    return model
