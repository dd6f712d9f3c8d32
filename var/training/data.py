"""Images for training, read in an order that only the seed decides.

What a sample is follows from (seed, epoch, index) alone, and which samples a step sees from (seed, step) alone. So the
number of reader processes changes nothing, the number of training processes only divides the batch, and a resumed run
sees what an uninterrupted one would have seen.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenizer.errors import InputError
from var.images import resize_and_crop, to_rgb, to_tensor
from var.training.config import DataConfig
from var.training.sources import Listing, Split, list_images

Key = tuple[int, int]  # epoch, index of the image in the dataset

# Pillow tries all its forty formats one by one otherwise (a third of the time of a small WebP), Ghostscript among them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# First word of every random stream: an order and an augmentation never share one.
_ORDER, _AUGMENTATION = 0, 1


class Sample(NamedTuple):
    """An image that could be read."""

    image: Tensor  # (3, side, side) float32 in [-1, 1]
    label: int


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: which, where it lies, and why."""

    index: int  # in the dataset
    place: str  # a path, or the row of the table
    reason: str


class Batch(NamedTuple):
    """The readable samples of a batch, and the others by name."""

    images: Tensor  # (B, 3, side, side) float32 in [-1, 1]
    labels: Tensor  # (B,) int64
    unreadable: list[Unreadable]


class ImageDataset(Dataset[Sample | Unreadable]):
    """Square images in [-1, 1] with labels; a key is (epoch, index).

    Attributes:
        side: of the images, in pixels.
        labels: (len,) int64, one an image.
        num_classes: one more than the largest label that can occur, classes that were left out included.
        class_names: name of a label; {} where the data has no names.
    """

    def __init__(self, listing: Listing, config: DataConfig, side: int, seed: int, augment: bool) -> None:
        self.source = listing.source
        self.num_classes = listing.num_classes
        self.class_names = listing.class_names
        self.rows = np.arange(len(listing.labels))
        if config.classes is not None:
            self.rows = np.flatnonzero(np.isin(listing.labels, config.classes))
            self.class_names = {label: name for label, name in listing.class_names.items() if label in config.classes}
        self.labels = listing.labels[self.rows]
        self.side = side
        self.short_side = round(config.resize * side)
        self.seed = seed
        self.random_crop = augment and config.crop == "random"
        self.flip = augment and config.flip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        """The image as this epoch sees it; Unreadable, never an exception, where it cannot be read or decoded."""
        epoch, index = key
        row = int(self.rows[index])
        place = f"row {row}"
        try:
            encoded = self.source.read(row)
            place = encoded.place
            with Image.open(encoded.file, formats=FORMATS) as image:
                pixels = self._square(image, epoch, index)
        except UnidentifiedImageError:
            return Unreadable(index, place, f"not an image in one of the formats {', '.join(FORMATS)}")
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
            return Unreadable(index, place, " ".join(f"{type(error).__name__}: {error}".split()))
        return Sample(to_tensor(pixels), int(self.labels[index]))

    def _square(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            # Pillow itself only warns up to twice its bound.
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels, {Image.MAX_IMAGE_PIXELS} allowed")
        image = to_rgb(image)
        if not (self.random_crop or self.flip):
            return resize_and_crop(image, self.short_side, self.side)
        x, y, mirror = np.random.default_rng((_AUGMENTATION, self.seed, epoch, index)).random(3)
        at = (x, y) if self.random_crop else (0.5, 0.5)
        image = resize_and_crop(image, self.short_side, self.side, at)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip and mirror < 0.5 else image


def open_dataset(config: DataConfig, split: Split, side: int, seed: int) -> ImageDataset:
    """The images of a split, found and labelled but not opened; `sources.list_images` tells what counts as a source.

    Raises:
        InputError: no such folder or dataset, split, column or class; no images; labels that are missing.
    """
    listing = list_images(config, split)
    dataset = ImageDataset(listing, config, side, seed, augment=split == "train")
    if split == "train" and config.classes is not None:
        absent = sorted(set(config.classes) - set(dataset.labels.tolist()))
        if absent:
            raise InputError(
                f"data.classes: {config.source!r} has no training images of {absent}, "
                f"only of {_abridged(np.unique(listing.labels).tolist())}"
            )
    if not len(dataset):
        raise InputError(f"data.source={config.source!r} has no {split} images of the classes asked for")
    return dataset


def _abridged(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:40])) + (", ..." if len(labels) > 40 else "")


