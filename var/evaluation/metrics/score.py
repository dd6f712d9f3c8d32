"""Images against a reference: every number of evaluation, how each was made, and what to beware of."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from tokenizer.errors import InputError
from var.evaluation.metrics.extractors import INCEPTION, Extractor
from var.evaluation.metrics.metrics import (
    KID_SUBSETS,
    NEIGHBORS,
    Statistics,
    accuracy,
    frechet_distance,
    inception_score,
    kernel_distance,
    kid_subset_size,
    precision_recall,
    shuffled_inception_score,
    statistics,
)
from var.evaluation.metrics.reference import Progress, Reference, SetFeatures, check_enough, extract
from var.evaluation.metrics.warnings import ADM_SPLIT, report_warnings
from var.evaluation.samples.image_sets import ImageSet
from var.evaluation.samples.rejection import IMAGENET_CLASSES
from var.utils.provenance import PACKAGE, version, versions

DISTANCES = ("frechet_distance", "spatial_frechet_distance")
FIDELITY_SPLITS, FIDELITY_FEWEST = 10, 500  # parts of torch-fidelity's, and images below which they show nothing


class Number(NamedTuple):
    """A result, and how it was made."""

    title: str  # for people
    value: float
    library: str  # that computed it from features, with its version
    pictures: int  # that were measured
    reference: str | None  # what they were compared with
    definition: str


@dataclass(frozen=True)
class Report:
    """All that `score` found, and what the numbers were made from and with."""

    numbers: Mapping[str, Number]  # by a name that stays the same for all extractors, such as frechet_distance
    extractor: Mapping[str, Any]
    images: Mapping[str, Any]
    reference: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]  # what makes numbers doubtful

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        numbers = {name: number._asdict() for name, number in self.numbers.items()}
        return {**vars(self), "numbers": numbers, "warnings": list(self.warnings)}


def score(
    images: ImageSet,
    reference: Reference,
    extractor: Extractor,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
    among: Sequence[int] | None = None,
) -> Report:
    """Frechet distance (FID), that of spatial features (sFID), Inception Score, precision, recall, KID, class accuracy.

    Left out is what the extractor or the reference does not have the features for: docs/evaluation.md has every
    definition. Kept in memory are the images' features, 4 bytes a number, not the images.

    Args:
        reference: from `open_reference`, with the same extractor.
        progress: is told how many images were looked at, of both sets, and how many there are.
        among: labels among which the classifier chooses for a further accuracy, told class by class too.

    Raises:
        InputError: an image that cannot be read, fewer than two images, features that are not finite; `among` with
            an extractor that is no classifier, of labels that it has not, or without one that the images have.
    """
    if among is not None:
        check_among(among, images, extractor)
    for each in (images, reference.images):
        if each is not None:
            check_enough(each)
    total = images.count + (reference.images.count if reference.images else 0)
    seen = extract(images.batches(batch_size), extractor, lambda done: progress(done, total))
    theirs = None
    if reference.images:
        batches = reference.images.batches(batch_size)
        theirs = extract(batches, extractor, lambda done: progress(images.count + done, total))
    numbers = {
        **_frechet_distances(seen, theirs, reference, extractor),
        **_inception_scores(seen, extractor),
        **(_neighbors(seen, theirs, extractor) if theirs else {}),
        **_accuracies(seen, images, extractor),
        **(_accuracies_among(seen, images, among) if among is not None else {}),
    }
    return Report(
        numbers=numbers,
        extractor={
            "name": extractor.name,
            "library": extractor.library,
            "weights": extractor.weights,
            "resize": extractor.resize,
            "side": extractor.side,
            "dimension": extractor.dimension,
            "device": str(extractor.device),
            "dtype": "features float32, all that is computed from them float64",
        },
        images=_describe_images(images),
        reference=_describe_reference(reference),
        versions={
            "python": platform.python_version(),
            **versions(),
            **{package: version(package) for package in ("torch-fidelity", "numpy", "pillow")},
        },
        warnings=(*reference.warnings, *report_warnings(images, reference, extractor, numbers)),
    )


def _frechet_distances(
    seen: SetFeatures, theirs: SetFeatures | None, reference: Reference, extractor: Extractor
) -> dict[str, Number]:
    """FID, and sFID where both have spatial features."""
    pool, spatial = reference.pool, reference.spatial
    if theirs is not None:
        pool, spatial = pool or statistics(theirs.pool), spatial or theirs.spatial
    names = ("FID", "sFID") if extractor.name == INCEPTION else ("Frechet distance", "spatial Frechet distance")
    how = ("between Gaussians fitted to {} features", "the same of {} spatial features")
    sets = ((statistics(seen.pool), pool, reference.pool), (seen.spatial, spatial, reference.spatial))
    return {
        name: Number(
            title,
            frechet_distance(ours, others),
            _library(),
            len(seen.pool),
            _compared_with(reference, given),
            definition.format(len(ours.mean)),
        )
        for name, title, definition, (ours, others, given) in zip(DISTANCES, names, how, sets, strict=True)
        if ours is not None and others is not None
    }


def _compared_with(reference: Reference, used: Statistics | None) -> str:
    """What a number was compared with, for people."""
    if used is None and reference.images is not None:
        return f"{reference.images.count} pictures"
    return f"statistics of {used.count if used and used.count else 'an unknown number of'} pictures"


def _inception_scores(seen: SetFeatures, extractor: Extractor) -> dict[str, Number]:
    """By ADM's definition and by torch-fidelity's."""
    if seen.logits is None:
        return {}
    count, outputs = len(seen.logits), seen.logits.shape[1]
    title = "Inception Score" if extractor.name == INCEPTION else f"Inception Score by {extractor.name}"
    number = partial(Number, library=_library(), pictures=count, reference=None)
    ours = inception_score(seen.logits, ADM_SPLIT)
    how = f"as ADM: parts of {ADM_SPLIT} in the order given, {outputs} logits"
    numbers = {"inception_score": number(title, ours.mean, definition=how)}
    if count > ADM_SPLIT:  # one part has no deviation
        numbers["inception_score_std"] = number(f"{title}, std", ours.std, definition=f"over the parts {how}")
    if count >= FIDELITY_FEWEST:
        with suppress(InputError):  # probabilities for which it gives no number
            other = shuffled_inception_score(seen.logits, FIDELITY_SPLITS)
            how = f"as torch-fidelity: {FIDELITY_SPLITS} parts, shuffled, {outputs} logits"
            shuffled = number(f"{title}, shuffled", other.mean, library=_library("torch-fidelity"), definition=how)
            numbers["inception_score_shuffled"] = shuffled
    return numbers


def _neighbors(seen: SetFeatures, theirs: SetFeatures, extractor: Extractor) -> dict[str, Number]:
    """Precision, recall and KID, which need the reference's images."""
    count, others = len(seen.pool), len(theirs.pool)
    number = partial(Number, pictures=count, reference=f"{others} pictures")
    numbers = {}
    if min(count, others) > NEIGHBORS:
        how = f"k = {NEIGHBORS} nearest neighbors in {extractor.dimension} features"
        for name, value in precision_recall(seen.pool, theirs.pool)._asdict().items():
            numbers[name] = number(name, value, _library(), definition=how)
    distance, size = kernel_distance(seen.pool, theirs.pool), kid_subset_size(count, others)
    title = "KID" if extractor.name == INCEPTION else "kernel distance"
    varies = size < max(count, others)  # else every subset is all images, and the deviation says nothing
    how = f"cubic kernel, unbiased, {f'{KID_SUBSETS} subsets of {size}' if varies else 'all pictures'}"
    number = partial(number, library=_library("torch-fidelity"))
    numbers["kernel_distance"] = number(title, distance.mean, definition=how)
    if varies:
        numbers["kernel_distance_std"] = number(f"{title}, std", distance.std, definition="over the subsets")
    return numbers


