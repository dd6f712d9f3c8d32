"""Images and labels in WebDataset shards."""

import logging
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO

import numpy as np

from var.data.config import DataConfig
from var.data.listing import Encoded, Listing, MissingSplitError, Split, unlabeled
from var.data.shard_cache import ShardCache
from var.data.shard_index import Shard, read_index
from var.data.shards import OpenShard
from var.data.transfer import is_remote
from var.utils.image_files import IMAGE_SUFFIXES, report_found
from var.utils.paths import cache_folder
from var.utils.text import plural

log = logging.getLogger(__name__)

_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


class ShardSource:
    """The samples of a list of shards, numbered consecutively; shards in use stay open.

    Args:
        shards: in the order of their samples' numbers.
        cache: for remote shards.
        keep_open: number of shards open at a time; the least recently used one is closed.
        label_key: of the labels in .json members; None: no label is read.
        num_classes: labels must be below it; None: any.
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
        self.samples = [shard.samples for shard in shards]
        self.ends = np.cumsum(self.samples)
        self.cache = cache
        self.keep_open = keep_open
        self.label_key = label_key
        self.num_classes = num_classes
        self.opened: OrderedDict[int, OpenShard] = OrderedDict()
        self.prefetched: set[int] = set()
        self.fetched_again: set[int] = set()  # as what was fetched first was not whole
        self.warned = False  # of samples that the index does not count

    def location(self, row: int) -> str:
        shard, number = self._find(row)
        return f"sample {number} of {self.urls[shard]}"

    def read(self, row: int) -> Encoded:
        shard, number = self._find(row)
        opened = self._open(shard)
        if number >= len(opened):
            raise ValueError(f"the shard is cut off, or the index wrong: it holds {plural(len(opened), 'sample')}")
        label = 0 if self.label_key is None else opened.label(number, self.label_key)
        if self.num_classes is not None and label >= self.num_classes:
            raise ValueError(f"its label is {label}, but the index has num_classes={self.num_classes}")
        return Encoded(BytesIO(opened.image(number, _SUFFIXES)), self.location(row), label)

    def prefetch(self, row: int) -> None:
        """Start to fetch, in a thread, the shard of an image that will be read later."""
        shard, _ = self._find(row)
        if is_remote(self.urls[shard]) and shard not in self.opened and shard not in self.prefetched:
            self.prefetched.add(shard)
            threading.Thread(target=self._fetch_quietly, args=(self.urls[shard],), daemon=True).start()

    def _find(self, row: int) -> tuple[int, int]:
        """Find the shard that holds a sample, and the sample's number in it."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return shard, row - (int(self.ends[shard - 1]) if shard else 0)

    def _open(self, shard: int) -> OpenShard:
        if shard not in self.opened:
            while len(self.opened) >= self.keep_open:
                self.opened.popitem(last=False)
            self.prefetched.discard(shard)
            self.opened[shard] = opened = self._open_whole(shard)
            if len(opened) > self.samples[shard] and not self.warned:
                self.warned = True
                log.warning(
                    "%s holds %s, but the index counts %d, so the others are not used: correct its nsamples",
                    self.urls[shard], plural(len(opened), "sample"), self.samples[shard],
                )  # fmt: skip
        self.opened.move_to_end(shard)
        return self.opened[shard]

    def _open_whole(self, shard: int) -> OpenShard:
        """Open a shard; one that was fetched and is not whole is fetched again, once."""
        url = self.urls[shard]
        while True:
            file = self.cache.open(url)
            inode = os.fstat(file.fileno()).st_ino
            again = shard not in self.fetched_again and is_remote(url)
            try:
                opened = OpenShard(file)
                if len(opened) >= self.samples[shard] or not again:
                    return opened
            except tarfile.TarError:
                if not again:
                    raise
            self.fetched_again.add(shard)
            self.cache.remove(url, inode)

    def _fetch_quietly(self, url: str) -> None:
        with suppress(OSError):  # reading from the shard tries again, and reports the error
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
    report_found(f"{config.source} ({split})", len(shard_of), {})
    if config.label_column is None:
        return unlabeled(source, len(shard_of))._replace(shards=shard_of)
    return Listing(source, np.arange(len(shard_of)), None, index.num_classes, index.class_names, shard_of)
