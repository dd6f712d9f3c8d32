"""Images in Parquet files and hub datasets, in the Hugging Face image schema."""

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.data.config import DataConfig
from var.data.listing import SPLIT_NAMES, Encoded, Listing, MissingSplitError, Split, unlabeled
from var.utils.classes import named_classes
from var.utils.images import report_found
from var.utils.text import plural


class TableSource:
    """A column of encoded images in the Hugging Face schema: rows of bytes, or of paths."""

    def __init__(self, column: Any, origin: str) -> None:
        self.column = column  # a datasets.Dataset of one column, cast to Image(decode=False)
        self.name = column.column_names[0]
        self.origin = origin

    def location(self, row: int) -> str:
        return f"row {row} of {self.origin}"

    def read(self, row: int) -> Encoded:
        value: Mapping[str, Any] = self.column[row][self.name] or {}
        data, path = value.get("bytes"), value.get("path")
        location = self.location(row) + (f" ({path})" if path else "")
        if data is not None:
            return Encoded(BytesIO(data), location)
        if path is None:
            raise FileNotFoundError("the row holds no image")
        return Encoded(Path(path), location)


def parquet_files(folder: Path, split: Split) -> list[str]:
    """List the files of a split below a folder, sorted; [] if it has none."""
    patterns = [f"{below}{name}*.parquet" for below in ("", "data/") for name in SPLIT_NAMES[split]]
    return next((files for pattern in patterns if (files := sorted(map(str, folder.glob(pattern))))), [])


def list_parquet(config: DataConfig, split: Split, folder: Path) -> Listing:
    """List the images of a split in a folder's Parquet files. Raises InputError as `sources.list_images`."""
    import datasets

    files = parquet_files(folder, split)
    if not files:
        raise MissingSplitError(
            f"data.source={config.source!r} has no {split}*.parquet beside the training files: add one, or set "
            "data.validation_fraction to hold out that fraction of the training images"
        )
    try:
        table = datasets.load_dataset("parquet", data_files=files, split="train")  # `datasets` calls all of it "train"
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{', '.join(files)} cannot be read as Parquet: {one_line(error)}") from error
    return _list_table(config, split, table, named_classes(folder))


def list_hub(config: DataConfig, split: Split, folder: Path) -> Listing:
    """List the images of a split of a hub dataset. Raises InputError as `sources.list_images`."""
    name = config.source
    if folder.is_file():
        raise InputError(f"data.source={name!r} is a file: give the folder that holds it")
    # `datasets` takes a bare name such as "parquet" for a format, and would read the working folder.
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise InputError(f"data.source={name!r} does not exist: give a folder, or a hub dataset in the form OWNER/NAME")
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # those of the HTTP library, which differ by version
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
    column = config.image_column
    try:
        images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors derive from these
        message = f"data.image_column={column!r} of {config.source!r} holds no images: {one_line(error)}"
        raise InputError(message) from error
    source = TableSource(images, f"{config.source} ({split})")
    report_found(source.origin, len(table), {})
    if config.label_column is None:
        return unlabeled(source, len(table))
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
        raise InputError(f"{where} lacks {labels.null_count} of {plural(len(labels), 'label')}: every image needs one")
    array = np.asarray(labels.to_numpy())
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{where} holds {labels.type}: labels must be integers, 0 and up")
    if array.min() < 0:
        raise InputError(f"{where} holds {array.min()}, which means unlabeled: labels must be 0 and up")
    return array.astype(np.int64)
