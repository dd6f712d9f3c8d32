"""Tokens in place of images, read from a token cache."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data import token_cache
from var.data.dataset import Key, Sample, Unreadable
from var.data.listing import Split
from var.data.order import ShardOrder, epoch_order
from var.data.token_cache import LEFT_OUT, MANIFEST, Manifest, TokenRecipe


def open_tokens(recipe: TokenRecipe, vqvae: VQVAE, split: Split) -> "TokenDataset":
    """The tokens of a split, memory-mapped. Settings and sizes are checked here, checksums by `write_tokens`.

    Raises InputError: no cache, an incomplete one, or one of another tokenizer, data or seed.
    """
    folder = token_cache.folder_of(recipe)
    if not (folder / MANIFEST).exists():
        raise InputError(f"token_cache={str(folder)!r} holds no token cache: run var data tokenize with this recipe")
    manifest = token_cache.read_manifest(folder, token_cache.settings_of(recipe, vqvae))
    return TokenDataset(folder, manifest, split, recipe)


class TokenDataset:
    """Tokens in place of images: sample (epoch, index) is view epoch mod views, and reading it copies L numbers.

    Reading is faster than handing over between processes: `loader` wants workers=0 here.

    Attributes:
        labels: (len,) int64, those of view 0; None where one of it could not be read.
        class_names: name of a label; {} where the data has no names.
        empty: (0, L) int64.

    Raises InputError: shards are missing or of a wrong size.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split, recipe: TokenRecipe) -> None:
        self.folder = folder
        self.split = split
        self.seed = recipe.seed
        self.info = manifest.splits[split]
        self.class_names = self.info.class_names
        self.empty = torch.empty(0, manifest.length, dtype=torch.int64)
        self.shard_samples = manifest.shard_samples
        self.views = recipe.token_views if split == "train" else 1
        self.shard_order: ShardOrder | None = None
        if self.info.streamed is not None:
            source_shards = np.repeat(np.arange(len(self.info.streamed)), self.info.streamed)
            self.shard_order = ShardOrder(source_shards, recipe.data.shuffle_shards, recipe.seed)

        shards = [shard for shard in manifest.shards(recipe.token_views) if shard.split == split]
        if absent := [shard for shard in shards if _size(folder / shard.tokens) != manifest.bytes(shard)]:
            raise InputError(
                f"{len(absent)} of the {len(shards)} {split} shards in token_cache={str(folder)!r} are missing or cut "
                f"off, such as {absent[0].tokens}: run var data tokenize with this recipe, which encodes only those"
            )
        self.tokens: list[list[NDArray[np.integer[Any]]]] = [[] for _ in range(self.views)]  # (n, L) each
        self.label_table = np.empty((self.views, self.info.samples), np.int32)
        self.unreadable: dict[tuple[int, int], tuple[Unreadable, ...]] = {}
        for shard in sorted(shards):
            record = token_cache.read_record(folder, shard)
            shape = (shard.samples, manifest.length)
            self.tokens[shard.view].append(np.memmap(folder / shard.tokens, manifest.dtype, "r", shape=shape))
            self.label_table[shard.view, shard.first : shard.first + shard.samples] = record.labels
            for row, failures in record.unreadable.items():
                self.unreadable[shard.view, shard.first + row] = tuple(Unreadable(*failure) for failure in failures)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        labels = self.label_table[0].astype(np.int64)
        return None if (labels == LEFT_OUT).any() else labels

    @property
    def num_classes(self) -> int:
        """One more than the largest label that can occur, as the data told it. Raises InputError: it did not."""
        if self.info.num_classes is None:
            raise InputError("the index of the shards does not tell num_classes: set model.num_classes")
        return self.info.num_classes

    def __len__(self) -> int:
        return self.info.samples

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        """Sample: content (L,) int64. Unreadable where nothing could be read, also in place of the image."""
        epoch, index = key
        view = epoch % self.views
        failures = self.unreadable.get((view, index), ())
        label = int(self.label_table[view, index])
        if label == LEFT_OUT:
            return failures[0]
        shard, row = divmod(index, self.shard_samples)
        tokens = torch.from_numpy(self.tokens[view][shard][row].astype(np.int64))
        return Sample(tokens, label, f"{self.split} image {index}, view {view}, in {self.folder}", failures)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(len,): the order in which an epoch sees the samples, the same as of the images."""
        if self.shard_order is not None:
            return self.shard_order.order(epoch)
        return epoch_order(len(self), self.seed, epoch)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
