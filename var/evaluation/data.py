"""Images that a model is measured on: a split of a data source, cropped as for validation in training."""

import logging
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from torch import Tensor

from tokenizer.errors import InputError
from var.data.config import DataConfig
from var.data.dataset import ImageDataset, SampleDataset, Unreadable, UnreadableLog, open_dataset
from var.data.listing import MissingSplitError, Split
from var.data.loader import loader, validation_batches
from var.training.recipe import load_recipe
from var.utils.paths import to_path

log = logging.getLogger(__name__)

RECIPE_SUFFIXES = (".yaml", ".yml")


def read_source(source: str, overrides: Sequence[str] = ()) -> DataConfig:
    """Return the data configuration of a source: what is read, and how it is cropped to squares.

    Args:
        source: as data.source of a recipe; or the path of a recipe, whose section `data` is returned.
        overrides: changes of the recipe, such as data.source=FOLDER.

    Raises:
        InputError: a recipe that cannot be read or used; overrides without a recipe.
    """
    if source.endswith(RECIPE_SUFFIXES):
        return load_recipe(to_path(source, "data"), overrides).data
    if overrides:
        raise InputError(f"{overrides[0]!r} changes a recipe, but the data is {source!r}: give a recipe (.yaml)")
    return DataConfig(source=source)


def open_images(
    source: str | DataConfig, split: Split, side: int, classes: Sequence[int | str] | None = None
) -> ImageDataset:
    """Open a split as squares: short side resized to data.resize * side (default 1.125 * side), center crop.

    Args:
        source: as `read_source` takes or returns it.
        split: train or validation; neither is augmented.
        side: height and width of the squares in pixels.
        classes: only images of these labels or names of classes; None: those of the recipe, or all.

    Raises:
        InputError: no such source, split, column or class; no images; labels that are missing.
    """
    config = read_source(source) if isinstance(source, str) else source
    if classes is not None:
        config = config.model_copy(update={"classes": tuple(classes)})
    try:
        dataset = open_dataset(config, split, side, seed=0)
    except MissingSplitError as error:
        raise InputError(
            f"{config.source!r} has no {split} images: take the other split, or give a recipe (.yaml) as the source, "
            "whose data.validation_fraction holds out some of the training images"
        ) from error
    return ImageDataset(dataset.listing, config, side, seed=0, augment=False)


def restrict_to_labels(dataset: ImageDataset, labels: Collection[int]) -> ImageDataset:
    """Select images of these labels; all if labels are unknown before reading. Raises InputError if there are none."""
    if dataset.labels is None:
        return dataset
    chosen = np.isin(dataset.labels, sorted(labels))
    if not chosen.any():
        raise InputError(
            f"{dataset.config.source!r} has labels {_format_range(dataset.labels.tolist())}, but the model knows "
            f"{_format_range(labels)}: give data with the labels that the model was trained on"
        )
    return ImageDataset(dataset.listing.select(chosen), dataset.config, dataset.side, dataset.seed, augment=False)


def _format_range(labels: Collection[int]) -> str:
    low, high = min(labels), max(labels)
    return str(low) if low == high else f"{low} to {high}"


def count_requested(dataset: SampleDataset, limit: int | None) -> int:
    """Return the number of images that `image_batches` tries to read."""
    return len(dataset) if limit is None else min(limit, len(dataset))


def image_batches(
    dataset: SampleDataset, batch_size: int, limit: int | None = None
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield the images and their labels in the dataset's order; unreadable images are skipped, the first few named.

    Args:
        batch_size: images per batch; a batch with unreadable images is smaller.
        limit: maximum number of images, spread evenly over the dataset, the same as with validation_images=limit in
            training. None: all.

    Yields:
        (B, 3, S, S) float32 in [-1, 1], and B labels; B is at least 1.

    Raises:
        InputError: batch_size or limit below 1; no image could be read.
    """
    for name, value in (("batch", batch_size), ("num", limit)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    return _read(dataset, batch_size, limit)


def _read(dataset: SampleDataset, batch_size: int, limit: int | None) -> Iterator[tuple[Tensor, list[int]]]:
    read, unreadable = 0, 0
    last: Unreadable | None = None
    names = UnreadableLog()
    for batch in loader(dataset, validation_batches(dataset, batch_size, limit, rank=0, world=1), workers=0):
        names.add(batch.unreadable)
        last = batch.unreadable[-1] if batch.unreadable else last
        unreadable += len(batch.unreadable)
        if len(batch.labels):
            read += len(batch.labels)
            yield batch.content, batch.labels.tolist()
    if unreadable:
        log.warning("%d of %d images could not be read and are skipped", unreadable, read + unreadable)
    if not read:
        told = f", the last was {last}: {last.remedy}" if last else ": give others"
        raise InputError(f"none of the images could be read{told}")
