"""Which images features are made of: those below a folder, or a split of what a recipe takes as data.

S side of the images.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.utils.classes import class_labels
from var.utils.images import FORMATS, open_picture, resize_and_center_crop

if TYPE_CHECKING:
    from var.data.sources import Encoded, Source, Split


class Picture(NamedTuple):
    """An image as `var.utils.images.resize_and_center_crop` gives it."""

    path: str
    label: int | None
    pixels: Tensor  # (3, S, S) in [-1, 1]


@dataclass(frozen=True)
class Pictures:
    """Images in a fixed order, found but not opened.

    Attributes:
        count: of them.
        checksum: of their paths, labels and classes.
        class_names: name of a label, where it has one.
        reader: takes S and gives the function that reads the image of a number below count. That function may be called
            in several threads, and raises InputError on what cannot be read.
    """

    count: int
    checksum: str
    class_names: Mapping[int, str]
    reader: Callable[[int], Callable[[int], Picture]]


def folder_pictures(folder: Path) -> Pictures:
    """All images below a folder, sorted by path; those in subfolders are labeled by the first of them.

    Labels number the folder's sorted subfolders; where all their names are numbers, they are the labels themselves, as
    in training. Images directly in the folder have no label. Hidden files and folders are passed over.

    Raises:
        InputError: no such folder, one that cannot be read, no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder" if folder.exists() else f"{folder} does not exist")
    names = sorted(_image_names(folder))
    if not names:
        tables = next(folder.glob("**/*.parquet"), None)
        remedy = "say which of its images with --split train or validation" if tables else f"known are {_suffix_list()}"
        raise InputError(f"{folder} holds no image files{' but Parquet' if tables else ''}: {remedy}")
    classes = class_labels(entry.name for entry in os.scandir(folder) if entry.is_dir() and _visible(entry.name))
    numbered = all(name.isdecimal() for name in classes)

    def label_of(name: str) -> int | None:
        first, inside, _ = name.partition("/")
        return classes[first] if inside else None

    def reader(side: int) -> Callable[[int], Picture]:
        def read(i: int) -> Picture:
            path = folder / names[i]
            try:
                pixels = resize_and_center_crop(open_picture(path), side)
            except InputError:
                raise
            except Exception as error:  # damaged metadata makes Pillow raise nearly anything
                raise InputError(f"cannot read {path}: {one_line(error)}") from error
            return Picture(_text(names[i]), label_of(names[i]), pixels)

        return read

    class_names = {} if numbered else {label: _text(name) for name, label in classes.items()}
    # An image's class is in its path, but its label depends on the other subfolders too.
    checksum = _checksum(part for name in names for part in (os.fsencode(name), str(label_of(name)).encode()))
    return Pictures(len(names), checksum, class_names, reader)


def split_pictures(source: str, split: "Split") -> Pictures:
    """The images of a split of what a recipe takes as data.source, in its order and with its labels.

    Args:
        source: a folder with train/ and val/ or with train*.parquet and validation*.parquet, a hub dataset, or the
            index of shards. See `var.data.sources.list_images`.
        split: train or validation.

    Raises:
        InputError: as list_images raises it; the packages for training are not installed.
    """
    try:
        from var.data.config import DataConfig
        from var.data.dataset import ImageDataset, Unreadable
        from var.data.sources import list_images
    except ImportError as error:
        raise InputError("splits are read as training reads them: pip install 'var-next-scale[train]'") from error

    config = DataConfig(source=source, resize=256 / 224)  # as `resize_and_center_crop` has it
    with _without_bars():
        listing = list_images(config, split)
    listing = listing._replace(source=_OneByOne(listing.source))
    prefix = f"{Path(source)}/"

    def reader(side: int) -> Callable[[int], Picture]:
        dataset = ImageDataset(listing, config, side, seed=0, augment=False)

        def read(i: int) -> Picture:
            found = dataset[0, i]
            if isinstance(found, Unreadable):
                raise InputError(f"cannot read {found.place}: {found.reason}")
            return Picture(_text(found.place.removeprefix(prefix)), found.label, found.content)

        return read

    told = [os.fsencode(listing.source.place(int(row))) for row in listing.rows]
    labels = [] if listing.labels is None else [listing.labels.tobytes()]
    classes = [f"{label}={name}".encode() for label, name in sorted(listing.class_names.items())]
    return Pictures(len(told), _checksum([*told, *labels, *classes]), listing.class_names, reader)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, `datasets` shows no progress where nobody watches it: what goes wrong is told in one line."""
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

    def place(self, row: int) -> str:
        return self.source.place(row)

    def read(self, row: int) -> "Encoded":
        with self.lock:
            return self.source.read(row)


def _checksum(texts: Iterable[bytes]) -> str:
    hashing = hashlib.sha256()
    for text in texts:
        hashing.update(text + b"\0")  # which no path contains
    return hashing.hexdigest()


def _image_names(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = filter(_visible, folders)
        below = Path(parent).relative_to(folder)
        suffixes = _suffixes()
        yield from (
            (below / file).as_posix() for file in files if _visible(file) and Path(file).suffix.lower() in suffixes
        )


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS)


def _suffix_list() -> str:
    return ", ".join(sorted(_suffixes()))


def _text(given: str) -> str:
    """What Parquet can hold: names of files may be no text."""
    return os.fsencode(given).decode(errors="backslashreplace")