class StepSampler:
    """The keys that one process reads at each step of a run, a pure function of the arguments.

    The images are an endless row of epochs, each a permutation drawn from (seed, epoch). Step s takes the batch_size
    positions from s * batch_size on, across the end of an epoch where need be; process rank of world takes every
    world-th of them.

    Args:
        length: images in the dataset.
        batch_size: over all processes.
        start_step: first step, that of a resumed run.
        stop_step: one past the last step.

    Raises:
        InputError: the batch does not divide among the processes, or there are no images.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int, world: int, start_step: int, stop_step: int
    ) -> None:
        if batch_size < 1 or batch_size % world:
            multiple = max(batch_size // world, 1) * world
            raise InputError(f"batch_size={batch_size} does not divide among {world} processes: try {multiple}")
        if length < 1:
            raise InputError("the dataset is empty: there is nothing to train on")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.start_step = start_step
        self.stop_step = stop_step

    def __len__(self) -> int:
        return max(self.stop_step - self.start_step, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        orders: dict[int, NDArray[np.int64]] = {}
        for step in range(self.start_step, self.stop_step):
            first = step * self.batch_size
            positions = range(first + self.rank, first + self.batch_size, self.world)
            orders = {epoch: order for epoch, order in orders.items() if epoch >= first // self.length}
            keys = []
            for position in positions:
                epoch, offset = divmod(position, self.length)
                if epoch not in orders:
                    orders[epoch] = epoch_order(self.length, self.seed, epoch)
                keys.append((epoch, int(orders[epoch][offset])))
            yield keys


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(length,) int64: the permutation in which an epoch sees the images."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(length)


def validation_batches(
    dataset: ImageDataset, batch_size: int, limit: int | None, rank: int, world: int
) -> list[list[Key]]:
    """The batches of keys that this process validates on: the same in every call, for `loader`.

    At most limit images, spread evenly over the dataset so that one sorted by class gives all classes their share.
    Every process has the same number of batches; the last ones may hold fewer keys than on other processes, or none.

    Args:
        batch_size: over all processes.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    keys = [(0, i * len(dataset) // count) for i in range(count)]
    return [keys[first : first + batch_size][rank::world] for first in range(0, count, batch_size)]


def collate(samples: Sequence[Sample | Unreadable], side: int) -> Batch:
    """Stack what could be read; a batch of which nothing could has images of shape (0, 3, side, side)."""
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    images = torch.stack([sample.image for sample in readable]) if readable else torch.empty(0, 3, side, side)
    labels = torch.tensor([sample.label for sample in readable], dtype=torch.int64)
    return Batch(images, labels, [sample for sample in samples if isinstance(sample, Unreadable)])


def loader(dataset: ImageDataset, batch_sampler: Iterable[list[Key]], workers: int) -> "DataLoader[Batch]":
    """Batches in the sampler's order, read by as many processes, at most one a CPU; 0 reads in this process.

    torch limits itself to one thread in such a process, and signals are left to the process that trains: one that is
    told to stop still wants its batch.
    """
    workers = min(workers, _cpus())
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # typed by its samples, the loader by its batches
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=partial(collate, side=dataset.side),
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass draws from the global stream, which dropout uses
    )


def validation_loader(
    dataset: ImageDataset, config: DataConfig, batch_size: int, rank: int, world: int
) -> "DataLoader[Batch]":
    """The batches of `validation_batches`, read in this process."""
    return loader(dataset, validation_batches(dataset, batch_size, config.validation_images, rank, world), workers=0)


def _ignore_signals(worker: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