def _accuracies(seen: SetFeatures, images: ImageSet, extractor: Extractor) -> dict[str, Number]:
    """Top-1 and top-5 accuracy of the extractor's classifier against the images' labels."""
    if seen.logits is None or images.labels is None or not extractor.class_logits:
        return {}
    classes = seen.logits.shape[1]
    if images.labels.min() < 0 or images.labels.max() >= classes:
        return {}
    present, places = np.unique(images.labels, return_inverse=True)
    among = seen.logits[:, torch.from_numpy(present)]
    asked = (
        ("accuracy", f"of {classes}", f"among {classes} classes", seen.logits, images.labels),
        ("accuracy_among_present", "of those present", f"among the {len(present)} classes present", among, places),
    )
    number = partial(Number, library=_library(), pictures=images.count, reference=None)
    return {
        f"{name}_top{k}": number(
            f"top-{k} accuracy {few}", accuracy(logits, torch.from_numpy(labels), k), definition=f"labels {how}"
        )
        for name, few, how, logits, labels in asked
        for k in (1, 5)
        if logits.shape[1] >= k
    }


def check_among(among: Sequence[int], images: ImageSet, extractor: Extractor) -> None:
    """Raise InputError unless the extractor can choose among these labels, and all of the pictures' are there."""
    if not extractor.class_logits:
        raise InputError(f"{extractor.name} is no classifier of ImageNet's classes: leave the choice among labels out")
    if images.labels is None:
        raise InputError(f"{images.path} has no labels: an accuracy among labels cannot be told")
    if wrong := sorted(label for label in among if not 0 <= label < IMAGENET_CLASSES):
        raise InputError(f"label {wrong[0]} must be in 0..{IMAGENET_CLASSES - 1}, ImageNet's classes")
    if missing := sorted(set(images.labels.tolist()) - set(among)):
        raise InputError(f"the pictures have label {missing[0]}, which is not among the labels to choose from: add it")


def _accuracies_among(seen: SetFeatures, images: ImageSet, among: Sequence[int]) -> dict[str, Number]:
    """The same where the classifier chooses among given labels, over all images and class by class."""
    if seen.logits is None or images.labels is None:
        return {}
    choices = np.unique(np.asarray(among, np.int64))
    right = torch.from_numpy(choices)[seen.logits[:, choices].argmax(dim=1)].numpy() == images.labels
    title, how = f"accuracy among {len(choices)}", f"the best of {len(choices)} given labels"
    numbers = {"": Number(title, float(right.mean()), _library(), len(right), None, how)}
    for label in np.unique(images.labels):
        row = right[images.labels == label]
        numbers[f"_{label}"] = Number(f"{title}, class {label}", float(row.mean()), _library(), len(row), None, how)
    return {f"accuracy_among_{len(choices)}{name}": number for name, number in numbers.items()}


def _describe_images(images: ImageSet) -> dict[str, Any]:
    return {
        "path": str(images.path),
        "kind": images.kind,
        "count": images.count,
        "sizes": {f"{width}x{height}": count for (height, width), count in images.sizes.items()},
        "lossy": images.lossy,
        "labelled": images.labels is not None,
    }


def _describe_reference(reference: Reference) -> dict[str, Any]:
    pictures = {} if reference.images is None else {"pictures": _describe_images(reference.images)}
    counted = {} if reference.pool is None else {"statistics_count": reference.pool.count}
    return {"kind": reference.kind, "path": str(reference.path), **pictures, **counted}


def _library(package: str = PACKAGE) -> str:
    return f"{package} {version(package)}"
