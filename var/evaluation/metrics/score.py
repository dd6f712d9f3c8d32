"""Pictures against a reference: every number of evaluation, how each was made, and what to beware of.

N pictures, D numbers of a feature, K classes.
"""

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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

FIDELITY_SPLITS, FIDELITY_FEWEST = 10, 500  # parts of torch-fidelity's, and pictures below which they show nothing


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
    """All that `score` found.

    Attributes:
        numbers: by a name that stays the same for all extractors, such as frechet_distance.
        extractor, images, reference, versions: what the numbers were made from and with.
        warnings: what makes numbers doubtful, a line each.
    """

    numbers: Mapping[str, Number]
    extractor: Mapping[str, Any]
    images: Mapping[str, Any]
    reference: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]

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
    definition. Kept in memory are the pictures' features, 4 bytes a number, not the pictures.

    Args:
        images: what is measured.
        reference: from `open_reference`, with the same extractor.
        extractor: from `open_extractor`.
        batch_size: pictures at once.
        progress: is told how many pictures were looked at, of both sets, and how many there are.
        among: labels among which the classifier chooses for a further accuracy, told class by class too.

    Raises:
        InputError: a picture that cannot be read, fewer than two pictures, features that are not finite; `among` with
            an extractor that is no classifier, of labels that it has not, or without one that the pictures have.
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
        **_frechet(seen, theirs, reference, extractor),
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
        reference={"kind": reference.kind, "path": str(reference.path), **_describe_reference(reference)},
        versions=_versions(),
        warnings=(*reference.warnings, *report_warnings(images, reference, extractor, numbers)),
    )


def _frechet(
    seen: SetFeatures, theirs: SetFeatures | None, reference: Reference, extractor: Extractor
) -> dict[str, Number]:
    """FID, and sFID where both have spatial features."""
    known = reference.pool or statistics(_require(theirs).pool)
    places = reference.spatial or (theirs.spatial if theirs else None)
    count, title = len(seen.pool), "FID" if extractor.name == INCEPTION else "Frechet distance"
    how, against = (
        f"between Gaussians fitted to {extractor.dimension} features",
        _compared_with(reference, reference.pool),
    )
    distance = frechet_distance(statistics(seen.pool), known)
    numbers = {"frechet_distance": Number(title, distance, _library(), count, against, how)}
    if seen.spatial is not None and places is not None:
        title = "sFID" if extractor.name == INCEPTION else "spatial Frechet distance"
        how, against = (
            f"the same of {len(seen.spatial.mean)} spatial features",
            _compared_with(reference, reference.spatial),
        )
        distance = frechet_distance(seen.spatial, places)
        numbers["spatial_frechet_distance"] = Number(title, distance, _library(), count, against, how)
    return numbers


def _require(theirs: SetFeatures | None) -> SetFeatures:
    if theirs is None:
        raise InputError("the reference has neither statistics nor pictures: give one that has")
    return theirs


def _compared_with(reference: Reference, used: Statistics | None) -> str:
    """What a number was compared with, in words."""
    if used is None and reference.images is not None:
        return f"{reference.images.count} pictures"
    return f"statistics of {used.count if used and used.count else 'an unknown number of'} pictures"


def _inception_scores(seen: SetFeatures, extractor: Extractor) -> dict[str, Number]:
    """By ADM's definition and by torch-fidelity's."""
    if seen.logits is None:
        return {}
    count, outputs = len(seen.logits), seen.logits.shape[1]
    title = "Inception Score" if extractor.name == INCEPTION else f"Inception Score by {extractor.name}"
    ours = inception_score(seen.logits, ADM_SPLIT)
    how = f"as ADM: parts of {ADM_SPLIT} in the order given, {outputs} logits"
    numbers = {"inception_score": Number(title, ours.mean, _library(), count, None, how)}
    if count > ADM_SPLIT:  # one part has no deviation
        how = f"over the parts {how}"
        numbers["inception_score_std"] = Number(f"{title}, std", ours.std, _library(), count, None, how)
    if count >= FIDELITY_FEWEST:
        with suppress(InputError):  # probabilities for which it gives no number
            other = shuffled_inception_score(seen.logits, FIDELITY_SPLITS)
            how = f"as torch-fidelity: {FIDELITY_SPLITS} parts, shuffled, {outputs} logits"
            numbers["inception_score_shuffled"] = Number(
                f"{title}, shuffled", other.mean, _fidelity(), count, None, how
            )
    return numbers


def _neighbors(seen: SetFeatures, theirs: SetFeatures, extractor: Extractor) -> dict[str, Number]:
    """Precision, recall and KID, which need the reference's pictures."""
    count, others = len(seen.pool), len(theirs.pool)
    against = f"{others} pictures"
    numbers = {}
    if min(count, others) > NEIGHBORS:
        found = precision_recall(seen.pool, theirs.pool)
        how = f"k = {NEIGHBORS} nearest neighbours in {extractor.dimension} features"
        for name, value in found._asdict().items():
            numbers[name] = Number(name, value, _library(), count, against, how)
    distance, size = kernel_distance(seen.pool, theirs.pool), kid_subset_size(count, others)
    title = "KID" if extractor.name == INCEPTION else "kernel distance"
    varies = size < max(count, others)  # else every subset is all pictures, and the deviation says nothing
    how = f"cubic kernel, unbiased, {f'{KID_SUBSETS} subsets of {size}' if varies else 'all pictures'}"
    numbers["kernel_distance"] = Number(title, distance.mean, _fidelity(), count, against, how)
    if varies:
        how = "over the subsets"
        numbers["kernel_distance_std"] = Number(f"{title}, std", distance.std, _fidelity(), count, against, how)
    return numbers


def _accuracies(seen: SetFeatures, images: ImageSet, extractor: Extractor) -> dict[str, Number]:
    """How often the extractor's classifier sees the class that a picture is labeled with."""
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
    return {
        f"{name}_top{k}": Number(
            f"top-{k} accuracy {few}",
            accuracy(logits, torch.from_numpy(labels), k),
            _library(),
            len(labels),
            None,
            f"labels {how}",
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
    """The same where the classifier chooses among given labels, over all pictures and class by class."""
    if seen.logits is None or images.labels is None:
        return {}
    choices = np.unique(np.asarray(among, np.int64))
    right = torch.from_numpy(choices)[seen.logits[:, choices].argmax(dim=1)].numpy() == images.labels
    rows = {"": np.ones(len(right), bool)} | {f"_{label}": images.labels == label for label in np.unique(images.labels)}
    return {
        f"accuracy_among_{len(choices)}{name}": Number(
            f"accuracy among {len(choices)}" + (f", class {name[1:]}" if name else ""),
            float(right[row].mean()),
            _library(),
            int(row.sum()),
            None,
            f"the best of {len(choices)} given labels",
        )
        for name, row in rows.items()
    }


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
    return {**pictures, **counted}


def _versions() -> dict[str, str]:
    packages = {package: version(package) for package in ("torch-fidelity", "numpy", "pillow")}
    return {"python": platform.python_version(), **versions(), **packages}


def _library() -> str:
    return f"{PACKAGE} {version(PACKAGE)}"


def _fidelity() -> str:
    return f"torch-fidelity {version('torch-fidelity')}"
