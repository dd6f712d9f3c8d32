"""Finished images to be measured: those of a folder, or of an .npz as ADM's evaluator takes it. Never all in memory.

B batch.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.evaluation.samples.npz import LABELS, Npz, open_npz
from var.sampling.generate import index_within_class
from var.utils.images import FORMATS, IMAGE_SUFFIXES, find_images, open_image, to_rgb

LOSSY = ("JPEG", "JPEG2000", "WEBP")  # formats that mostly change what they keep
THREADS = 8  # that read images; Pillow lets them run side by side

_LABEL_INDEX = re.compile(r"(\d+)_\d+")  # as `var evaluate generate` names images


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, found but not read."""

    path: Path
    kind: str  # folder or npz
    count: int
    labels: NDArray[np.int64] | None  # (count,), or None unless all images have one
    sizes: Mapping[tuple[int, int], int]  # number of images of each (height, width)
    lossy: int  # number of images in a LOSSY format
    _read: Callable[[int, int], Iterable[NDArray[np.uint8]]] = field(repr=False)  # from, to -> (H, W, 3) each

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """(B, 3, H, W) uint8 in RGB, all images in their order; B is smaller where the size changes, and at the end.

        Raises InputError: a batch size below 1, an image that cannot be read.
        """
        if batch_size < 1:
            raise InputError(f"batch={batch_size} must be at least 1")
        for start in range(0, self.count, batch_size):
            read = self._read(start, min(start + batch_size, self.count))
            for _, same in groupby(read, key=lambda image: image.shape):
                yield torch.from_numpy(np.stack(list(same))).permute(0, 3, 1, 2).contiguous()


def open_image_set(path: Path) -> ImageSet:
    """The images of a folder, at any depth, or those of an .npz (`arr_0`; labels, if any, `arr_1`).

    In a folder an image's label is the number that its subfolder is named by, or that its own name begins with, as in
    000207_000003.png. Labeled images come in rounds, one of every class in each, as the Inception Score is taken of
    consecutive parts, which are to show all classes; others sorted by path. Of every file of a folder the header is
    read here, the rest in `batches`. Images of any mode become RGB, upright, what is transparent white. Hidden files
    and folders are passed over.

    Raises InputError: no such folder or file, no images in it, one whose header cannot be read.
    """
    return _folder(path) if path.is_dir() else npz_images(open_npz(path))


def npz_images(npz: Npz) -> ImageSet:
    """The images of an .npz that has any.

    Raises InputError: it has none, or labels that are not a whole number an image.
    """
    images = npz.images()
    count, height, width, _ = images.shape
    labels = npz.array(LABELS) if LABELS in npz.names else None
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise InputError(f"{npz.path}: {LABELS} is {labels.dtype} {labels.shape}: {count} whole numbers are needed")
    return ImageSet(
        path=npz.path,
        kind="npz",
        count=count,
        labels=None if labels is None else labels.astype(np.int64),
        sizes={(height, width): count},
        lossy=0,
        _read=images.rows,
    )


def _folder(folder: Path) -> ImageSet:
    names = [Path(name) for name in find_images(folder)]
    if not names:
        raise InputError(f"{folder} holds no pictures: known are {', '.join(sorted(IMAGE_SUFFIXES))}")
    labels = _labels(names)
    if labels is not None:
        rounds = sorted(zip(index_within_class(labels), labels, names, strict=True))
        labels, names = [label for _, label, _ in rounds], [name for _, _, name in rounds]
    files = [folder / name for name in names]
    with ThreadPoolExecutor(THREADS) as threads:
        sizes, formats = zip(*threads.map(_header, files), strict=True)
    return ImageSet(
        path=folder,
        kind="folder",
        count=len(files),
        labels=None if labels is None else np.array(labels, np.int64),
        sizes=Counter(sizes),
        lossy=sum(name in LOSSY for name in formats),
        _read=partial(_read_files, files),
    )


def _labels(names: Sequence[Path]) -> list[int] | None:
    """Those of all pictures, or None if one has none."""
    known = [label for name in names if (label := _label(name)) is not None]
    return known if len(known) == len(names) else None


def _label(name: Path) -> int | None:
    """That of an image, by its path below the folder."""
    if name.parent.name.isdecimal():
        return int(name.parent.name)
    found = _LABEL_INDEX.fullmatch(name.stem)
    return int(found[1]) if found else None


def _header(file: Path) -> tuple[tuple[int, int], str | None]:
    """Height and width, upright, and format."""
    with _reading(file), Image.open(file, formats=FORMATS) as image:
        # That of a PNG may stand behind its pixels, all of which would be decoded for it.
        turned = image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return image.size if turned else image.size[::-1], image.format


def _read_files(files: Sequence[Path], start: int, stop: int) -> list[NDArray[np.uint8]]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(_read_file, files[start:stop]))


def _read_file(file: Path) -> NDArray[np.uint8]:
    with _reading(file):
        return np.array(to_rgb(open_image(file)))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged bytes and metadata
        raise InputError(f"cannot read {file}: {one_line(error)}: replace or remove it") from error
