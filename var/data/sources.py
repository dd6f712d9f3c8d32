"""Where training images come from: folders, Parquet files, hub datasets and shards, listed but not opened."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.data.config import DataConfig
from var.data.shards import ShardCache, ShardReader, read_index
from var.utils.classes import class_labels
from var.utils.files import cache_folder, subfolders
from var.utils.images import IMAGE_SUFFIXES, find_images

Split = Literal["train", "validation"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}
_HELD_OUT = 0  # seed of the choice, the same for all runs: a stage must not train on what another one holds out


class Encoded(NamedTuple):
    """An image file, not yet decoded."""

    file: Path | BytesIO
    place: str
    label: int = 0  # read beside the image, where the listing has no labels


class Source(Protocol):
    """Where encoded images come from."""

    def place(self, row: int) -> str:
        """Where an image lies, for messages."""

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


def list_images(config: DataConfig, split: Split) -> Listing:
    """The images and labels of a split.

    Folders: train/CLASS and val/CLASS. Labels number the sorted class names of train/; where all names are numbers,
    they are the labels themselves. Images directly below train/ are one class. Parquet files and hub datasets: the
    label column. A classes.json in the folder, {"207": {"name": "golden retriever"}}, names the labels. The index of
    shards: see `shards`. With data.label_column=null every label is 0.

    Where there is no validation split and data.validation_fraction is set, that part of the training images is taken
    for it: one drawn from every 1 / fraction in a row, so that all classes give their share; of shards, whole ones.

    Raises:
        InputError: no such folder or dataset, split, column or class; no images; labels that are missing.
    """
    listing = _with_part_held_out(config, split) if config.validation_fraction else _list_split(config, split)
    return listing if config.classes is None else _of_classes(config, config.classes, split, listing)


def _with_part_held_out(config: DataConfig, split: Split) -> Listing:
    try:
        validation = _list_split(config, "validation")
    except MissingSplitError:
        whole = _list_split(config, "train")
        units = np.arange(len(whole.rows)) if whole.shards is None else whole.shards
        held_out = np.isin(units, _spread_choice(int(units[-1]) + 1, config))
        return whole.only(held_out if split == "validation" else ~held_out)
    return validation if split == "validation" else _list_split(config, split)


def _spread_choice(count: int, config: DataConfig) -> NDArray[np.int64]:
    chosen = max(1, round(config.validation_fraction * count))
    if chosen >= count:
        raise InputError(
            f"data.validation_fraction={config.validation_fraction:g} holds out {chosen} of {count} training images "
            f"or shards of {config.source!r}, which leaves none: lower it, or add a validation split"
        )
    edges = np.arange(chosen + 1) * count // chosen
    return np.random.default_rng(_HELD_OUT).integers(edges[:-1], edges[1:])


def _of_classes(config: DataConfig, classes: tuple[int, ...], split: Split, listing: Listing) -> Listing:
    labels = listing.labels
    if labels is None:
        raise InputError(
            f"data.classes cannot choose from the shards of {config.source!r}, whose labels lie beside the images: "
            "leave it out, or make shards of these classes"
        )
    chosen = listing.only(np.isin(labels, classes))
    present = np.unique(labels).tolist()
    absent = sorted(set(classes) - set(present))
    if split == "train" and absent:
        raise InputError(
            f"data.classes: {config.source!r} has no training images of {absent}, only of {_abridged(present)}"
        )
    if not len(chosen.rows):
        raise InputError(f"data.source={config.source!r} has no {split} images of the classes asked for")
    return chosen._replace(class_names={label: name for label, name in listing.class_names.items() if label in classes})


def _abridged(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:40])) + (", ..." if len(labels) > 40 else "")


def _list_split(config: DataConfig, split: Split) -> Listing:
    if config.source.endswith(".json"):
        return _list_shards(config, split)
    folder = Path(config.source).expanduser()
    if not folder.is_dir():
        return _list_hub(config, split, folder)
    if _split_folder(folder, "train") is not None:
        return _list_folder(config, split, folder)
    if parquet_files(folder, "train"):
        return _list_parquet(config, split, folder)
    raise InputError(
        f"data.source={config.source!r} holds neither a train folder nor train*.parquet files: "
        "give a folder that does, the name of a hub dataset, or the index of shards"
    )


class FolderSource:
    """Image files below a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        # One array instead of a million strings: reader processes share it without copying.
        self.names = np.array([os.fsencode(name) for name in names])

    def place(self, row: int) -> str:
        return str(self.folder / os.fsdecode(self.names[row]))

    def read(self, row: int) -> Encoded:
        place = self.place(row)
        return Encoded(Path(place), place)


