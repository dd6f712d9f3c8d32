"""Images in WebDataset shards, with their labels beside them."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO

import numpy as np

from var.data.config import DataConfig
from var.data.listing import Encoded, Listing, MissingSplitError, Split, unlabeled
from var.data.shards import OpenShard, Shard, ShardCache, is_remote, read_index
from var.utils.files import cache_folder
from var.utils.images import IMAGE_SUFFIXES

_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


class ShardSource:
    """The samples of a list of shards, numbered through; the shards in use stay open.

    Args:
        shards: in the order of the numbers.
        cache: for those that are remote.
        keep_open: shards open at a time; the one unused for longest is closed.
        label_key: of the labels in .json members; None: no label is read.
        num_classes: labels are below it; None: any.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        cache: ShardCache,
        keep_open: int,
        label_key: str | None,
        num_classes: int | None,
    ) -> None:
        self.urls = [shard.url for shard in shards]
        self.ends = np.cumsum([shard.samples for shard in shards])
        self.cache = cache
        self.keep_open = keep_open
        self.label_key = label_key
        self.num_classes = num_classes
        self.opened: OrderedDict[int, OpenShard] = OrderedDict()
        self.expected: set[int] = set()  # those that are fetched ahead

    def location(self, row: int) -> str:
        shard, number = self._find(row)
        return f"sample {number} of {self.urls[shard]}"

    def read(self, row: int) -> Encoded:
        shard, number = self._find(row)
        opened = self._open(shard)
        if number >= len(opened):
            raise ValueError(f"the shard is cut off, or the index wrong: it holds {len(opened)} samples")
        label = 0 if self.label_key is None else opened.label(number, self.label_key)
        if self.num_classes is not None and label >= self.num_classes:
            raise ValueError(f"its label is {label}, but the index tells num_classes={self.num_classes}")
        return Encoded(BytesIO(opened.image(number, _SUFFIXES)), self.location(row), label)

    def prefetch(self, row: int) -> None:
        """Fetch beside what goes on the shard of an image that will be read later."""
        shard, _ = self._find(row)
        if is_remote(self.urls[shard]) and shard not in self.opened and shard not in self.expected:
            self.expected.add(shard)
            threading.Thread(target=self._fetch_quietly, args=(self.urls[shard],), daemon=True).start()

    def _find(self, row: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's number there."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return shard, row - (int(self.ends[shard - 1]) if shard else 0)

    def _open(self, shard: int) -> OpenShard:
        if shard not in self.opened:
            while len(self.opened) >= self.keep_open:
                self.opened.popitem(last=False)
            self.expected.discard(shard)
            self.opened[shard] = OpenShard(self.cache.open(self.urls[shard]))
        self.opened.move_to_end(shard)
        return self.opened[shard]

    def _fetch_quietly(self, url: str) -> None:
        with suppress(OSError):  # whoever needs the shard tries again, and tells
            self.cache.open(url).close()


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
    source = ShardSource(shards, cache, config.shuffle_shards + 1, config.label_column, index.num_classes)
    shard_of = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    if config.label_column is None:
        return unlabeled(source, len(shard_of))._replace(shards=shard_of)
    return Listing(source, np.arange(len(shard_of)), None, index.num_classes, index.class_names, shard_of)
