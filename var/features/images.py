"""The images that features are made of: those below a folder, or a split of what a recipe takes as data.

S side of the images.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.utils.classes import class_labels, folder_names
from var.utils.image_files import IMAGE_SUFFIXES, class_folders, find_images
from var.utils.images import open_image, resize_and_center_crop
from var.utils.optional_packages import optional_packages
from var.utils.paths import to_path
from var.utils.provenance import sha256
from var.utils.text import as_unicode

if TYPE_CHECKING:
    from var.data.listing import Encoded, Source, Split


class LabeledImage(NamedTuple):
    """An image as `var.utils.images.resize_and_center_crop` gives it."""

    path: str
    label: int | None
    pixels: Tensor  # (3, S, S) in [-1, 1]


@dataclass(frozen=True)
class ImageList:
    """Images in a fixed order, found but not opened."""

    count: int
    checksum: str  # of their paths, labels and classes
    class_names: Mapping[int, str]  # by label, where it has one
    # Takes a number below count, and S. Several threads may call it; raises InputError on what cannot be read.
    read: Callable[[int, int], LabeledImage]


def list_folder(folder: str | Path) -> ImageList:
    """All images below a folder, sorted by path; those in subfolders are labeled by the first of them.

    Labels number the folder's sorted subfolders that hold images; where all their names are numbers, they are the
    labels themselves, as in training, unless they are too large for so few classes (`var.utils.classes.labels_fit`).
    Images directly in the folder have no label. Files are passed over as in `find_images`.

    Raises InputError: no such folder, one that cannot be read, no images.
    """
    folder = to_path(folder, "folder")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder" if folder.exists() else f"{folder} does not exist")
    names = find_images(folder)
    if not names:
        if next(folder.glob("**/*.parquet"), None):
            found, remedy = "image files but Parquet", "say which of its images with --split train or validation"
        else:
            found, remedy = "image files", f"known are {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise InputError(f"{folder} holds no {found}: {remedy}")
    classes = class_labels(class_folders(folder))

    def label_of(name: str) -> int | None:
        first, inside, _ = name.partition("/")
        return classes[first] if inside else None

    def read(i: int, side: int) -> LabeledImage:
        path = folder / names[i]
        try:
            pixels = resize_and_center_crop(open_image(path), side)
        except InputError:
            raise
        except Exception as error:  # damaged metadata makes Pillow raise nearly anything
            raise InputError(f"cannot read {path}: {one_line(error)}") from error
        return LabeledImage(as_unicode(names[i]), label_of(names[i]), pixels)

    class_names = folder_names(classes)
    # An image's class is in its path, but its label depends on the other classes too.
    checksum = _checksum(part for name in names for part in (os.fsencode(name), str(label_of(name)).encode()))
    return ImageList(len(names), checksum, class_names, read)


def list_split(source: str, split: "Split") -> ImageList:
    """The images of a split of what a recipe takes as data.source, in its order and with its labels.

    Args:
        source: a folder with train/ and val/ or with train*.parquet and validation*.parquet, a hub dataset, or the
            index of shards. See `var.data.sources.list_images`.
        split: train or validation.

    Raises:
        InputError: as list_images raises it; the packages for training are not installed.
    """
    with optional_packages():
        from var.data.config import DataConfig
        from var.data.dataset import ImageDataset, Unreadable
        from var.data.listing import MissingSplitError
        from var.data.sources import list_images

    config = DataConfig(source=source, resize=256 / 224)  # as `resize_and_center_crop` has it
    try:
        with _without_bars():
            listing = list_images(config, split)
    except MissingSplitError as error:
        raise InputError(
            f"{source!r} has no {split} images: take the other split, or give the folder of the images without --split"
        ) from error
    listing = listing._replace(source=_OneByOne(listing.source))
    prefix = f"{Path(source)}/"

    @cache
    def dataset(side: int) -> ImageDataset:
        return ImageDataset(listing, config, side, seed=0, augment=False)

    def read(i: int, side: int) -> LabeledImage:
        found = dataset(side)[0, i]
        if isinstance(found, Unreadable):
            raise InputError(f"cannot read {found.location}: {found.reason}")
        return LabeledImage(as_unicode(found.location.removeprefix(prefix)), found.label, found.content)

    paths = [os.fsencode(listing.source.location(int(row))) for row in listing.rows]
    labels = [] if listing.labels is None else [listing.labels.tobytes()]
    classes = [f"{label}={name}".encode() for label, name in sorted(listing.class_names.items())]
    return ImageList(len(paths), _checksum([*paths, *labels, *classes]), listing.class_names, read)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, `datasets` shows no progress where nobody watches it: errors are shown in one line."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


class _OneByOne:
    """A source that several threads may read: not all of them can be read by two at once."""

    def __init__(self, source: "Source") -> None:
        self.source = source
        self.lock = threading.Lock()

    def location(self, row: int) -> str:
        """Return the location of an image, for messages."""
        return self.source.location(row)

    def read(self, row: int) -> "Encoded":
        """Read the bytes of an image, one thread at a time."""
        with self.lock:
            return self.source.read(row)


def _checksum(texts: Iterable[bytes]) -> str:
    return sha256(text + b"\0" for text in texts)  # which no path contains
