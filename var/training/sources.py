"""Where training images come from: class folders, Parquet files and hub datasets, listed but not opened."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError
from var.training.config import DataConfig

Split = Literal["train", "validation"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val")}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"})


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


def list_images(config: DataConfig, split: Split) -> Listing:
    """The images and labels of a split.

    Folders: train/CLASS and val/CLASS. Labels number the sorted class names of train/; where all names are numbers,
    they are the labels themselves. Parquet files and hub datasets: the label column. A classes.json in the folder,
    {"207": {"name": "golden retriever"}}, names the labels.

    Raises:
        InputError: no such folder or dataset, split or column; no images; labels that are missing.
    """
    folder = Path(config.source).expanduser()
    if not folder.is_dir():
        return _list_hub(config, split, folder)
    if _split_folder(folder, "train") is not None:
        return _list_folder(folder, split)
    if _parquet_files(folder, "train"):
        return _list_parquet(config, split, folder)
    raise InputError(
        f"data.source={config.source!r} holds neither train/CLASS folders nor train*.parquet files: "
        "give a folder that does, or the name of a hub dataset"
    )


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
