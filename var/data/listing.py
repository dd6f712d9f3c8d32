"""A split of images before any of them is opened: the location and label of each."""

from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError

Split = Literal["train", "validation"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}
TEST = "test"  # serves for validation only where no part of the training images is to be held out


def split_names(split: Split, held_out: float = 0) -> tuple[str, ...]:
    """Return the names of a split, the preferred first; `held_out` is data.validation_fraction."""
    return tuple(name for name in SPLIT_NAMES[split] if not (held_out and name == TEST))


class Encoded(NamedTuple):
    """An image file, not yet decoded."""

    file: Path | BytesIO
    location: str
    label: int = 0  # read with the image, where the listing has no labels


class Source(Protocol):
    """Encoded images by number."""

    def location(self, row: int) -> str:
        """Return the location of an image, for messages."""

    def read(self, row: int) -> Encoded:
        """Read an image. Raises any exception if it cannot be read."""


class Listing(NamedTuple):
    """A split before any image is opened: N images."""

    source: Source
    rows: NDArray[np.int64]  # (N,) numbers in the source, rising
    labels: NDArray[np.int64] | None  # (N,); None: known only when an image is read
    num_classes: int | None  # None: unknown, as the labels are
    class_names: dict[int, str]
    shards: NDArray[np.int64] | None = None  # (N,) the shard of each, rising; None: not in shards

    def select(self, chosen: NDArray[np.bool_]) -> "Listing":
        """Select the images where chosen, (N,), is true."""
        return self._replace(
            rows=self.rows[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            shards=None if self.shards is None else self.shards[chosen],
        )

    def number_classes(self, labels: NDArray[np.int64]) -> "Listing":
        """Number classes from 0 in the order of their labels, (C,) rising, among which are those of all images.

        A class without a name is then named by the label that it had.
        """
        names = {number: self.class_names.get(label, str(label)) for number, label in enumerate(labels.tolist())}
        numbers = None if self.labels is None else np.searchsorted(labels, self.labels)
        return self._replace(labels=numbers, num_classes=len(labels), class_names=names)


class MissingSplitError(InputError):
    """The source has no images for validation, or none for training."""


def unlabeled(source: Source, count: int) -> Listing:
    """List all images of a source as a single class."""
    return Listing(source, np.arange(count), np.zeros(count, np.int64), 1, {})
