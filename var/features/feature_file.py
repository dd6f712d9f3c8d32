"""A file of features: Parquet, with a row for each image, and what made it in the metadata.

A row has the image's path (as found below the folder), label and class_name (null where there are none), and feature
(float32, all of one length). The metadata holds, under METADATA, the `Settings` as JSON.

M images, N patches, D width, S side of the images, F length of a feature: D, or N * D where patches are not pooled.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.features.images import LabeledImage
from var.utils.json_text import parse_json
from var.utils.optional_packages import optional_packages

with optional_packages("features"):
    import pyarrow as pa
    import pyarrow.parquet as pq

Pool = Literal["mean", "none"]

FORMAT = 1  # raised when files of before can no longer be read
METADATA = b"var.features"


@dataclass(frozen=True)
class Settings:
    """The origin of the features in a file, kept in its metadata."""

    model: str  # as it was given
    weights: str  # checksum of the model's, in bfloat16: the same for whatever type they are held in
    layers: tuple[int, ...]  # blocks, counted from 0, the mean of whose outputs the features are
    pool: Pool  # mean: over the patches; none: all patches, row by row (a VAR's tokens, scale by scale)
    image_size: int  # S
    patches: int  # N
    width: int  # D
    dtype: str  # in which the model ran
    images: int  # how many were found, unreadable ones included
    checksum: str  # of what is known of the images without opening them: their paths, labels and classes
    version: str  # of this library
    format: int = FORMAT

    @property
    def length(self) -> int:
        """F."""
        return self.width * (self.patches if self.pool == "none" else 1)

    def difference(self, other: "Settings", names: Iterable[str]) -> str | None:
        """The first of these attributes in which the two differ: `pool=mean, not none`."""
        name = next((name for name in names if getattr(self, name) != getattr(other, name)), None)
        return None if name is None else f"{name}={getattr(self, name)}, not {getattr(other, name)}"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Settings":
        """From what JSON gives of `asdict`. Raises TypeError and the like on anything else."""
        return cls(**{**values, "layers": tuple(values["layers"])})


class FeatureTable(NamedTuple):
    """A features file in memory: M images."""

    settings: Settings
    values: NDArray[np.float32]  # (M, F)
    labels: NDArray[np.int64]  # (M,)
    class_names: dict[int, str]


def read_features(file: Path) -> FeatureTable:
    """A features file with the label of every image.

    Raises InputError: no such file, not a features file, damaged, images without labels.
    """
    settings = read_settings(file)
    try:
        with open_table(file) as parquet:
            values = np.empty((parquet.metadata.num_rows, settings.length), np.float32)
            first = 0
            for group in range(parquet.num_row_groups):  # one by one: they are never in memory twice
                column = parquet.read_row_group(group, columns=["feature"])["feature"].combine_chunks()
                values[first : first + len(column)] = column.flatten().to_numpy().reshape(len(column), -1)
                first += len(column)
            table = parquet.read(columns=["label", "class_name"])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
        remedy = "make it anew with var features extract"
        raise InputError(f"{file} cannot be read ({one_line(error)}): {remedy}") from error
    labels = table["label"]
    if labels.null_count:
        remedy = "make it from a folder with a subfolder a class, or from a split that has labels"
        raise InputError(f"{file}: {labels.null_count} of {len(labels)} images have no label: {remedy}")
    array = labels.to_numpy().astype(np.int64)
    named = dict(zip(array.tolist(), table["class_name"].to_pylist(), strict=True))
    return FeatureTable(settings, values, array, {label: name for label, name in named.items() if name is not None})


def read_settings(file: Path, remedy: str = "make one with var features extract") -> Settings:
    """The settings in a features file.

    Raises InputError: no such file, no features file, one of another format; each with the remedy.
    """
    try:
        settings = Settings.parse(parse_json((pq.read_schema(file).metadata or {})[METADATA]))
    except FileNotFoundError as error:
        raise InputError(f"features file {file} does not exist: {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a features file: {remedy}") from error
    if settings.format != FORMAT:
        raise InputError(f"{file} is of format {settings.format}, this version reads {FORMAT}: {remedy}")
    return settings


def schema_of(settings: Settings) -> pa.Schema:
    """Return the columns of a features file, with the settings in the metadata."""
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.int64()),
            ("class_name", pa.string()),
            ("feature", pa.list_(pa.float32(), settings.length)),
        ],
        metadata={METADATA: json.dumps(asdict(settings))},
    )


def to_table(
    images: Sequence[LabeledImage], values: NDArray[np.float32], settings: Settings, class_names: Mapping[int, str]
) -> pa.Table:
    """Return rows of a features file: the images with their features, (M, F)."""
    columns = {
        "path": [image.path for image in images],
        "label": [image.label for image in images],
        "class_name": [None if image.label is None else class_names.get(image.label) for image in images],
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), settings.length),
    }
    return pa.table(columns, schema=schema_of(settings))


def open_table(file: Path) -> pq.ParquetFile:
    """Open a features file for reading, which compares the checksums that `table_writer` writes."""
    return pq.ParquetFile(file, page_checksum_verification=True)


def table_writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a features file for writing."""
    dictionary = ["class_name"]  # numbers of features hardly repeat
    return pq.ParquetWriter(file, schema, use_dictionary=dictionary, write_page_checksum=True)