def _split_folder(folder: Path, split: Split) -> Path | None:
    return next((folder / name for name in SPLIT_NAMES[split] if (folder / name).is_dir()), None)


def _list_folder(config: DataConfig, split: Split, folder: Path) -> Listing:
    split_folder, train_folder = _split_folder(folder, split), _split_folder(folder, "train")
    if split_folder is None or train_folder is None:
        raise MissingSplitError(
            f"data.source={str(folder)!r} has no {split} folder: add val/CLASS/*.jpg, or set data.validation_fraction "
            "to hold out that fraction of the training images"
        )
    if config.label_column is None or not subfolders(train_folder):
        return _list_unlabeled(split_folder)
    try:
        classes = class_labels(subfolders(train_folder))
    except InputError as error:
        raise InputError(f"{train_folder}: {error}") from error
    files: list[str] = []
    labels: list[int] = []
    for name in subfolders(split_folder):
        found = [f"{name}/{file}" for file in find_images(split_folder / name)]
        if found and name not in classes:
            raise InputError(f"class folder {split_folder / name} is not in {train_folder}: add or remove it")
        files += found
        labels += [classes[name]] * len(found)
    if not files:
        raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or png, webp")
    names = _named_classes(folder)
    if not names and not all(name.isdecimal() for name in classes):
        names = {label: name for name, label in classes.items()}
    source = FolderSource(split_folder, files)
    return Listing(source, np.arange(len(files)), np.array(labels), max(classes.values()) + 1, names)


def _list_unlabeled(split_folder: Path) -> Listing:
    files = sorted(find_images(split_folder), key=lambda name: "/" in name)  # those of no subfolder first
    if not files:
        raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or *.jpg")
    return _unlabeled(FolderSource(split_folder, files), len(files))


def _unlabeled(source: Source, count: int) -> Listing:
    return Listing(source, np.arange(count), np.zeros(count, np.int64), 1, {})


class TableSource:
    """A column of encoded images in the Hugging Face schema: rows of bytes, or of paths."""

    def __init__(self, column: Any, origin: str) -> None:
        self.column = column  # a datasets.Dataset of one column, cast to Image(decode=False)
        self.name = column.column_names[0]
        self.origin = origin

    def place(self, row: int) -> str:
        return f"row {row} of {self.origin}"

    def read(self, row: int) -> Encoded:
        value: Mapping[str, Any] = self.column[row][self.name] or {}
        data, path = value.get("bytes"), value.get("path")
        place = self.place(row) + (f" ({path})" if path else "")
        if data is not None:
            return Encoded(BytesIO(data), place)
        if path is None:
            raise FileNotFoundError("the row holds no image")
        return Encoded(Path(path), place)


def parquet_files(folder: Path, split: Split) -> list[str]:
    """The files of a split below a folder, sorted; [] where it has none."""
    patterns = [f"{place}{name}*.parquet" for place in ("", "data/") for name in SPLIT_NAMES[split]]
    return next((files for pattern in patterns if (files := sorted(map(str, folder.glob(pattern))))), [])


def _list_parquet(config: DataConfig, split: Split, folder: Path) -> Listing:
    import datasets

    files = parquet_files(folder, split)
    if not files:
        raise MissingSplitError(
            f"data.source={config.source!r} has no {split}*.parquet beside the training files: add one, or set "
            "data.validation_fraction to hold out that fraction of the training images"
        )
    try:
        table = datasets.load_dataset("parquet", data_files=files, split="train")  # "train": what it calls all it read
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{', '.join(files)} cannot be read as Parquet: {one_line(error)}") from error
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
            f"data.source={name!r} is no folder here and could not be loaded from the hub ({one_line(error)}): "
            "check the name and the connection, or give a folder"
        ) from error
    found = next((known for known in SPLIT_NAMES[split] if known in splits), None)
    if found is None:
        raise MissingSplitError(
            f"data.source={name!r} has no {split} split, only {', '.join(splits)}: choose a dataset that has "
            f"one named {' or '.join(SPLIT_NAMES[split])}"
            + (", or set data.validation_fraction" if split == "validation" else "")
        )
    return _list_table(config, split, splits[found], {})


