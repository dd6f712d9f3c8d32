"""Direct discriminative optimization of a trained VAR (DDO, arXiv 2503.01103): images against the reference's own.

For another round of self-play, run the recipe again with another output and `init` at the last one.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.vqvae import VQVAE
from var.data.config import Count
from var.data.dataset import SampleDataset
from var.data.order import epoch_order
from var.data.token_cache import MANIFEST
from var.sampling.logits import mix_seed
from var.training.alignment import proportional_labels
from var.training.alignment_stage import AlignmentRecipe, AlignmentStage, Labeled
from var.training.reference_samples import Labels, ReferenceSamples, open_reference_samples, write_reference_samples
from var.training.rng import StepRNG, Stream
from var.training.stages.base import Outline, register, require
from var.utils.ranks import Ranks

HELD_OUT = 0.1  # images for validation, as a share of those for training


class DDORecipe(AlignmentRecipe):
    """Direct discriminative optimization."""

    fixed = AlignmentRecipe.fixed | {"reference_samples"}
    renamed: ClassVar[Mapping[str, str]] = {**AlignmentRecipe.renamed, "fakes": "reference_samples"}

    # Number of images that the reference draws at the start of the run, with a tenth as many more for validation; None:
    # one for each training image.
    reference_samples: Count | None = None

    @property
    def weight(self) -> float:
        """Alpha: that given, or 1, with which the classifier is that of a GAN's discriminator."""
        return self.negative_weight or 1.0

    @property
    def samples_folder(self) -> Path:
        """Folder of the reference's samples."""
        return self.output / "reference_samples"


@register("ddo")
class DDOStage(AlignmentStage[DDORecipe]):
    """Images of the data against images that the reference drew without guidance, with labels in the same proportion.

    Our reading of dropped labels: an image of the data and its negative both lose their label, or both keep it.
    """

    recipe_type = DDORecipe

    def __init__(
        self, recipe: DDORecipe, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        self.samples = self.held_out_samples = ReferenceSamples.none(vqvae.scales.total)  # until they are drawn

    @classmethod
    def prepare(cls, recipe: DDORecipe, device: torch.device, ranks: Ranks) -> None:
        """Complete the token cache, if there is one, and the images that the reference draws, on all processes."""
        super().prepare(recipe, device, ranks)
        stage = super().from_recipe(recipe)
        stage.to(device)
        labels = stage.list_sample_labels()
        write_reference_samples(recipe.samples_folder, stage.reference, stage.vqvae, labels, recipe.seed, ranks)

    @classmethod
    def from_recipe(cls, recipe: DDORecipe) -> Self:
        stage = super().from_recipe(recipe)
        stage.samples = open_reference_samples(recipe.samples_folder, "train")
        stage.held_out_samples = open_reference_samples(recipe.samples_folder, "validation")
        return stage

    @classmethod
    def outline(cls, recipe: DDORecipe) -> Outline:
        outline = super().outline(recipe)
        if (recipe.samples_folder / MANIFEST).is_file():
            return outline
        number = sum(_sample_counts(recipe, outline.images.number or 0))
        notes = [*outline.notes, f"the run starts by drawing {number} images with the reference"]
        if outline.to_prepare:
            return outline._replace(notes=[*notes, "the time that this takes is not estimated"])

        stage = require(cls, outline.stage)

        def draw(count: int) -> Tensor:
            side = stage.config.scales[-1]
            inputs = torch.empty(count, outline.tokens - 1, stage.config.latent_dim)
            stage.reference(torch.zeros(count, dtype=torch.int64), inputs)  # as many products as scale by scale
            return stage.vqvae.pixels(torch.empty(count, stage.config.latent_dim, side, side))

        return outline._replace(prepare=draw, to_prepare=number, prepared="drawn images", notes=notes)

    def list_sample_labels(self) -> Labels:
        """Return the labels of the reference's samples, in proportion to those of the training images."""
        train, held_out = _sample_counts(self.recipe, len(self.train_data))
        counts = self.counts.cpu()
        return {
            "train": proportional_labels(counts, train).tolist(),
            "validation": proportional_labels(counts, held_out).tolist(),
        }

    def draw_negatives(self, images: Labeled, dropped: Tensor, rng: StepRNG) -> Labeled:
        """Take the next drawn images, in an order of their own for each pass over them."""
        negatives = self._take(self.samples, [self._choose(rng, index) for index in rng.indices], images)
        return negatives._replace(labels=negatives.labels.masked_fill(dropped, self.num_classes))

    def held_out_negatives(self, images: Labeled) -> Labeled:
        """Take for each image a held-out one, chosen by its tokens, so by the image alone."""
        weights = torch.arange(1, images.tokens.shape[1] + 1, device=images.tokens.device)
        chosen = (images.tokens * weights).sum(dim=1) % len(self.held_out_samples.labels)
        return self._take(self.held_out_samples, chosen.tolist(), images)

    def _choose(self, rng: StepRNG, index: int) -> int:
        number = len(self.samples.labels)
        epoch, position = divmod(rng.step * rng.batch_size + index, number)
        return int(_order(number, rng.seed, epoch)[position])

    def _take(self, samples: ReferenceSamples, indices: list[int], like: Labeled) -> Labeled:
        tokens, labels = samples.take(indices)
        return Labeled(tokens.to(like.tokens.device), labels.to(like.labels.device))


@lru_cache(maxsize=2)
def _order(number: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(number,): the order of the drawn images in a pass over them."""
    return epoch_order(number, mix_seed(Stream.REFERENCE_SAMPLES, seed), epoch)


def _sample_counts(recipe: DDORecipe, images: int) -> tuple[int, int]:
    """Return the numbers of images to draw for training and for validation."""
    number = recipe.reference_samples or images
    return number, math.ceil(HELD_OUT * number)
