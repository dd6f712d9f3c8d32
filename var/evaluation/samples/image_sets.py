"""Sets of images to be scored: those of a folder, or of an .npz in ADM's format; read in batches.

B batch, H and W height and width.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.evaluation.samples.npz import LABELS, Npz, open_npz
from var.evaluation.samples.sample_folder import labels_are_imagenets
from var.sampling.drawing import index_within_class
from var.utils.image_files import FORMATS, IMAGE_SUFFIXES, find_images
from var.utils.images import exif_orientation, open_image, to_rgb
from var.utils.readers import Readers

LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats that are usually lossy
THREADS = 8  # read images; Pillow releases the GIL

MAX_DIGITS = 18  # of a label: more can be beyond 64 bits

_LABEL_INDEX = re.compile(r"(\d+)_\d+")  # as `var evaluate generate` names images


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, listed but not read."""

    path: Path
    kind: str  # folder or npz
    count: int
    labels: NDArray[np.int64] | None  # (count,); None unless all images have one
    sizes: Mapping[tuple[int, int], int]  # number of images of each (height, width)
    lossy: int  # number of images in a LOSSY format
    _read: Callable[[int, int], Iterable[NDArray[np.uint8]]] = field(repr=False)  # start, stop -> (H, W, 3) each
    imagenet_labels: bool = True  # False: known to be of other classes than ImageNet's

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images in order as (B, 3, H, W) uint8 RGB; B is smaller where the size changes, and at the end.

        Raises InputError: a batch size below 1, an image that cannot be read.
        """
        if batch_size < 1:
            raise InputError(f"batch={batch_size} must be at least 1")
        for start in range(0, self.count, batch_size):
            read = self._read(start, min(start + batch_size, self.count))
            for _, same in groupby(read, key=lambda image: image.shape):
                yield torch.from_numpy(np.stack(list(same))).permute(0, 3, 1, 2).contiguous()


def open_image_set(path: Path) -> ImageSet:
    """Open the images of a folder, at any depth, or of an .npz (`arr_0`; labels, if any, `arr_1`).

    In a folder an image's label is the name of its subfolder, if that is a number, or the number that its own name
    starts with, as in 000207_000003.png. Labeled images are ordered in rounds of one image per class, as the Inception
    Score is taken over consecutive parts, which should have all classes; others are sorted by path. Only headers are
    read here, pixels in `batches`. Images are converted to RGB, turned upright, transparency becomes white. Hidden
    files and folders are skipped.

    Raises InputError: no such folder or file, no images in it, an unreadable header.
    """
    images = _open_folder(path) if path.is_dir() else npz_images(open_npz(path))
    return replace(images, imagenet_labels=labels_are_imagenets(path))


def npz_images(npz: Npz) -> ImageSet:
    """Open the images of an .npz.

    Raises InputError: no images in it, or labels that are not one integer per image.
    """
    images = npz.images()
    count, height, width, _ = images.shape
    labels = npz.array(LABELS) if LABELS in npz.names else None
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise InputError(f"{npz.path}: {LABELS} is {labels.dtype} {labels.shape}: give one integer per image, {count}")
    return ImageSet(
        path=npz.path,
        kind="npz",
        count=count,
        labels=None if labels is None else labels.astype(np.int64),
        sizes={(height, width): count},
        lossy=0,
        _read=images.rows,
    )


def _open_folder(folder: Path) -> ImageSet:
    names = [Path(name) for name in find_images(folder)]
    if not names:
        raise InputError(f"{folder} holds no images: give files of a known type ({', '.join(sorted(IMAGE_SUFFIXES))})")
    labels = _parse_labels(names)
    if labels is not None:
        rounds = sorted(zip(index_within_class(labels), labels, names, strict=True))
        labels, names = [label for _, label, _ in rounds], [name for _, _, name in rounds]
    files = [folder / name for name in names]
    with Readers(THREADS) as readers:
        sizes, formats = zip(*readers.map(_read_header, files), strict=True)
    return ImageSet(
        path=folder,
        kind="folder",
        count=len(files),
        labels=None if labels is None else np.array(labels, np.int64),
        sizes=Counter(sizes),
        lossy=sum(name in LOSSY for name in formats),
        _read=partial(_read_files, files),
    )


def _parse_labels(names: Sequence[Path]) -> list[int] | None:
    """Return the labels of all images, or None if an image has none."""
    known = [label for name in names if (label := _parse_label(name)) is not None]
    return known if len(known) == len(names) else None


def _parse_label(name: Path) -> int | None:
    """Return the label of an image by its path in the folder, or None."""
    found = re.fullmatch(r"(\d+)", name.parent.name) or _LABEL_INDEX.fullmatch(name.stem)
    return int(found[1]) if found and len(found[1]) <= MAX_DIGITS else None


def _read_header(file: Path) -> tuple[tuple[int, int], str | None]:
    """Read the upright height and width, and the format."""
    with _as_input_error(file), Image.open(file, formats=FORMATS) as image:
        # A PNG's EXIF may come after its pixels, which would all be decoded first.
        turned = image.format != "PNG" and exif_orientation(image) >= 5
        return image.size if turned else image.size[::-1], image.format


def _read_files(files: Sequence[Path], start: int, stop: int) -> list[NDArray[np.uint8]]:
    with Readers(THREADS) as readers:
        return readers.map(_read_file, files[start:stop])


def _read_file(file: Path) -> NDArray[np.uint8]:
    with _as_input_error(file):
        return np.array(to_rgb(open_image(file)))


@contextmanager
def _as_input_error(file: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged bytes and metadata
        raise InputError(f"cannot read {file}: {one_line(error)}: replace or remove it") from error
