"""Warnings about the reliability of metrics, the same for samples and rFID."""

from collections.abc import Collection, Iterator

import numpy as np

from var.evaluation.metrics.extractors import INCEPTION, Extractor
from var.evaluation.metrics.metrics import NEIGHBORS
from var.evaluation.metrics.reference import Reference
from var.evaluation.samples.image_sets import ImageSet

COMPARABLE = 10_000  # images below which nobody's numbers are comparable with published ones
ADM_SPLIT = 5000  # of the Inception Score
PUBLISHED = 50_000  # images that published numbers are of


def count_warnings(name: str, count: int, extractor: Extractor, fewest: int = PUBLISHED) -> Iterator[str]:
    """Of a Frechet distance of so many images; with `fewest` its numbers still compare with published ones."""
    if count <= extractor.dimension:
        yield (
            f"{name}: {count} pictures are fewer than {extractor.dimension + 1}, one more than the features have "
            f"numbers: their covariance is singular and the Frechet distance too large"
        )
    if count < fewest:
        yield (
            f"{name}: with fewer than {fewest:,} pictures ({count}) no number is comparable with published ones, which "
            f"are of {PUBLISHED:,}"
        )


def extractor_warnings(extractor: Extractor) -> Iterator[str]:
    """Of all numbers."""
    if extractor.name != INCEPTION:
        yield f"features are those of {extractor.name}, not Inception's: comparable only with numbers made so"


def report_warnings(
    images: ImageSet, reference: Reference, extractor: Extractor, numbers: Collection[str]
) -> Iterator[str]:
    """Of the numbers, by name, that `score` found."""
    yield from count_warnings("images", images.count, extractor, COMPARABLE)
    if reference.pool is not None:
        yield from count_warnings("reference's statistics", reference.pool.count or COMPARABLE, extractor, COMPARABLE)
    elif reference.images is not None:
        yield from count_warnings("reference", reference.images.count, extractor, COMPARABLE)
    yield from extractor_warnings(extractor)
    yield from _left_out(images, reference, extractor, numbers)
    yield from _doubts_of_pictures(images, reference)
    if "inception_score" in numbers:
        yield from _doubts_of_parts(images)


def _left_out(images: ImageSet, reference: Reference, extractor: Extractor, numbers: Collection[str]) -> Iterator[str]:
    """Numbers that could have been expected."""
    if reference.images is not None and "precision" not in numbers:
        fewest = min(images.count, reference.images.count)
        yield f"precision and recall left out: {fewest} pictures have no {NEIGHBORS} neighbors, {NEIGHBORS + 1} do"
    if extractor.class_logits and images.labels is not None and "accuracy_top1" not in numbers:
        yield (
            f"accuracy left out: {images.path} has labels {images.labels.min()}..{images.labels.max()}, which are not "
            f"ImageNet-1k's 0..999: rename pictures or subfolders that are not named by a class"
        )


def _doubts_of_pictures(images: ImageSet, reference: Reference) -> Iterator[str]:
    """Lossy formats and differing sizes."""
    for name, each in (("images", images), ("reference", reference.images)):
        if each is None:
            continue
        if each.lossy:
            yield f"{name}: {each.lossy} of {each.count} pictures are JPEG or WebP, whose traces the features see"
        if len(each.sizes) > 1:
            yield f"{name}: pictures of {len(each.sizes)} sizes, such as {_sizes(each)}"
    if reference.images is not None and set(images.sizes) != set(reference.images.sizes):
        yield f"the sizes differ: images {_sizes(images)}, reference {_sizes(reference.images)}"


def _doubts_of_parts(images: ImageSet) -> Iterator[str]:
    """Of ADM's Inception Score, which depends on the order of the images."""
    if images.labels is not None:
        first, present = len(np.unique(images.labels[:ADM_SPLIT])), len(np.unique(images.labels))
        if first < present / 2:
            yield (
                f"the pictures come class by class: the first {ADM_SPLIT} show {first} of {present} classes, to which "
                f"ADM's Inception Score is bounded there; the shuffled one is not"
            )
    if last := images.count % ADM_SPLIT:
        yield f"the Inception Score's last part has {last} pictures, not {ADM_SPLIT}: small parts lower it"


def _sizes(images: ImageSet) -> str:
    """The commonest few, for the eye."""
    common = sorted(images.sizes, key=lambda size: -images.sizes[size])
    return ", ".join(f"{width}x{height}" for height, width in common[:3]) + (", ..." if len(common) > 3 else "")
