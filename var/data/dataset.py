"""Images for training, in an order that follows from the seed alone.

A sample's content follows from (seed, epoch, index) alone, the samples of a step from (seed, step) alone. So the number
of reader processes changes nothing, the number of training processes only divides the batch, and a resumed run gets the
same samples as an uninterrupted one.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from tokenizer.errors import InputError, abbreviate
from var.data.config import DataConfig, JitterConfig
from var.data.fingerprint import choose_images, fingerprint_of
from var.data.listing import Listing, Source, Split
from var.data.order import AUGMENTATION, ShardOrder, epoch_order, substitute
from var.data.sources import FolderSource, list_images
from var.data.transfer import is_remote
from var.data.webdataset import ShardSource
from var.utils.contents import HEAD, find_substitute
from var.utils.image_files import FORMATS
from var.utils.images import crop_and_resize, resize_and_crop, to_rgb, to_tensor
from var.utils.provenance import as_key, sha256
from var.utils.text import escape
from var.utils.torchvision_compat import import_torchvision

Key = tuple[int, int]  # epoch, index of the image in the dataset

log = logging.getLogger(__name__)

NAMED = 5  # unreadable images
SUBSTITUTES = 16  # tried in place of a training image that cannot be read
ASPECTS = (math.log(3 / 4), math.log(4 / 3))  # of resized crops


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read."""

    index: int  # in the dataset
    location: str  # a path, or the row of the table
    reason: str

    def __str__(self) -> str:
        return escape(f"{self.location} ({self.reason})")

    @property
    def remedy(self) -> str:
        """What to do about it and others like it, for the end of a message."""
        if is_remote(self.location):
            return (
                "see that the URLs in the index are right and that their server gives the whole files without a login"
            )
        return "repair or replace them"


class UnreadableLog:
    """Names the first few images that could not be read in the log, each once."""

    def __init__(self) -> None:
        self.named: set[str] = set()

    def add(self, found: Iterable[Unreadable]) -> None:
        """Name those that are new, until NAMED are."""
        for bad in found:
            if bad.location not in self.named and len(self.named) < NAMED:
                self.named.add(bad.location)
                more = "; further ones are counted, not named" if len(self.named) == NAMED else ""
                log.warning("cannot read %s%s", bad, more)


class Sample(NamedTuple):
    """A readable image, or the tokens of one."""

    content: Tensor  # (3, side, side) float32 in [-1, 1], or (L,) int64
    label: int
    location: str  # a path, or the row of the table
    unreadable: tuple[Unreadable, ...]  # those that it replaces


class Batch(NamedTuple):
    """The readable samples of a batch, and the unreadable ones."""

    content: Tensor  # (B, 3, side, side) float32 in [-1, 1], or (B, L) int64
    labels: Tensor  # (B,) int64
    locations: list[str]  # B
    unreadable: list[Unreadable]


