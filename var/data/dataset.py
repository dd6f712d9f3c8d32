"""Images for training, read in an order that only the seed decides.

What a sample is follows from (seed, epoch, index) alone, and which samples a step sees from (seed, step) alone. So the
number of reader processes changes nothing, the number of training processes only divides the batch, and a resumed run
sees what an uninterrupted one would have seen.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenizer.errors import InputError
from var.data.config import DataConfig, JitterConfig
from var.data.sources import Listing, ShardSource, Split, list_images
from var.utils.images import FORMATS, crop_and_resize, resize_and_crop, to_rgb, to_tensor
from var.utils.signals import ignore_stop_signals
from var.utils.torchvision_compat import import_torchvision

Key = tuple[int, int]  # epoch, index of the image in the dataset

ASPECTS = (math.log(3 / 4), math.log(4 / 3))  # of resized crops

# First word of every random stream: an order, an augmentation and a substitute never share one.
_ORDER, _AUGMENTATION, _SUBSTITUTE, _DELAY = 0, 1, 2, 3

SUBSTITUTES = 16  # tried in place of a training image that cannot be read


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: which, where it lies, and why."""

    index: int  # in the dataset
    place: str  # a path, or the row of the table
    reason: str


class Sample(NamedTuple):
    """What could be read: an image, or the tokens of one."""

    content: Tensor  # (3, side, side) float32 in [-1, 1], or (L,) int64
    label: int
    place: str  # where it lies: a path, or the row of the table
    unreadable: tuple[Unreadable, ...]  # those that it stands in for


class Batch(NamedTuple):
    """The readable samples of a batch, and what could not be read."""

    content: Tensor  # (B, 3, side, side) float32 in [-1, 1], or (B, L) int64
    labels: Tensor  # (B,) int64
    places: list[str]  # B
    unreadable: list[Unreadable]


class SampleDataset(Protocol):
    """What the loader reads: samples by (epoch, index), images or tokens."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(len,): one a sample; None where only reading a sample tells it."""

    @property
    def num_classes(self) -> int:
        """One more than the largest label that can occur. Raises InputError where the data does not tell."""

    @property
    def class_names(self) -> dict[int, str]:
        """Name of a label; {} where the data has no names."""

    @property
    def empty(self) -> Tensor:
        """(0, ...): the content of no sample, in shape and dtype."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key, /) -> Sample | Unreadable: ...

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(len,): the order in which an epoch sees the samples, a permutation."""


