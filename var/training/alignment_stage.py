"""The part that all stages of guidance-free alignment share: a trained VAR against a frozen copy of itself.

B batch, L tokens of all scales.
"""

import copy
import logging
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data.config import Positive
from var.data.dataset import Batch, SampleDataset
from var.hub.load import is_of_tokenizer
from var.hub.start import CLASSES, find_other_class, load_weights
from var.models.var import VAR
from var.sampling.params import SamplingParams
from var.training.alignment import alignment_loss, log_likelihood
from var.training.config import Recipe
from var.training.rng import StepRNG
from var.training.stages.base import Losses, require
from var.training.stages.var import VARRecipe, VARStage
from var.utils.text import plural

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnguidedSampling(SamplingParams):
    """Sampling options, without guidance unless cfg is given."""

    cfg: float = 0.0


class AlignmentRecipe(VARRecipe):
    """A recipe of stage 2 whose `init` is the trained model to align and, frozen, its reference."""

    fixed = VARRecipe.fixed | {"beta", "negative_weight"}  # else losses of one run could not be compared
    at_depth = Recipe.at_depth  # a trained model has one depth

    beta: Positive = 0.02  # of the loss: the smaller, the further the model moves from the reference
    negative_weight: Positive | None = None  # lambda of CCA, alpha of DDO; None: the stage's default
    sampling: UnguidedSampling | None = UnguidedSampling()

    @field_validator("sampling")
    @classmethod
    def _no_guidance_unless_given(cls, given: UnguidedSampling | None) -> UnguidedSampling:
        return given or UnguidedSampling()

    @model_validator(mode="after")
    def _has_a_reference(self) -> Self:
        if self.init is None:
            raise InputError("init is missing: give the trained model to align, which is its own reference too")
        if self.scale_drop:
            raise InputError(
                f"scale_drop={self.scale_drop} changes the tokens whose likelihood is compared: set it to 0"
            )
        if self.self_correction is not None:
            raise InputError("self_correction changes the tokens whose likelihood is compared: set it to null")
        return self

    @property
    @abstractmethod
    def weight(self) -> float:
        """Weight of the negatives in the loss."""


AlignmentRecipeT = TypeVar("AlignmentRecipeT", bound=AlignmentRecipe)


class Labeled(NamedTuple):
    """Images as tokens with labels."""

    tokens: Tensor  # (B, L) int64
    labels: Tensor  # (B,) int64


class AlignmentStage(VARStage[AlignmentRecipeT]):
    """The loss of `alignment_loss` on images of the data and a stage's negatives.

    Stochastic depth is off, whatever the model's drop_path, so that the log-ratio is that of two deterministic networks
    and exactly 0 at the start. The best model by validation is that of the smallest loss on the validation images; it
    shows when the classifier overfits, and says nothing of the looks of what is drawn.
    """

    def __init__(
        self, recipe: AlignmentRecipeT, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, vqvae, train_data, validation_data)
        self.reference = copy.deepcopy(require(VAR, self.phases[0].model)).eval().requires_grad_(False)
        self.frozen = {**self.frozen, "reference": self.reference}
        labels = train_data.labels  # None where they are known only when read: then all classes count alike
        counts = np.ones(self.num_classes, np.int64) if labels is None else np.bincount(labels, None, self.num_classes)
        self.counts = torch.from_numpy(counts.astype(np.int64))  # images of each class

    @classmethod
    def from_recipe(cls, recipe: AlignmentRecipeT) -> Self:
        stage = super().from_recipe(recipe)
        if recipe.init is None:
            raise TypeError("a recipe of an alignment has init")
        init, started = f"init={str(recipe.init)!r}", load_weights(recipe.init, stage.reference)
        if new := started.new + started.interpolated:
            if new == [CLASSES]:
                number, here = started.settings["num_classes"]
                where = "the data has" if recipe.model.num_classes is None else "model.num_classes is"
                raise InputError(
                    f"{init} has {plural(number, 'class', 'es')}, {where} {here}: give data of the same classes, and "
                    f"if some have no images model.num_classes={number}"
                )
            raise InputError(
                f"{init} has no {new[0]} of this size ({len(new)} of the model's tensors are missing): give the recipe "
                "the model's own sizes, classes and tokenizer"
            )
        if not is_of_tokenizer(started.quantizer, stage.vqvae):
            raise InputError(
                f"{init} was trained on the tokens of another tokenizer than tokenizer={str(recipe.tokenizer)!r}, "
                "whose likelihood it does not know: give its own tokenizer"
            )
        theirs, ours = started.names, stage.train_data.class_names
        if (label := find_other_class(theirs, ours)) is not None:
            log.warning(
                "%s: its class %d is %r, that of the data is %r: the model learns the data's images under its own "
                "labels, give data with the same classes in the same order",
                init,
                label,
                theirs[label],
                ours[label],
            )
        return stage

    def start_from(self, given: Path) -> list[str]:
        """Give the model the weights of its reference, which were read already and have all tensors."""
        self.phases[0].model.load_state_dict(self.reference.state_dict())
        log.info("init: the model and its frozen reference are %s", given)
        return []

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.counts = self.counts.to(device)

    @abstractmethod
    def draw_negatives(self, images: Labeled, dropped: Tensor, rng: StepRNG) -> Labeled:
        """Return negatives of a micro-batch, as many as images; `dropped` (B,) are those whose label is dropped."""

    @abstractmethod
    def held_out_negatives(self, images: Labeled) -> Labeled:
        """Return the same negatives in every validation, one for each image."""

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        self._check_streamed_labels(batch)
        images = Labeled(self._tokens(batch), batch.labels)
        dropped = rng.uniform("label drop") < self.recipe.label_drop
        negatives = self.draw_negatives(images, dropped, rng)
        positives = images._replace(labels=images.labels.masked_fill(dropped, self.num_classes))
        values = self._compare(model, positives, negatives, self.recipe.gradient_checkpointing)
        return Losses(values["loss"].mean(), {name: value.detach().mean() for name, value in values.items()})

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images = Labeled(self._tokens(batch), batch.labels)
        return self._compare(model, images, self.held_out_negatives(images))

    def _compare(
        self, model: nn.Module, positives: Labeled, negatives: Labeled, checkpoint: bool = False
    ) -> dict[str, Tensor]:
        """Return values of each pair, (B,), the loss with gradients.

        Besides the loss: both log-ratios; as accuracy, whether the positive's is the larger one; and the cross-entropy
        of the positive's tokens in nats a token, which is the loss of stage `var`.
        """
        tokens, labels = (torch.cat(both) for both in zip(positives, negatives, strict=True))
        inputs = self.vqvae.quantizer.teacher_forcing_input(tokens)
        ours = log_likelihood(model(labels, inputs, checkpoint=checkpoint), tokens)
        with torch.no_grad():
            theirs = log_likelihood(self.reference(labels, inputs), tokens)
        number = len(positives.labels)
        positive, negative = (ours - theirs).split([number, number])
        return {
            "loss": alignment_loss(positive, negative, self.recipe.beta, self.recipe.weight),
            "positive_log_ratio": positive,
            "negative_log_ratio": negative,
            "accuracy": (positive > negative).float(),
            "cross_entropy": -ours[:number] / tokens.shape[1],
        }