def _list_table(config: DataConfig, split: Split, table: Any, names: dict[int, str]) -> Listing:
    import datasets

    for key, otherwise in (("image_column", ""), ("label_column", ", or null for unconditional training")):
        if getattr(config, key) not in (None, *table.column_names):
            raise InputError(
                f"data.{key}={getattr(config, key)!r} is no column of {config.source!r} ({split}): "
                f"choose one of {', '.join(table.column_names)}{otherwise}"
            )
    if not len(table):
        raise InputError(f"data.source={config.source!r} has no {split} images")
    try:
        images = table.select_columns([config.image_column]).cast_column(
            config.image_column, datasets.Image(decode=False)
        )
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors derive from these
        raise InputError(
            f"data.image_column={config.image_column!r} of {config.source!r} holds no images: {one_line(error)}"
        ) from error
    source = TableSource(images, f"{config.source} ({split})")
    if config.label_column is None:
        return _unlabeled(source, len(table))
    labels = _labels(config, config.label_column, split, table)
    num_classes = int(labels.max()) + 1
    feature = table.features[config.label_column]
    if isinstance(feature, datasets.ClassLabel):
        names = names or dict(enumerate(feature.names))
        num_classes = max(num_classes, feature.num_classes)
    num_classes = max([num_classes, *(label + 1 for label in names)])
    return Listing(source, np.arange(len(labels)), labels, num_classes, names)


def _labels(config: DataConfig, column: str, split: Split, table: Any) -> NDArray[np.int64]:
    labels = table.select_columns([column]).with_format("arrow")[:][column]
    where = f"data.label_column={column!r} of {config.source!r} ({split})"
    if labels.null_count:
        raise InputError(f"{where} lacks {labels.null_count} of {len(labels)} labels: every image needs one")
    array = np.asarray(labels.to_numpy())
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{where} holds {labels.type}: labels must be integers, 0 and up")
    if array.min() < 0:
        raise InputError(f"{where} holds {array.min()}, which means unlabelled: labels must be 0 and up")
    return array.astype(np.int64)


class ShardSource:
    """Images in WebDataset shards, with their labels beside them.

    Args:
        label_key: of the labels in .json members; None: no label is read.
        num_classes: labels are below it; None: any.
    """

    def __init__(self, reader: ShardReader, label_key: str | None, num_classes: int | None) -> None:
        self.reader = reader
        self.label_key = label_key
        self.num_classes = num_classes

    def place(self, row: int) -> str:
        shard, number = self.reader.find(row)
        return f"sample {number} of {self.reader.urls[shard]}"

    def read(self, row: int) -> Encoded:
        shard, number = self.reader.find(row)
        opened = self.reader.open(shard)
        if number >= len(opened):
            raise ValueError(f"the shard is cut off, or the index wrong: it holds {len(opened)} samples")
        label = 0 if self.label_key is None else opened.label(number, self.label_key)
        if self.num_classes is not None and label >= self.num_classes:
            raise ValueError(f"its label is {label}, but the index tells num_classes={self.num_classes}")
        return Encoded(BytesIO(opened.image(number, _SHARD_SUFFIXES)), self.place(row), label)

    def prefetch(self, row: int) -> None:
        """Fetch beside what goes on the shard of an image that will be read later."""
        self.reader.prefetch(self.reader.find(row)[0])


_SHARD_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


def _list_shards(config: DataConfig, split: Split) -> Listing:
    index = read_index(config.source)
    shards = index.splits.get(split)
    if not shards:
        raise MissingSplitError(
            f'data.source={config.source!r} lists no shards under "{split}": add them'
            + (", or set data.validation_fraction to hold out some of the training shards" if split != "train" else "")
        )
    cache = ShardCache(config.cache or cache_folder() / "shards", config.cache_gigabytes * 1e9)
    reader = ShardReader(shards, cache, config.shuffle_shards + 1)
    source = ShardSource(reader, config.label_column, index.num_classes)
    shard_of = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    if config.label_column is None:
        return _unlabeled(source, len(shard_of))._replace(shards=shard_of)
    return Listing(source, np.arange(len(shard_of)), None, index.num_classes, index.class_names, shard_of)


def _named_classes(folder: Path) -> dict[int, str]:
    path = folder / "classes.json"
    if not path.is_file():
        return {}
    try:
        return {int(label): str(entry["name"]) for label, entry in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"207": {"name": "golden retriever"}}'
        raise InputError(f"{path} is not of the form {form}: correct or remove it ({one_line(error)})") from error
