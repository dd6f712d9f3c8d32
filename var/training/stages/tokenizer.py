"""Stage 1: train the multi-scale VQVAE to reconstruct images (VAR paper, section 3.2 and appendix)."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tokenizer.losses import pixel_losses, psnr
from tokenizer.vqvae import VQVAE
from var.checkpoint import save_model
from var.images import grid, to_pil
from var.training.config import TokenizerRecipe
from var.training.data import Batch, StepSampler, loader, open_dataset, validation_loader
from var.training.stages import Losses
from var.training.tokens import TokenBatch

PICTURED = 8  # images on the sheet


class TokenizerStage:
    """Pixel and VQ losses, and care for the codebook."""

    never_decayed: tuple[str, ...] = ("codebook.weight",)

    def __init__(self, recipe: TokenizerRecipe) -> None:
        self.recipe = recipe
        side = recipe.model.image_side
        self.train_images = open_dataset(recipe.data, "train", side, recipe.seed)
        self.validation_images = open_dataset(recipe.data, "validation", side, recipe.seed)
        vqvae = VQVAE(recipe.model)
        self.model: nn.Module = vqvae
        for i, phi in enumerate(vqvae.quantizer.phi):  # with fewer scales than phi, some have no part in the loss
            phi.requires_grad_(i in vqvae.quantizer.phi_index)

    @property
    def length(self) -> int:
        return len(self.train_images)

    def prepare(self, device: torch.device) -> None:
        """Nothing but the model itself is needed."""

    def batches(self, sampler: StepSampler) -> Iterable[Batch]:
        return loader(self.train_images, sampler, self.recipe.data.workers)

    def validation_batches(self, batch_size: int, rank: int, world: int) -> Iterable[Batch]:
        return validation_loader(self.validation_images, self.recipe.data, batch_size, rank, world)

    def losses(self, model: nn.Module, batch: Batch | TokenBatch) -> Losses:
        images = _images(batch)
        weights = self.recipe.loss
        output = model(images)
        pixel = pixel_losses(output.reconstruction, images)
        total = weights.l1 * pixel.l1 + weights.l2 * pixel.l2 + weights.vq * output.vq_loss
        logs = {"loss": total, "l1": pixel.l1, "l2": pixel.l2, "vq": output.vq_loss}
        logs["psnr"] = psnr(output.reconstruction, images).mean()
        return Losses(total, {name: value.detach() for name, value in logs.items()}, output.tokens)

    @torch.no_grad()
    def after_step(self, batch: Batch | TokenBatch, tokens: Tensor) -> bool:
        quantizer = _vqvae(self.model).quantizer
        window = self.recipe.restart_dead_codes
        quantizer.count_usage(tokens, window or 100)
        if window is None or not quantizer.dead_codes(window).any():
            return False
        quantizer.restart_dead_codes(_vqvae(self.model).features(_images(batch)), window)
        return True

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        output = model(batch.images)
        pixel = pixel_losses(output.reconstruction, batch.images)
        count = len(batch.images)
        return {
            "psnr": psnr(output.reconstruction, batch.images).sum(),
            "l1": pixel.l1 * count,
            "l2": pixel.l2 * count,
            "vq": output.vq_loss * count,
        }

    @torch.no_grad()
    def picture(self, model: nn.Module, batch: Batch) -> Image.Image:
        """One row an image: the input, then the reconstruction after each scale."""
        images = batch.images[:PICTURED]
        columns = [images, *_vqvae(model).reconstruct(images)]
        return grid(to_pil(torch.stack(columns, dim=1).flatten(0, 1)), columns=len(columns))

    def export(self, model: nn.Module, folder: Path) -> None:
        save_model(folder, _vqvae(model))


def _vqvae(model: nn.Module) -> VQVAE:
    if not isinstance(model, VQVAE):
        raise TypeError(f"a VQVAE is trained in this stage, got {type(model).__name__}")
    return model


def _images(batch: Batch | TokenBatch) -> Tensor:
    if not isinstance(batch, Batch):
        raise TypeError("this stage trains on images")
    return batch.images
