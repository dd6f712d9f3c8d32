"""Score images against a reference: every metric with its definition, and warnings about reliability."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError
from var.evaluation.metrics.extractors import INCEPTION, Extractor
from var.evaluation.metrics.feature_metrics import (
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
from var.utils.provenance import versions
from var.utils.version import PACKAGE, version

FIDELITY_SPLITS, FIDELITY_FEWEST = 10, 500  # splits of torch-fidelity's Inception Score, and fewest images for them


class Number(NamedTuple):
    """A result and its definition."""

    title: str  # as printed
    value: float
    library: str  # name and version of the library that computed it from features
    num_images: int
    reference: str | None  # description of the images or statistics compared with
    definition: str


@dataclass(frozen=True)
class Report:
    """Results of `score`, with the images, the reference, the extractor and the versions behind them."""

    numbers: Mapping[str, Number]  # by names that are the same for all extractors, such as frechet_distance
    extractor: Mapping[str, Any]
    images: Mapping[str, Any]
    reference: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]  # about the reliability of the numbers

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
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
    """Compute FID, sFID, Inception Score, precision, recall, KID and class accuracy, defined in docs/evaluation.md.

    Metrics whose features the extractor or the reference lacks are left out. The images' features are held in memory
    in float32, the images are not.

    Args:
        reference: from `open_reference`, with the same extractor.
        progress: called with the number of images processed, of both sets, and their total.
        among: labels for a further accuracy of the classifier, restricted to them; also reported for each class.

    Raises:
        InputError: an image that cannot be read, fewer than two images, features that are not finite; `among` with
            an extractor that is no classifier, with unknown labels, or lacking a label of the images.
    """
    if among is not None:
        check_among(among, images, extractor)
    for each in (images, reference.images):
        if each is not None:
            check_enough(each)
    total = images.count + (reference.images.count if reference.images else 0)
    features = extract(images.batches(batch_size), extractor, lambda done: progress(done, total))
    others = None
    if reference.images:
        batches = reference.images.batches(batch_size)
        others = extract(batches, extractor, lambda done: progress(images.count + done, total))
    numbers = {
        **_frechet_distances(features, others, reference, extractor),
        **_inception_scores(features, extractor),
        **(_precision_recall_kid(features, others, extractor) if others else {}),
        **_accuracies(features, images, extractor),
        **(_accuracies_among(features, images, among) if among is not None else {}),
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
            "dtype": "features float32, metrics float64",
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
    features: SetFeatures, others: SetFeatures | None, reference: Reference, extractor: Extractor
) -> dict[str, Number]:
    """Return FID, and sFID if both sets have spatial features; statistics stored in the reference are preferred."""
    pool = reference.pool or (statistics(others.pool) if others else None)
    spatial = reference.spatial or (others.spatial if others else None)
    number = partial(Number, library=_library(), num_images=len(features.pool))
    numbers = {}
    if pool is not None:
        numbers["frechet_distance"] = number(
            "FID" if extractor.name == INCEPTION else "Frechet distance",
            frechet_distance(statistics(features.pool), pool),
            reference=_describe_statistics(reference, reference.pool),
            definition=f"between Gaussians fitted to {len(pool.mean)} features",
        )
    if features.spatial is not None and spatial is not None:
        numbers["spatial_frechet_distance"] = number(
            "sFID" if extractor.name == INCEPTION else "spatial Frechet distance",
            frechet_distance(features.spatial, spatial),
            reference=_describe_statistics(reference, reference.spatial),
            definition=f"the same of {len(spatial.mean)} spatial features",
        )
    return numbers


def _describe_statistics(reference: Reference, used: Statistics | None) -> str:
    """Describe what a Frechet distance compares with: the statistics used or, if None, the reference's images."""
    if used is None and reference.images is not None:
        return f"{reference.images.count} images"
    return f"statistics of {used.count if used and used.count else 'an unknown number of'} images"


def _inception_scores(features: SetFeatures, extractor: Extractor) -> dict[str, Number]:
    """Return the Inception Score as defined by ADM and as by torch-fidelity."""
    if features.logits is None:
        return {}
    count, outputs = len(features.logits), features.logits.shape[1]
    title = "Inception Score" if extractor.name == INCEPTION else f"Inception Score by {extractor.name}"
    number = partial(Number, library=_library(), num_images=count, reference=None)
    ours = inception_score(features.logits, ADM_SPLIT)
    how = f"as ADM: parts of {ADM_SPLIT} in the order given, {outputs} logits"
    numbers = {"inception_score": number(title, ours.mean, definition=how)}
    if count > ADM_SPLIT:  # a single part has no deviation
        numbers["inception_score_std"] = number(f"{title}, std", ours.std, definition=f"over the parts {how}")
    if count >= FIDELITY_FEWEST:
        with suppress(InputError):  # probabilities that underflow, for which it gives NaN
            other = shuffled_inception_score(features.logits, FIDELITY_SPLITS)
            how = f"as torch-fidelity: {FIDELITY_SPLITS} parts, shuffled, {outputs} logits"
            shuffled = number(f"{title}, shuffled", other.mean, library=_library("torch-fidelity"), definition=how)
            numbers["inception_score_shuffled"] = shuffled
    return numbers


