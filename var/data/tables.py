"""Images in Parquet files and hub datasets, in the Hugging Face image schema."""

import re
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.data.config import DataConfig
from var.data.listing import SPLIT_NAMES, Encoded, Listing, MissingSplitError, Split, split_names, unlabeled
from var.utils.classes import labels_fit, named_classes
from var.utils.hub_connection import offline_if_unreachable
from var.utils.image_files import report_found
from var.utils.paths import check_regular
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
        check_regular(Path(path))
        return Encoded(Path(path), location)


def parquet_files(folder: Path, split: Split, held_out: float = 0) -> list[str]:
    """List the files of a split below a folder, sorted; [] if it has none. See `split_names` for `held_out`."""
    patterns = [f"{below}{name}*.parquet" for below in ("", "data/") for name in split_names(split, held_out)]
    return next((files for pattern in patterns if (files := sorted(map(str, folder.glob(pattern))))), [])


def list_parquet(config: DataConfig, split: Split, folder: Path) -> Listing:
    """List the images of a split in a folder's Parquet files. Raises InputError as `sources.list_images`."""
    import datasets

    files = parquet_files(folder, split, config.validation_fraction)
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

    unreachable = None
    try:
        with offline_if_unreachable("README.md", name, "dataset", (datasets.config,)) as unreachable:
            splits = datasets.load_dataset(name)
    except Exception as error:  # those of the HTTP library, which differ by version
        reason = unreachable or one_line(error)
        raise InputError(
            f"data.source={name!r} is no folder here and could not be loaded from the hub ({reason}): "
            "check the name and the connection, or give a folder"
        ) from error
    found = next((known for known in split_names(split, config.validation_fraction) if known in splits), None)
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
    feature = table.features[config.label_column]
    if isinstance(feature, datasets.ClassLabel):
        names = names or dict(enumerate(feature.names))
    num_classes = count_classes(config, labels, names)
    return Listing(source, np.arange(len(labels)), labels, num_classes, names)


def count_classes(config: DataConfig, labels: NDArray[np.integer[Any]], names: Collection[int] = ()) -> int:
    """Return one more than the largest label, in the data or with a name.

    Raises InputError: it is too large for so few classes.
    """
    present = {*np.unique(labels).tolist(), *names}
    if not labels_fit(max(present), len(present)):
        raise InputError(
            f"data.label_column={config.label_column!r} of {config.source!r} has label {max(present)} for "
            f"{plural(len(present), 'class', 'es')}: labels number the classes from 0, so replace ids by such numbers, "
            "or set data.label_column=null for unconditional training"
        )
    return int(max(present)) + 1


def _labels(config: DataConfig, column: str, split: Split, table: Any) -> NDArray[np.int64]:
    labels = table.select_columns([column]).with_format("arrow")[:][column]
    where = f"data.label_column={column!r} of {config.source!r} ({split})"
    if labels.null_count:
        raise InputError(f"{where} lacks {labels.null_count} of {plural(len(labels), 'label')}: every image needs one")
    array: NDArray[Any] = np.asarray(labels.to_numpy())
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{where} holds {labels.type}: labels must be integers, 0 and up")
    if array.min() < 0:
        raise InputError(f"{where} holds {array.min()}, which means unlabeled: labels must be 0 and up")
    if array.dtype == np.uint64:  # what is beyond 63 bits must not become negative
        array = array.clip(max=np.uint64(2**63 - 1))
    return array.astype(np.int64)
