"""Images for training: folders, Parquet files and hub datasets, read in an order that only the seed decides.

What a sample is follows from (seed, epoch, index) alone, and which samples a step sees from (seed, step) alone. So the
number of reader processes changes nothing, the number of training processes only divides the batch, and a resumed run
sees what an uninterrupted one would have seen.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenizer.errors import InputError
from var.images import resize_and_crop, to_rgb, to_tensor
from var.training.config import DataConfig

Split = Literal["train", "validation"]
Key = tuple[int, int]  # epoch, index of the image in the dataset

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val")}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"})

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


class Encoded(NamedTuple):
    """An image file, not yet decoded."""

    file: Path | BytesIO
    place: str


class Source(Protocol):
    """Where encoded images come from."""

    def read(self, index: int) -> Encoded: ...


class Listing(NamedTuple):
    """A split before any image is opened."""

    source: Source
    labels: NDArray[np.int64]  # one an image
    num_classes: int
    class_names: dict[int, str]


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
    """The images of a split, found and labelled but not opened.

    Folders: train/CLASS and val/CLASS. Labels number the sorted class names of train/; where all names are numbers,
    they are the labels themselves. Parquet files and hub datasets: the label column. A classes.json in the folder,
    {"207": {"name": "golden retriever"}}, names the labels.

    Raises:
        InputError: no such folder or dataset, split, column or class; no images; labels that are missing.
    """
    folder = Path(config.source).expanduser()
    if not folder.is_dir():
        listing = _list_hub(config, split, folder)
    elif _split_folder(folder, "train") is not None:
        listing = _list_folder(folder, split)
    elif _parquet_files(folder, "train"):
        listing = _list_parquet(config, split, folder)
    else:
        raise InputError(
            f"data.source={config.source!r} holds neither train/CLASS folders nor train*.parquet files: "
            "give a folder that does, or the name of a hub dataset"
        )
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


class FolderSource:
    """Image files below a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        # One array instead of a million strings: reader processes share it without copying.
        self.names = np.array([os.fsencode(name) for name in names])

    def read(self, index: int) -> Encoded:
        path = self.folder / os.fsdecode(self.names[index])
        return Encoded(path, str(path))


def _split_folder(folder: Path, split: Split) -> Path | None:
    return next((folder / name for name in SPLIT_NAMES[split] if (folder / name).is_dir()), None)


def _list_folder(folder: Path, split: Split) -> Listing:
    split_folder = _split_folder(folder, split)
    if split_folder is None:
        raise InputError(f"data.source={str(folder)!r} has no {split} folder: add {SPLIT_NAMES[split][-1]}/CLASS/*.jpg")
    train_folder = _split_folder(folder, "train") or split_folder
    classes = _class_labels(train_folder)
    files: list[str] = []
    labels: list[int] = []
    for name in sorted(_subfolders(split_folder)):
        found = sorted(_image_files(split_folder, name))
        if found and name not in classes:
            raise InputError(f"class folder {split_folder / name} is not in {train_folder}: add or remove it")
        files += found
        labels += [classes[name]] * len(found)
    if not files:
        raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or png, webp")
    names = _named_classes(folder)
    if not names and not all(name.isdecimal() for name in classes):
        names = {label: name for name, label in classes.items()}
    return Listing(FolderSource(split_folder, files), np.array(labels, np.int64), max(classes.values()) + 1, names)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _class_labels(train_folder: Path) -> dict[str, int]:
    names = sorted(_subfolders(train_folder))
    if not names:
        raise InputError(f"{train_folder} holds no class folders: expected {train_folder.name}/CLASS/*.jpg")
    if not all(name.isdecimal() for name in names):
        return {name: label for label, name in enumerate(names)}
    labels = {name: int(name) for name in names}
    if len(set(labels.values())) < len(labels):
        raise InputError(f"{train_folder} has class folders of the same number, such as 1 and 01: rename one of them")
    return labels


def _image_files(split_folder: Path, name: str) -> Iterator[str]:
    for parent, _, files in os.walk(split_folder / name, followlinks=True):
        relative = os.path.relpath(parent, split_folder)
        yield from (f"{relative}/{file}" for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES)


class TableSource:
    """A column of encoded images in the Hugging Face schema: rows of bytes, or of paths."""

    def __init__(self, column: Any, origin: str) -> None:
        self.column = column  # a datasets.Dataset of one column, cast to Image(decode=False)
        self.name = column.column_names[0]
        self.origin = origin

    def read(self, index: int) -> Encoded:
        value: Mapping[str, Any] = self.column[index][self.name] or {}
        data, path = value.get("bytes"), value.get("path")
        place = f"row {index} of {self.origin}" + (f" ({path})" if path else "")
        if data is not None:
            return Encoded(BytesIO(data), place)
        if path is None:
            raise FileNotFoundError("the row holds no image")
        return Encoded(Path(path), place)


