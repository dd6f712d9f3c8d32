"""A split of images before any of them is opened: where each lies, and its label."""

from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError

Split = Literal["train", "validation"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}


class Encoded(NamedTuple):
    """An image file, not yet decoded."""

    file: Path | BytesIO
    location: str
    label: int = 0  # read beside the image, where the listing has no labels


class Source(Protocol):
    """Encoded images by number."""

    def location(self, row: int) -> str:
        """The place of an image, for messages."""

    def read(self, row: int) -> Encoded:
        """An image. Raises anything where it cannot be read."""


class Listing(NamedTuple):
    """A split before any image is opened: N images."""

    source: Source
    rows: NDArray[np.int64]  # (N,) which of the source's images, rising
    labels: NDArray[np.int64] | None  # (N,); None: only reading an image tells it
    num_classes: int | None  # None: unknown, as the labels are
    class_names: dict[int, str]
    shards: NDArray[np.int64] | None = None  # (N,) what is fetched whole to read an image, rising; None: nothing is

    def only(self, chosen: NDArray[np.bool_]) -> "Listing":
        """The images at which chosen, (N,), is true."""
        return self._replace(
            rows=self.rows[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            shards=None if self.shards is None else self.shards[chosen],
        )


class MissingSplitError(InputError):
    """The source has no images for validation, or none for training."""


def unlabeled(source: Source, count: int) -> Listing:
    """All images of a source as those of one class."""
    return Listing(source, np.arange(count), np.zeros(count, np.int64), 1, {})
