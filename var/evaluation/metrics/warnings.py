"""Warnings about the reliability of metrics, the same for samples and rFID."""

from collections.abc import Collection, Iterator

import numpy as np

from var.evaluation.metrics.extractors import INCEPTION, Extractor
from var.evaluation.metrics.feature_metrics import NEIGHBORS
from var.evaluation.metrics.reference import Reference
from var.evaluation.samples.image_sets import ImageSet

COMPARABLE = 10_000  # fewest images for a comparison with published numbers
ADM_SPLIT = 5000  # images per part of ADM's Inception Score
PUBLISHED = 50_000  # images of published numbers


def count_warnings(name: str, count: int, extractor: Extractor, fewest: int = PUBLISHED) -> Iterator[str]:
    """Warn of too few images for a Frechet distance: for its covariance, and below `fewest` for a comparison."""
    if count <= extractor.dimension:
        yield (
            f"{name}: {count} images are fewer than {extractor.dimension + 1}, the feature dimension + 1: the "
            f"covariance is singular and the Frechet distance too large"
        )
    if count < fewest:
        yield (
            f"{name}: with fewer than {fewest:,} images ({count}) no number is comparable with published ones, which "
            f"use {PUBLISHED:,}"
        )


def extractor_warnings(extractor: Extractor) -> Iterator[str]:
    """Warn if the features are not Inception's."""
    if extractor.name != INCEPTION:
        yield f"features are those of {extractor.name}, not Inception's: comparable only with numbers of the same"


def report_warnings(
    images: ImageSet, reference: Reference, extractor: Extractor, numbers: Collection[str]
) -> Iterator[str]:
    """Return warnings about the metrics, by name, that `score` computed."""
    yield from count_warnings("images", images.count, extractor, COMPARABLE)
    if reference.pool is not None:
        yield from count_warnings("reference's statistics", reference.pool.count or COMPARABLE, extractor, COMPARABLE)
    elif reference.images is not None:
        yield from count_warnings("reference", reference.images.count, extractor, COMPARABLE)
    yield from extractor_warnings(extractor)
    yield from _warn_of_missing(images, reference, extractor, numbers)
    yield from _warn_of_formats_and_sizes(images, reference)
    if "inception_score" in numbers:
        yield from _warn_of_parts(images)


def _warn_of_missing(
    images: ImageSet, reference: Reference, extractor: Extractor, numbers: Collection[str]
) -> Iterator[str]:
    """Warn of metrics that are missing although images or labels are there."""
    if reference.images is not None and "precision" not in numbers:
        fewest = min(images.count, reference.images.count)
        yield f"precision and recall left out: {fewest} images are too few, at least {NEIGHBORS + 1} are needed"
    if extractor.class_logits and images.labels is not None and "accuracy_top1" not in numbers:
        if images.imagenet_labels:
            yield (
                f"accuracy left out: {images.path} has labels {images.labels.min()}..{images.labels.max()}, which are "
                f"not ImageNet-1k's 0..999: rename images or subfolders by their class index"
            )
        else:
            yield f"accuracy left out: {images.path} has labels of the model's own classes, not ImageNet's"


def _warn_of_formats_and_sizes(images: ImageSet, reference: Reference) -> Iterator[str]:
    """Warn of lossy formats and of differing sizes."""
    for name, each in (("images", images), ("reference", reference.images)):
        if each is None:
            continue
        if each.lossy:
            yield f"{name}: {each.lossy} of {each.count} images are JPEG or WebP, whose artifacts change the features"
        if len(each.sizes) > 1:
            yield f"{name}: images of {len(each.sizes)} sizes, such as {_format_sizes(each)}"
    if reference.images is not None and set(images.sizes) != set(reference.images.sizes):
        yield f"the sizes differ: images {_format_sizes(images)}, reference {_format_sizes(reference.images)}"


def _warn_of_parts(images: ImageSet) -> Iterator[str]:
    """Warn of an order and a number of images that distort ADM's Inception Score."""
    if images.labels is not None:
        first, present = len(np.unique(images.labels[:ADM_SPLIT])), len(np.unique(images.labels))
        if first < present / 2:
            yield (
                f"the images are sorted by class: the first {ADM_SPLIT} have {first} of {present} classes, which "
                f"bounds ADM's Inception Score of that part; the shuffled one is not bounded"
            )
    if last := images.count % ADM_SPLIT:
        yield f"the Inception Score's last part has {last} images, not {ADM_SPLIT}: small parts lower it"


def _format_sizes(images: ImageSet) -> str:
    """List the most common sizes."""
    common = sorted(images.sizes, key=lambda size: -images.sizes[size])
    return ", ".join(f"{width}x{height}" for height, width in common[:3]) + (", ..." if len(common) > 3 else "")
