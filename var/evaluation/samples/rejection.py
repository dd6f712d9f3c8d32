"""Rejection sampling (VAR paper, section 4.1): of many samples of a class those that a classifier is surest of."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tokenizer.errors import InputError
from var.evaluation.metrics.extractors import is_classifier, open_extractor

IMAGENET_CLASSES = 1000
REJECT_BY = "efficientnet-lite1"  # unless told otherwise; lite0 is kept for scores

# (B, 3, H, W) uint8 and B labels -> B scores, the more the better
SampleScorer = Callable[[Tensor, list[int]], list[float]]


class ClassProbability:
    """A judge: the probability that a classifier gives an image's own class.

    Args:
        name: an extractor whose logits are ImageNet's classes.
        device: as `open_extractor` takes it.

    Raises:
        InputError: an extractor that is no such classifier; what `open_extractor` raises.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        if not is_classifier(name):  # asked before its weights are fetched
            raise InputError(f"{name} is no classifier of ImageNet's classes: reject by {REJECT_BY}, for example")
        self.extractor = open_extractor(name, device=device)
        self.description = f"{self.extractor.name} ({self.extractor.version})"

    def __call__(self, images: Tensor, labels: list[int]) -> list[float]:
        """(B, 3, H, W) uint8 and B labels -> B probabilities. Raises InputError if they are not finite."""
        logits = self.extractor(images).logits
        if logits is None or not logits.isfinite().all():
            raise InputError(f"{self.extractor.name} gives no finite logits: its weights are damaged")
        probabilities = logits.double().softmax(dim=-1)
        return probabilities[torch.arange(len(labels)), torch.tensor(labels)].tolist()


def check_labels_are_imagenets(num_classes: int) -> None:
    """Raise InputError unless a model's labels can be those that the classifiers know."""
    if num_classes != IMAGENET_CLASSES:
        raise InputError(
            f"the model has {num_classes} classes, and the classifier knows ImageNet's {IMAGENET_CLASSES} by their "
            "usual indices: without these there is no rejection"
        )


def best_indices(scores: Mapping[int, float], count: int) -> set[int]:
    """The indices of the `count` highest scores, of equal ones those of lower index."""
    return set(sorted(scores, key=lambda index: (-scores[index], index))[:count])
