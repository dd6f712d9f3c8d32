"""Images in WebDataset shards, with their labels beside them."""

from io import BytesIO

import numpy as np

from var.data.config import DataConfig
from var.data.listing import Encoded, Listing, MissingSplitError, Split, unlabeled
from var.data.shards import ShardCache, ShardReader, read_index
from var.utils.files import cache_folder
from var.utils.images import IMAGE_SUFFIXES

_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


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

    def location(self, row: int) -> str:
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
        return Encoded(BytesIO(opened.image(number, _SUFFIXES)), self.location(row), label)

    def prefetch(self, row: int) -> None:
        """Fetch beside what goes on the shard of an image that will be read later."""
        self.reader.prefetch(self.reader.find(row)[0])


def list_shards(config: DataConfig, split: Split) -> Listing:
    """List the images of a split by the index of shards. Raises InputError as `sources.list_images`."""
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
        return unlabeled(source, len(shard_of))._replace(shards=shard_of)
    return Listing(source, np.arange(len(shard_of)), None, index.num_classes, index.class_names, shard_of)
