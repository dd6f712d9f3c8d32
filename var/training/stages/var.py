"""Stage 2: train the transformer to predict every scale's tokens from the coarser ones (VAR paper, section 3.2)."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.checkpoint import load_tokenizer
from var.classes import spread
from var.generate import generate
from var.images import grid, to_pil
from var.model import VAR
from var.pipeline import VARPipeline
from var.training.config import VARRecipe
from var.training.data import Batch, StepSampler, loader, open_dataset, validation_loader
from var.training.stages import Losses
from var.training.tokens import TokenBatch, TokenTable

PICTURED_CLASSES, PICTURED_PER_CLASS = 8, 4


class VARStage:
    """Cross-entropy of all L tokens under teacher forcing."""

    # What has no direction to shrink towards zero: positions, levels, the start and the AdaLN offsets.
    never_decayed: tuple[str, ...] = ("start_position", "position", "level_embedding.weight", "offset")

    def __init__(self, recipe: VARRecipe) -> None:
        self.recipe = recipe
        if not recipe.tokenizer.is_dir():
            raise InputError(
                f"tokenizer={str(recipe.tokenizer)!r} does not exist: train stage 1 first, and give its model"
            )
        self.vqvae = load_tokenizer(recipe.tokenizer).requires_grad_(False)
        side = self.vqvae.config.image_side
        self.train_images = open_dataset(recipe.data, "train", side, recipe.seed)
        self.validation_images = open_dataset(recipe.data, "validation", side, recipe.seed)
        num_classes = recipe.model.num_classes or self.train_images.num_classes
        largest = int(max(self.train_images.labels.max(), self.validation_images.labels.max()))
        if largest >= num_classes:
            raise InputError(
                f"the data has label {largest}, model.num_classes={num_classes} has room for 0..{num_classes - 1}: "
                f"set model.num_classes to at least {largest + 1}"
            )
        self.model: nn.Module = VAR(recipe.model.config(self.vqvae.config, num_classes))
        self.present = sorted(set(self.train_images.labels.tolist()))
        self.table: TokenTable | None = None

    @property
    def length(self) -> int:
        return len(self.train_images)

    def prepare(self, device: torch.device) -> None:
        self.vqvae.to(device)
        if self.recipe.token_views:
            self.table = TokenTable(self.train_images, self.vqvae, self.recipe.token_views, self.recipe.data.workers)

    def batches(self, sampler: StepSampler) -> Iterable[Batch | TokenBatch]:
        if self.table is not None:
            return self.table.batches(sampler)
        return loader(self.train_images, sampler, self.recipe.data.workers)

    def validation_batches(self, batch_size: int, rank: int, world: int) -> Iterable[Batch]:
        return validation_loader(self.validation_images, self.recipe.data, batch_size, rank, world)

    def _tokens(self, batch: Batch | TokenBatch) -> Tensor:
        if isinstance(batch, TokenBatch):
            return batch.tokens
        with torch.autocast(batch.images.device.type, enabled=False):  # the same tokens as TokenTable's
            return self.vqvae.encode(batch.images)

    def losses(self, model: nn.Module, batch: Batch | TokenBatch) -> Losses:
        tokens, labels = self._tokens(batch), batch.labels
        dropped = torch.rand(labels.shape, device=labels.device) < self.recipe.label_drop
        labels = labels.masked_fill(dropped, _var(self.model).config.num_classes)
        logits = model(labels, self.vqvae.quantizer.teacher_forcing_input(tokens))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        right = (logits.detach().argmax(dim=-1) == tokens).float().mean()
        return Losses(loss, {"loss": loss.detach(), "accuracy": right}, tokens)

    def after_step(self, batch: Batch | TokenBatch, tokens: Tensor) -> bool:
        """Nothing to keep up."""
        return False

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        tokens = self._tokens(batch)
        logits = model(batch.labels, self.vqvae.quantizer.teacher_forcing_input(tokens))
        losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        right = (logits.argmax(dim=-1) == tokens).float()
        sums = {"loss": losses.mean(dim=1).sum(), "accuracy": right.mean(dim=1).sum()}
        scales = self.vqvae.scales
        per_scale = zip(scales.sides, scales.split(losses), scales.split(right), strict=True)
        for side, scale_losses, scale_right in per_scale:
            sums[f"loss/{side}x{side}"] = scale_losses.mean(dim=1).sum()
            sums[f"accuracy/{side}x{side}"] = scale_right.mean(dim=1).sum()
        return sums

    def picture(self, model: nn.Module, batch: Batch) -> Image.Image:
        """One row a class: pictures that the model draws, with the same random streams every time."""
        labels = [label for label in spread(self.present, PICTURED_CLASSES) for _ in range(PICTURED_PER_CLASS)]
        return grid(to_pil(generate(_var(model), self.vqvae, labels, cfg=2.0).images), columns=PICTURED_PER_CLASS)

    def export(self, model: nn.Module, folder: Path) -> None:
        names = {label: self.train_images.class_names.get(label, str(label)) for label in self.present}
        VARPipeline(_var(model), self.vqvae, names).save_pretrained(folder)


def _var(model: nn.Module) -> VAR:
    if not isinstance(model, VAR):
        raise TypeError(f"a VAR is trained in this stage, got {type(model).__name__}")
    return model
