"""Rejection sampling (VAR paper, section 4.1): keep the samples with the highest class probability."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tokenizer.errors import InputError
from var.evaluation.metrics.extractors import is_classifier, open_extractor
from var.utils.classes import names_are_imagenets

IMAGENET_CLASSES = 1000
REJECT_BY = "efficientnet-lite1"  # default; lite0 is reserved for scores

# (B, 3, H, W) uint8 and B labels -> B scores, higher is better
SampleScorer = Callable[[Tensor, list[int]], list[float]]


class ClassProbability:
    """Sample scorer: a classifier's probability of an image's own class.

    Args:
        name: an extractor whose logits are ImageNet's classes.
        device: as for `open_extractor`.

    Raises:
        InputError: an extractor that is no such classifier; as `open_extractor`.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        check_judge(name)  # before its weights are downloaded
        self.extractor = open_extractor(name, device=device)
        self.description = f"{self.extractor.name} ({self.extractor.version})"

    def __call__(self, images: Tensor, labels: list[int]) -> list[float]:
        """Return the B class probabilities of (B, 3, H, W) uint8 images. Raises InputError if they are not finite."""
        logits = self.extractor(images).logits
        if logits is None or not logits.isfinite().all():
            raise InputError(f"the logits of {self.extractor.name} are not finite: its weights are damaged")
        probabilities = logits.double().softmax(dim=-1)
        return probabilities[torch.arange(len(labels)), torch.tensor(labels)].tolist()


def check_judge(name: str) -> None:
    """Raise InputError unless this is an extractor whose logits are ImageNet's classes."""
    if not is_classifier(name):
        raise InputError(f"{name} is no classifier of ImageNet's classes: choose another, such as {REJECT_BY}")


def check_fraction(kept: float) -> None:
    """Raise InputError for a fraction of samples that cannot be kept."""
    if not 0 < kept <= 1:
        raise InputError(f"reject={kept} must be in (0, 1], the fraction to keep: 0.5 generates twice as many")


def check_labels_are_imagenets(num_classes: int, names: Mapping[int, str]) -> None:
    """Raise InputError unless the model has as many classes as the classifiers, ImageNet's 1000, by their names."""
    if num_classes != IMAGENET_CLASSES:
        raise InputError(
            f"the model has {num_classes} classes, but the classifier of --reject needs ImageNet's {IMAGENET_CLASSES} "
            "in the usual order: leave out --reject"
        )
    if not names_are_imagenets(names):
        raise InputError("the model has classes of its own, not ImageNet's, which --reject needs: leave out --reject")


def best_indices(scores: Mapping[int, float], count: int) -> set[int]:
    """Return the indices of the `count` highest scores; ties go to the lower index."""
    return set(sorted(scores, key=lambda index: (-scores[index], index))[:count])