def _precision_recall_kid(features: SetFeatures, others: SetFeatures, extractor: Extractor) -> dict[str, Number]:
    """Return precision, recall and KID, which need the reference's images."""
    count, other_count = len(features.pool), len(others.pool)
    number = partial(Number, num_images=count, reference=f"{other_count} images")
    numbers = {}
    if min(count, other_count) > NEIGHBORS:
        how = f"k = {NEIGHBORS} nearest neighbors in {extractor.dimension} features"
        for name, value in precision_recall(features.pool, others.pool)._asdict().items():
            numbers[name] = number(name, value, _library(), definition=how)
    distance, size = kernel_distance(features.pool, others.pool), kid_subset_size(count, other_count)
    title = "KID" if extractor.name == INCEPTION else "kernel distance"
    varies = size < max(count, other_count)  # else every subset is the whole set, and the deviation meaningless
    how = f"cubic kernel, unbiased, {f'{KID_SUBSETS} subsets of {size}' if varies else 'all images'}"
    number = partial(number, library=_library("torch-fidelity"))
    numbers["kernel_distance"] = number(title, distance.mean, definition=how)
    if varies:
        numbers["kernel_distance_std"] = number(f"{title}, std", distance.std, definition="over the subsets")
    return numbers


def _accuracies(features: SetFeatures, images: ImageSet, extractor: Extractor) -> dict[str, Number]:
    """Return top-1 and top-5 accuracy of the extractor's classifier: of all classes, and among the classes present."""
    if features.logits is None or images.labels is None or not extractor.class_logits:
        return {}
    if not images.imagenet_labels:
        return {}
    classes = features.logits.shape[1]
    if images.labels.min() < 0 or images.labels.max() >= classes:
        return {}
    number = partial(Number, library=_library(), num_images=images.count, reference=None)

    def top_k(name: str, title: str, definition: str, logits: Tensor, labels: NDArray[np.int64]) -> dict[str, Number]:
        values = {k: accuracy(logits, torch.from_numpy(labels), k) for k in (1, 5) if k <= logits.shape[1]}
        return {f"{name}_top{k}": number(f"top-{k} accuracy {title}", values[k], definition=definition) for k in values}

    present, indices = np.unique(images.labels, return_inverse=True)
    definition = f"labels among the {len(present)} classes present"
    logits = features.logits[:, torch.from_numpy(present)]
    return {
        **top_k("accuracy", f"of {classes}", f"labels among {classes} classes", features.logits, images.labels),
        **top_k("accuracy_among_present", "of those present", definition, logits, indices),
    }


def check_among(among: Sequence[int], images: ImageSet, extractor: Extractor) -> None:
    """Raise InputError unless the extractor classifies these labels and they include all of the images'."""
    if not extractor.class_logits:
        raise InputError(f"{extractor.name} is no classifier of ImageNet's classes: leave out --among")
    if images.labels is None:
        raise InputError(f"{images.path} has no labels, which --among needs: name its files LABEL_INDEX.png")
    if not images.imagenet_labels:
        raise InputError(f"{images.path} has labels of the model's own classes, not ImageNet's: leave out --among")
    if wrong := sorted(label for label in among if not 0 <= label < IMAGENET_CLASSES):
        raise InputError(f"label {wrong[0]} must be in 0..{IMAGENET_CLASSES - 1}, ImageNet's classes")
    if missing := sorted(set(images.labels.tolist()) - set(among)):
        raise InputError(f"the images have label {missing[0]}, which --among lacks: add it")


def _accuracies_among(features: SetFeatures, images: ImageSet, among: Sequence[int]) -> dict[str, Number]:
    """Return the top-1 accuracy among only the given labels, over all images and for each class."""
    if features.logits is None or images.labels is None:
        return {}
    choices = np.unique(np.asarray(among, np.int64))
    right = torch.from_numpy(choices)[features.logits[:, choices].argmax(dim=1)].numpy() == images.labels
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
    images = {} if reference.images is None else {"images": _describe_images(reference.images)}
    counted = {} if reference.pool is None else {"statistics_count": reference.pool.count}
    return {"kind": reference.kind, "path": str(reference.path), **images, **counted}


def _library(package: str = PACKAGE) -> str:
    return f"{package} {version(package)}"