def _parquet_files(folder: Path, split: Split) -> list[str]:
    patterns = [f"{place}{name}*.parquet" for place in ("", "data/") for name in SPLIT_NAMES[split]]
    return next((files for pattern in patterns if (files := sorted(map(str, folder.glob(pattern))))), [])


def _list_parquet(config: DataConfig, split: Split, folder: Path) -> Listing:
    import datasets

    files = _parquet_files(folder, split)
    if not files:
        raise InputError(f"data.source={config.source!r} has no {split}*.parquet beside the training files: add one")
    try:
        table = datasets.load_dataset("parquet", data_files=files, split="train")  # "train": what it calls all it read
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{', '.join(files)} cannot be read as Parquet: {_root_cause(error)}") from error
    return _list_table(config, split, table, _named_classes(folder))


def _list_hub(config: DataConfig, split: Split, folder: Path) -> Listing:
    name = config.source
    if folder.is_file():
        raise InputError(f"data.source={name!r} is a file: give the folder that holds it")
    # A bare name such as "parquet" is a format to `datasets`, which would then read the working folder.
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise InputError(f"data.source={name!r} does not exist: give a folder, or a hub dataset in the form OWNER/NAME")
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the HTTP library's errors, which differ by version
        raise InputError(
            f"data.source={name!r} is no folder here and could not be loaded from the hub ({_root_cause(error)}): "
            "check the name and the connection, or give a folder"
        ) from error
    found = next((known for known in SPLIT_NAMES[split] if known in splits), None)
    if found is None:
        raise InputError(
            f"data.source={name!r} has no {split} split, only {', '.join(splits)}: choose a dataset that has "
            f"one named {' or '.join(SPLIT_NAMES[split])}"
        )
    return _list_table(config, split, splits[found], {})


def _list_table(config: DataConfig, split: Split, table: Any, names: dict[int, str]) -> Listing:
    import datasets

    for key in ("image_column", "label_column"):
        if getattr(config, key) not in table.column_names:
            raise InputError(
                f"data.{key}={getattr(config, key)!r} is no column of {config.source!r} ({split}): "
                f"choose one of {', '.join(table.column_names)}"
            )
    if not len(table):
        raise InputError(f"data.source={config.source!r} has no {split} images")
    try:
        images = table.select_columns([config.image_column]).cast_column(
            config.image_column, datasets.Image(decode=False)
        )
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors derive from these
        raise InputError(
            f"data.image_column={config.image_column!r} of {config.source!r} holds no images: {_root_cause(error)}"
        ) from error
    labels, num_classes = _labels(config, split, table)
    feature = table.features[config.label_column]
    if isinstance(feature, datasets.ClassLabel):
        names = names or dict(enumerate(feature.names))
        num_classes = max(num_classes, feature.num_classes)
    num_classes = max([num_classes, *(label + 1 for label in names)])
    return Listing(TableSource(images, f"{config.source} ({split})"), labels, num_classes, names)


def _labels(config: DataConfig, split: Split, table: Any) -> tuple[NDArray[np.int64], int]:
    column = config.label_column
    labels = table.select_columns([column]).with_format("arrow")[:][column]
    where = f"data.label_column={column!r} of {config.source!r} ({split})"
    if labels.null_count:
        raise InputError(f"{where} lacks {labels.null_count} of {len(labels)} labels: every image needs one")
    array = np.asarray(labels.to_numpy())
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{where} holds {labels.type}: labels must be integers, 0 and up")
    if array.min() < 0:
        raise InputError(f"{where} holds {array.min()}, which means unlabelled: labels must be 0 and up")
    return array.astype(np.int64), int(array.max()) + 1


def _named_classes(folder: Path) -> dict[int, str]:
    path = folder / "classes.json"
    if not path.is_file():
        return {}
    try:
        return {int(label): str(entry["name"]) for label, entry in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"207": {"name": "golden retriever"}}'
        raise InputError(f"{path} is not of the form {form}: correct or remove it ({_root_cause(error)})") from error


def _root_cause(error: BaseException) -> str:
    """The first error of a chain in one line: libraries wrap it in ones that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


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

    torch limits itself to one thread in such a process.
    """
    workers = min(workers, _cpus())
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # typed by its samples, the loader by its batches
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=partial(collate, side=dataset.side),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass draws from the global stream, which dropout uses
    )


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
