"""Accuracy of VAR as a classifier: by the likelihood of all scales, of the first ones alone, and with pruning.

B batch, N images, M classes, K scales.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.errors import InputError
from var.evaluation.likelihood import check_known
from var.evaluation.metrics.stats import MeanStderr, concatenate, mean_stderr
from var.models.var import require_var
from var.pipeline import VARPipeline
from var.sampling.class_likelihood import WHOLE, Pruning, class_likelihood, rank
from var.utils.device import check_float32


@dataclass(frozen=True)
class Accuracy:
    """Fractions of the images in [0, 1]."""

    top1: MeanStderr  # the class of highest likelihood is the image's
    top5: MeanStderr  # the image's class is among the five of highest likelihood


@dataclass(frozen=True)
class Classifier:
    """Accuracy and cost of classifying with or without pruning."""

    accuracy: Accuracy
    seconds: float  # per image, those of the tokenizer included
    tokens: int  # predicted for an image, over all classes


@dataclass(frozen=True)
class Classification:
    """VAR as a classifier of N images among M classes."""

    num_images: int
    num_classes: int
    whole: Classifier
    of_first_scales: tuple[Accuracy, ...]  # by the sum over the first 1, 2, ... K scales
    pruned: Classifier | None
    agreement: MeanStderr | None  # fraction of the images to which both give the same class


@torch.inference_mode()
def classification(
    pipe: VARPipeline,
    batches: Iterable[tuple[Tensor, list[int]]],
    pruning: Pruning | None = None,
    batch_size: int = 64,
) -> Classification:
    """Classify labeled images among all classes that the model knows.

    Args:
        pipe: with the tokenizer in float32.
        batches: (B, 3, S, S) in [-1, 1] and B labels.
        pruning: also classify with it, and compare; None: without pruning alone.
        batch_size: rows, each a pair of an image and a class, that are computed at once.

    Raises:
        InputError: as `class_likelihood`; a label that the model does not know, images of another size, no images; a
            tokenizer that is not in float32; a model of a single class.
    """
    model, vqvae, known = require_var(pipe.model, "classification"), pipe.vqvae, pipe.known_labels()
    if len(known) < 2:
        raise InputError(f"the model knows class {known[0]} alone: classification needs two classes or more")
    check_float32(vqvae)
    kinds = {"whole": WHOLE} if pruning is None else {"whole": WHOLE, "pruned": pruning}
    for each in kinds.values():
        each.candidates(len(model.scales), len(known))  # raises before images are read
    seconds = dict.fromkeys(kinds, 0.0)
    columns: list[dict[str, Tensor]] = []
    for images, labels in batches:
        check_known(labels, frozenset(known))
        positions = torch.tensor([known.index(label) for label in labels])
        began = time.perf_counter()
        tokens = vqvae.encode(images.to(model.position.device))
        inputs = vqvae.quantizer.teacher_forcing_input(tokens)
        tokens.cpu()  # waits for the device
        encoding = time.perf_counter() - began
        column: dict[str, Tensor] = {}
        for kind, each in kinds.items():
            began = time.perf_counter()
            found = class_likelihood(model, tokens, inputs, known, each, batch_size)
            seconds[kind] += encoding + time.perf_counter() - began
            ranking = found.ranking()
            column |= {kind: position_in_ranking(ranking, positions), f"{kind}/class": ranking[:, 0]}
            if each is WHOLE:
                first = range(1, len(model.scales) + 1)
                column |= {str(k): position_in_ranking(rank(found.total(k)), positions) for k in first}
        columns.append(column)
    values = concatenate(columns)
    num_images = len(values["whole"])
    summaries = {
        kind: Classifier(_accuracy(values[kind]), seconds[kind] / num_images, each.tokens(model.scales, len(known)))
        for kind, each in kinds.items()
    }
    agreement = None if pruning is None else _fraction(values["whole/class"] == values["pruned/class"])
    by_scales = tuple(_accuracy(values[str(k)]) for k in range(1, len(model.scales) + 1))
    return Classification(num_images, len(known), summaries["whole"], by_scales, summaries.get("pruned"), agreement)


def position_in_ranking(ranking: Tensor, positions: Tensor) -> Tensor:
    """(B,) int64: how many classes are ranked before each image's own, of rankings (B, M) and positions (B,)."""
    return (ranking == positions[:, None]).int().argmax(dim=1)


def _accuracy(before: Tensor) -> Accuracy:
    return Accuracy(_fraction(before < 1), _fraction(before < 5))


def _fraction(correct: Tensor) -> MeanStderr:
    return mean_stderr(correct, "the accuracy")
