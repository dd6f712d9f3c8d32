"""Condition contrastive alignment of a trained VAR (CCA, arXiv 2410.09347): images with right against wrong labels."""

from typing import Self

import torch

from tokenizer.errors import InputError
from var.training.alignment import draw_wrong_labels, fixed_wrong_labels
from var.training.alignment_stage import AlignmentRecipe, AlignmentStage, Labeled
from var.training.rng import StepRNG
from var.training.stages.base import register

PAPERS_LAMBDA = {0: 50.0, 24: 100.0, 30: 1000.0}  # from that depth on


class CCARecipe(AlignmentRecipe):
    """Condition contrastive alignment."""

    @property
    def weight(self) -> float:
        """Lambda: that given, or the paper's for a model of that depth."""
        papers = max(depth for depth in PAPERS_LAMBDA if depth <= self.model.depth)
        return self.negative_weight or PAPERS_LAMBDA[papers]


@register("cca")
class CCAStage(AlignmentStage[CCARecipe]):
    """An image with its label against the same image with a wrong label.

    The paper takes the labels of the batch in another order as wrong ones. Here a wrong label is drawn from those of
    all training images of other classes, which is the same on average, never the right label by chance, and the same
    for any number of processes and micro-batches.

    Of dropped labels our reading is: the positive alone loses its label, so that the unconditional model goes on
    learning; the wrong label stays. With the null class as a wrong label, which is right for every image, the loss
    would be smallest at a log-ratio of -log(lambda) / beta, some 200 nats below the reference's likelihood.
    """

    recipe_type = CCARecipe

    @classmethod
    def from_recipe(cls, recipe: CCARecipe) -> Self:
        stage = super().from_recipe(recipe)
        if len(stage.present) < 2:
            raise InputError(f"the data has one class, {stage.present[0]}: stage cca needs two, for wrong labels")
        return stage

    def draw_negatives(self, images: Labeled, dropped: torch.Tensor, rng: StepRNG) -> Labeled:
        return images._replace(labels=draw_wrong_labels(images.labels, self.counts, rng.uniform("wrong label")))

    def held_out_negatives(self, images: Labeled) -> Labeled:
        return images._replace(labels=fixed_wrong_labels(self.counts)[images.labels])