class SampleDataset(Dataset[Sample | Unreadable]):
    """Images or tokens for the loader; a key is (epoch, index).

    Attributes:
        labels: (len,) int64, one a sample; None where a label is known only when its sample is read.
        class_names: name of a label; {} where the data has no names.
        empty: (0, ...): an empty batch's content, with its shape and dtype.
        shards: the order of samples in shards; None: they are separate files or rows.
    """

    labels: NDArray[np.int64] | None
    class_names: dict[int, str]
    empty: Tensor

    def __init__(
        self, length: int, known_classes: int | None, shards: NDArray[np.int64] | None, window: int, seed: int
    ) -> None:
        self.length = length
        self.known_classes = known_classes
        self.shards = None if shards is None else ShardOrder(shards, window, seed)
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    @property
    def num_classes(self) -> int:
        """One more than the largest possible label, excluded classes counted.

        Raises InputError: the labels are in shards, and their index has no num_classes.
        """
        if self.known_classes is None:
            raise InputError("the index of the shards has no num_classes: add it there, or set the model's")
        return self.known_classes

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(len,): the permutation of the samples in an epoch; with shards it needs few of them open at a time."""
        return epoch_order(len(self), self.seed, epoch) if self.shards is None else self.shards.order(epoch)

    def describe(self) -> dict[str, Any]:
        """Return the number of images, and SHA-256 of labels and names, and fingerprints of the content of some.

        They tell the images from others. What is not known without reading all images is None; of labels that are read
        with the images, "sampled_labels" are those of the images whose content is fingerprinted.
        """
        labels = None if self.labels is None else sha256([self.labels.astype("<i8").tobytes()])
        return {"images": len(self), "labels": labels, "sampled_labels": None, "names": None, "content": None}


class ImageDataset(SampleDataset):
    """Square images, (3, side, side) float32 in [-1, 1], with labels.

    In training an unreadable image is replaced by another, so that batches are always full and a step's samples do not
    depend on the division of its batch; in validation it is left out.
    """

    def __init__(self, listing: Listing, config: DataConfig, side: int, seed: int, augment: bool) -> None:
        super().__init__(len(listing.rows), listing.num_classes, listing.shards, config.shuffle_shards, seed)
        self.listing = listing
        self.labels = listing.labels
        self.class_names = listing.class_names
        self.side = side
        self.short_side = round(config.resize * side)
        self.empty = torch.empty(0, 3, side, side)
        self.augment = augment
        self.config = config

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        """Read an epoch's version of the image or, in training, the first readable substitute; never raise."""
        epoch, index = key
        tried: tuple[Unreadable, ...] = ()
        for attempt in range(1 + SUBSTITUTES if self.augment else 1):
            found = self._read(epoch, self._choose_substitute(epoch, index, attempt) if attempt else index)
            if isinstance(found, Sample):
                return found._replace(unreadable=tried)
            tried += (found,)
        return tried[0]

    def describe(self) -> dict[str, Any]:
        source, rows = self.listing.source, self.listing.rows
        described = super().describe()
        if isinstance(source, ShardSource):
            described["names"] = sha256(f"{Path(url).name}\0".encode() for url in source.urls)
            if any(map(is_remote, source.urls)):  # reading them may be a long download
                return described
        if isinstance(source, FolderSource):
            described["names"] = sha256([b"\0".join(source.names[rows].tolist())])
        chosen = rows[choose_images(len(rows), self.labels)]
        contents, labels = zip(*(_read_encoded(source, int(row)) for row in chosen), strict=True)
        if isinstance(source, ShardSource):
            source.opened.clear()  # readers open their own
            if self.labels is None and None not in labels:
                described["sampled_labels"] = sha256([as_key(labels)])
        return described | {"content": [fingerprint_of(content) for content in contents]}

    def _choose_substitute(self, epoch: int, index: int, attempt: int) -> int:
        if self.shards is None:
            return substitute(self.seed, epoch, index, attempt, len(self))
        # From the same shard or the next ones: any other would be fetched for a single image.
        near = self.shards.samples_after(epoch, index, attempt // 2)
        return near[substitute(self.seed, epoch, index, attempt, len(near))]

    def _read(self, epoch: int, index: int) -> Sample | Unreadable:
        row, source = int(self.listing.rows[index]), self.listing.source
        location = source.location(row)
        try:
            encoded = source.read(row)
            location = encoded.location
            if self.augment and self.shards is not None and isinstance(source, ShardSource):
                source.prefetch(int(self.listing.rows[self.shards.samples_after(epoch, index, 1)[0]]))
            with Image.open(encoded.file, formats=FORMATS) as image:
                pixels = self._crop_to_square(image, epoch, index)
        except UnidentifiedImageError:
            substitute = find_substitute(_read_head(encoded.file))
            return Unreadable(index, location, substitute or f"not an image in one of the formats {', '.join(FORMATS)}")
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
            # The error itself, not its first cause: "truncated file" says more than which bytes are missing.
            text = str(error).removeprefix(f"{location}: ")  # which is said anyway
            return Unreadable(index, location, " ".join(f"{type(error).__name__}: {text}".split()))
        label = encoded.label if self.labels is None else int(self.labels[index])
        return Sample(to_tensor(pixels), label, location, ())

    def _crop_to_square(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            # Pillow itself only warns below twice its bound.
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels, {Image.MAX_IMAGE_PIXELS} allowed")
        image = to_rgb(image)
        if not self.augment:
            return resize_and_crop(image, self.short_side, self.side)
        rng = np.random.default_rng((AUGMENTATION, self.seed, epoch, index))
        return augment_image(image, self.config, self.side, rng)


def _read_encoded(source: Source, row: int) -> tuple[bytes, int | None]:
    """Read an image's file and the label beside it; one that cannot be read is empty, with label None."""
    try:
        file, _, label = source.read(row)
        return file.read_bytes() if isinstance(file, Path) else file.getvalue(), label
    except Exception:  # every source raises its own
        return b"", None


def _read_head(file: Path | BytesIO) -> bytes:
    with file.open("rb") if isinstance(file, Path) else BytesIO(file.getvalue()) as opened:
        return opened.read(HEAD)


def open_dataset(config: DataConfig, split: Split, side: int, seed: int) -> ImageDataset:
    """Find and label the images of a split, without opening them; see `sources.list_images` for the possible sources.

    Raises InputError: no such folder or dataset, split, column or class; no images; labels that are missing.
    """
    return ImageDataset(list_images(config, split), config, side, seed, augment=split == "train")


def number_present_classes(train: ImageDataset, validation: ImageDataset) -> list[ImageDataset]:
    """The same images, with the classes that have training images numbered from 0 in the order of their labels.

    Raises InputError: labels that are inside shards; validation images of a class without training images.
    """
    if train.labels is None or validation.labels is None:
        raise InputError(
            f"the classes of data.source={train.config.source!r} cannot be numbered, for their labels are inside shards"
        )
    present = np.unique(train.labels)
    if absent := sorted(set(validation.labels.tolist()) - set(present.tolist())):
        raise InputError(
            f"data.source={train.config.source!r} has validation images of labels {abbreviate(absent)}, but no "
            "training images: add some, or choose others by data.classes"
        )
    return [
        ImageDataset(each.listing.number_classes(present), each.config, each.side, each.seed, each.augment)
        for each in (train, validation)
    ]


def augment_image(image: Image.Image, config: DataConfig, side: int, rng: np.random.Generator) -> Image.Image:
    """Crop a square of an RGB image, randomly mirror it and change its colors, as configured."""
    x, y, mirror = rng.random(3)
    margin = round(config.pad * min(image.size))
    short_side = round(round(config.resize * side) * (1 + 2 * margin / min(image.size)))
    image = ImageOps.expand(image, margin, "white") if margin else image
    if config.crop == "resized":
        low, high = config.crop_area
        image = crop_and_resize(image, side, rng.uniform(low, high), math.exp(rng.uniform(*ASPECTS)), (x, y))
    else:
        image = resize_and_crop(image, short_side, side, (x, y) if config.crop == "random" else (0.5, 0.5))
    if config.flip and mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image if config.jitter is None else jitter_colors(image, config.jitter, rng)


def jitter_colors(image: Image.Image, config: JitterConfig, rng: np.random.Generator) -> Image.Image:
    """Change an image's colors in random order, with the configured probability."""
    import_torchvision()
    from torchvision.transforms import functional

    changes = (
        (functional.adjust_brightness, rng.uniform(1 - config.brightness, 1 + config.brightness)),
        (functional.adjust_contrast, rng.uniform(1 - config.contrast, 1 + config.contrast)),
        (functional.adjust_saturation, rng.uniform(1 - config.saturation, 1 + config.saturation)),
        (functional.adjust_hue, rng.uniform(-config.hue, config.hue)),
    )
    order = rng.permutation(len(changes))
    if rng.random() >= config.probability:
        return image
    for i in order:
        change, amount = changes[i]
        image = change(image, amount)
    return image
