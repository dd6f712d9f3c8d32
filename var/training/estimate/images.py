"""Number of a recipe's images and classes, without reading or downloading any image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.errors import InputError, one_line
from var.data.config import DataConfig
from var.data.dataset import ImageDataset
from var.data.listing import Listing
from var.data.sources import FolderSource, list_images
from var.data.tables import count_classes, parquet_files
from var.utils.json_text import parse_json
from var.utils.paths import to_path

NO_VALIDATION = "the training will be refused: the data has no validation split; data.validation_fraction makes one"
CLASSES, LENGTH = 1000, 10**6  # of the training images, assumed where they are unknown


class Images(NamedTuple):
    """Number of training images and classes, as known without reading them."""

    number: int | None = None
    classes: int | None = None
    unknown: str | None = None  # message: which of them is unknown, or what a training would refuse, and why
    present: int | None = None  # classes that have training images, where the labels are known

    def list_assumptions(self, num_classes: int | None) -> list[str]:
        """List the assumptions on a model's number of classes; None: it has as many as the data."""
        known = num_classes is not None or self.classes is not None
        return [] if known else [f"the number of classes is unknown: assumed {CLASSES}"]

    def stand_in(self, data: DataConfig, side: int) -> ImageDataset:
        """Build a dataset of that length and number of classes, whose images cannot be read."""
        length = LENGTH if self.number is None else self.number
        source = FolderSource(Path(data.source), ())
        listing = Listing(source, np.arange(length), np.zeros(length, np.int64), self.classes or CLASSES, {})
        return ImageDataset(listing, data, side, seed=0, augment=True)


def find_images(data: DataConfig) -> Images:
    """Find the number of training images and classes from listings, file headers or the hub's cache."""
    found = _count_images(data)
    if data.train_images is None or found.number is None:
        return found
    return found._replace(number=min(found.number, data.train_images))


def _count_images(data: DataConfig) -> Images:
    folder = to_path(data.source, "data.source")
    try:
        named = any(isinstance(each, str) for each in data.classes or ())
        if (
            not named
            and folder.is_dir()
            and not (folder / "train").is_dir()
            and (files := parquet_files(folder, "train"))
        ):
            found = _in_parquet(data, files)
            is_refused = not data.validation_fraction and not parquet_files(folder, "validation")
            return found._replace(unknown=NO_VALIDATION) if is_refused and found.unknown is None else found
        if not folder.exists() and data.source.count("/") == 1 and not data.source.endswith(".json"):
            return _on_the_hub(data.source)
        listing = list_images(data, "train")
    except InputError as error:
        return Images(unknown=f"the number of images is unknown: {error}")
    present = None if listing.labels is None else len(np.unique(listing.labels))
    try:
        list_images(data, "validation")
        refused = None
    except InputError as error:
        refused = f"the training will be refused: {error}"
    return Images(len(listing.rows), listing.num_classes, refused, present)


def _in_parquet(data: DataConfig, files: Sequence[str]) -> Images:
    """Count in the files themselves: opened as a dataset they would be copied to a cache."""
    import pyarrow.parquet

    try:
        if data.label_column is None:
            return Images(sum(pyarrow.parquet.read_metadata(file).num_rows for file in files), 1)
        tables = [pyarrow.parquet.read_table(file, columns=[data.label_column]) for file in files]
        labels = np.concatenate([table[data.label_column].to_numpy() for table in tables])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own derive from these
        return Images(unknown=f"the number of images is unknown: {one_line(error)}")
    chosen = labels if data.classes is None else labels[np.isin(labels, data.classes)]
    return Images(len(chosen), count_classes(data, labels), present=len(np.unique(chosen)))


def _on_the_hub(name: str) -> Images:
    """Read the number that `datasets` recorded when it loaded the dataset here before."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    for path in sorted(folder.glob("*/*/*/dataset_info.json")):
        number = parse_json(path.read_bytes()).get("splits", {}).get("train", {}).get("num_examples")
        if number:
            return Images(int(number))
    return Images(unknown=f"the number of images is unknown: {name} is no folder, nor loaded from the hub before")