class ImageDataset(Dataset[Sample | Unreadable]):
    """Square images in [-1, 1] with labels; a key is (epoch, index).

    In training an image that cannot be read is replaced by another, so that batches are always full and what a step
    sees does not depend on how its batch is divided; in validation it is left out.

    Attributes:
        side: of the images, in pixels.
        labels: (len,) int64, one an image; None where they lie beside the images in shards.
        class_names: name of a label; {} where the data has no names.
        empty: (0, 3, side, side) float32.
    """

    def __init__(self, listing: Listing, config: DataConfig, side: int, seed: int, augment: bool) -> None:
        self.listing = listing
        self.labels = listing.labels
        self.class_names = listing.class_names
        self.shards = None if listing.shards is None else ShardOrder(listing.shards, config.shuffle_shards, seed)
        self.side = side
        self.empty = torch.empty(0, 3, side, side)
        self.short_side = round(config.resize * side)
        self.seed = seed
        self.augment = augment
        self.config = config

    @property
    def num_classes(self) -> int:
        """One more than the largest label that can occur, classes that were left out included.

        Raises:
            InputError: the labels lie in shards, and their index does not tell.
        """
        if self.listing.num_classes is None:
            raise InputError("the index of the shards does not tell num_classes: add it there, or give the model's")
        return self.listing.num_classes

    def __len__(self) -> int:
        return len(self.listing.rows)

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        """The image as this epoch sees it, or the first substitute that can be read; never an exception.

        Unreadable if it can be read neither itself nor, in training, any of its substitutes.
        """
        epoch, index = key
        tried: tuple[Unreadable, ...] = ()
        for attempt in range(1 + SUBSTITUTES if self.augment else 1):
            found = self._read(epoch, self._instead(epoch, index, attempt) if attempt else index)
            if isinstance(found, Sample):
                return found._replace(unreadable=tried)
            tried += (found,)
        return tried[0]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(len,): the order in which an epoch sees the images; that of shards needs few of them at a time."""
        return epoch_order(len(self), self.seed, epoch) if self.shards is None else self.shards.order(epoch)

    def _instead(self, epoch: int, index: int, attempt: int) -> int:
        if self.shards is None:
            return substitute(self.seed, epoch, index, attempt, len(self))
        # From the same shard and those that come next: another would have to be fetched for one image.
        near = self.shards.samples_after(epoch, index, attempt // 2)
        return near[substitute(self.seed, epoch, index, attempt, len(near))]

    def _read(self, epoch: int, index: int) -> Sample | Unreadable:
        row, source = int(self.listing.rows[index]), self.listing.source
        place = source.place(row)
        try:
            encoded = source.read(row)
            place = encoded.place
            if self.augment and self.shards is not None and isinstance(source, ShardSource):
                source.prefetch(int(self.listing.rows[self.shards.samples_after(epoch, index, 1)[0]]))
            with Image.open(encoded.file, formats=FORMATS) as image:
                pixels = self._square(image, epoch, index)
        except UnidentifiedImageError:
            return Unreadable(index, place, f"not an image in one of the formats {', '.join(FORMATS)}")
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
            # Not its cause, as elsewhere: "truncated file" says more than which bytes were missed.
            return Unreadable(index, place, " ".join(f"{type(error).__name__}: {error}".split()))
        label = encoded.label if self.labels is None else int(self.labels[index])
        return Sample(to_tensor(pixels), label, place, ())

    def _square(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            # Pillow itself only warns up to twice its bound.
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels, {Image.MAX_IMAGE_PIXELS} allowed")
        image = to_rgb(image)
        if not self.augment:
            return resize_and_crop(image, self.short_side, self.side)
        rng = np.random.default_rng((_AUGMENTATION, self.seed, epoch, index))
        x, y, mirror = rng.random(3)
        margin = round(self.config.pad * min(image.size))
        short_side = round(self.short_side * (1 + 2 * margin / min(image.size)))
        image = ImageOps.expand(image, margin, "white") if margin else image
        if self.config.crop == "resized":
            low, high = self.config.crop_area
            image = crop_and_resize(image, self.side, rng.uniform(low, high), math.exp(rng.uniform(*ASPECTS)), (x, y))
        else:
            at = (x, y) if self.config.crop == "random" else (0.5, 0.5)
            image = resize_and_crop(image, short_side, self.side, at)
        if self.config.flip and mirror < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image if self.config.jitter is None else jittered(image, self.config.jitter, rng)


def jittered(image: Image.Image, config: JitterConfig, rng: np.random.Generator) -> Image.Image:
    """The image with its colors changed, or as it is."""
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


def open_dataset(config: DataConfig, split: Split, side: int, seed: int) -> ImageDataset:
    """The images of a split, found and labeled but not opened; `sources.list_images` tells what counts as a source.

    Raises:
        InputError: no such folder or dataset, split, column or class; no images; labels that are missing.
    """
    return ImageDataset(list_images(config, split), config, side, seed, augment=split == "train")


class StepSampler:
    """The keys that one process reads at each step of a run, a pure function of the arguments.

    The samples are an endless row of epochs, each in the order that the dataset gives it. Step s takes the batch_size
    positions from s * batch_size on, across the end of an epoch where need be. They are dealt out one by one to the
    processes, then to each process's next micro-batch: micro-batch j of process rank has every
    (world * accumulate)-th position from j * world + rank on. Where the batch does not divide, some have one fewer.

    Args:
        dataset: what is sampled; its length and its orders are asked for.
        batch_size: over all processes and micro-batches.
        start_step: first step, that of a resumed run.
        stop_step: one past the last step.
        accumulate: micro-batches a step; the sampler yields so many lists of keys for each step, one after another.

    Raises:
        InputError: there are no samples.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        batch_size: int,
        rank: int,
        world: int,
        start_step: int,
        stop_step: int,
        accumulate: int = 1,
    ) -> None:
        if len(dataset) < 1:
            raise InputError("the dataset is empty: there is nothing to train on")
        self.dataset = dataset
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.start_step = start_step
        self.stop_step = stop_step
        self.accumulate = accumulate

    def __len__(self) -> int:
        return max(self.stop_step - self.start_step, 0) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        length = len(self.dataset)
        orders: dict[int, NDArray[np.int64]] = {}
        for step in range(self.start_step, self.stop_step):
            first, end = step * self.batch_size, (step + 1) * self.batch_size
            epochs = range(first // length, (end - 1) // length + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self.dataset.order(epoch) for epoch in epochs}
            for micro in range(self.accumulate):
                positions = range(first + micro * self.world + self.rank, end, self.world * self.accumulate)
                places = (divmod(position, length) for position in positions)
                yield [(epoch, int(orders[epoch][offset])) for epoch, offset in places]


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(length,) int64: a permutation drawn from (seed, epoch)."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(length)


class ShardOrder:
    """How epochs go through samples that lie in shards: mixed, and yet few shards at a time.

    The shards enter one after another, in an order drawn for the epoch; a sample's turn is drawn from the time that
    `window` shards take to enter, beginning with its own. So at most `window` shards are in use at a time.

    Args:
        shards: (len,) the shard of every sample, rising.
        window: how many shards are mixed.
    """

    def __init__(self, shards: NDArray[np.int64], window: int, seed: int) -> None:
        _, first, self.shard, count = np.unique(shards, return_index=True, return_inverse=True, return_counts=True)
        self.first = first.tolist()
        self.count = count.tolist()
        self.window = window
        self.seed = seed

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(len,): a permutation of the samples."""
        if len(self.first) <= self.window:
            return epoch_order(len(self.shard), self.seed, epoch)
        _, place = _entrances(len(self.first), self.seed, epoch)
        delay = np.random.default_rng((_DELAY, self.seed, epoch)).random(len(self.shard))
        return np.argsort(place[self.shard] + self.window * delay, kind="stable")

    def samples_after(self, epoch: int, index: int, distance: int) -> range:
        """The samples of the shard that enters so many after the one of a sample, round the end of the epoch."""
        sequence, place = _entrances(len(self.first), self.seed, epoch)
        shard = sequence[(place[self.shard[index]] + distance) % len(sequence)]
        return range(self.first[shard], self.first[shard] + self.count[shard])


@lru_cache(maxsize=2)
def _entrances(count: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sequence = epoch_order(count, seed, epoch)
    return sequence, np.argsort(sequence)


def substitute(seed: int, epoch: int, index: int, attempt: int, length: int) -> int:
    """Which of length samples to try in place of an unreadable one; another one, if there is another."""
    draw = np.random.default_rng((_SUBSTITUTE, seed, epoch, index, attempt)).integers(max(length - 1, 1))
    return (index + 1 + int(draw)) % length


def validation_batches(
    dataset: SampleDataset, batch_size: int, limit: int | None, rank: int, world: int
) -> list[list[Key]]:
    """The batches of keys that this process validates on: the same in every call, for `loader`.

    At most limit samples, spread evenly over the dataset so that one sorted by class gives all classes their share.
    Every process has the same number of batches; the last ones may hold fewer keys than on other processes, or none.

    Args:
        batch_size: over all processes.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    keys = [(0, i * len(dataset) // count) for i in range(count)]
    return [keys[first : first + batch_size][rank::world] for first in range(0, count, batch_size)]


def collate(samples: Sequence[Sample | Unreadable], empty: Tensor) -> Batch:
    """Stack what could be read; the content of a batch of which nothing could is `empty`, (0, ...)."""
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    content = torch.stack([sample.content for sample in readable]) if readable else empty
    labels = torch.tensor([sample.label for sample in readable], dtype=torch.int64)
    unreadable = [bad for s in samples for bad in (s.unreadable if isinstance(s, Sample) else (s,))]
    return Batch(content, labels, [sample.place for sample in readable], unreadable)


def loader(dataset: SampleDataset, batch_sampler: Iterable[list[Key]], workers: int) -> "DataLoader[Batch]":
    """Batches in the sampler's order, read by as many processes, at most one a CPU; 0 reads in this process.

    torch limits itself to one thread in such a process, and signals are left to the process that trains: one that is
    told to stop still wants its batch.
    """
    workers = min(workers, _cpus())
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # typed by its samples, the loader by its batches
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=partial(collate, empty=dataset.empty),
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass draws from the global stream, which dropout uses
    )


def validation_loader(
    dataset: SampleDataset, config: DataConfig, batch_size: int, rank: int, world: int
) -> "DataLoader[Batch]":
    """The batches of `validation_batches`, read in this process."""
    return loader(dataset, validation_batches(dataset, batch_size, config.validation_images, rank, world), workers=0)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
