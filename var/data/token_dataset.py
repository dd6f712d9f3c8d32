"""Tokens in place of images, read from a token cache."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data import token_cache
from var.data.dataset import Key, Sample, SampleDataset, Unreadable
from var.data.listing import Split
from var.data.token_cache import LEFT_OUT, MANIFEST, TokenRecipe


class TokenDataset(SampleDataset):
    """The tokens of a split in place of its images: sample (epoch, index) is view epoch mod views.

    A sample is (L,) int64, of continuous tokens (L, C) float32.

    The cache is memory-mapped, and reading a sample copies L numbers, which is faster than passing them between
    processes: `loader` is best with workers=0. Settings and sizes are checked here, checksums by `write_tokens`.
    `labels` are those of view 0; None if one of its images could not be read.

    Raises InputError: no cache, an incomplete one, or one of another tokenizer, data or seed.
    """

    def __init__(self, recipe: TokenRecipe, vqvae: VQVAE, split: Split) -> None:
        folder = token_cache.folder_of(recipe)
        if not (folder / MANIFEST).exists():
            raise InputError(
                f"token_cache={str(folder)!r} holds no token cache: run var data tokenize with this recipe"
            )
        manifest = token_cache.read_manifest(folder, token_cache.settings_of(recipe, vqvae))
        info = manifest.splits[split]
        source_shards = None if info.streamed is None else np.repeat(np.arange(len(info.streamed)), info.streamed)
        super().__init__(info.samples, info.num_classes, source_shards, recipe.data.shuffle_shards, recipe.seed)
        self.folder = folder
        self.split = split
        self.class_names = info.class_names
        self.empty = torch.empty(0, *vqvae.token_shape, dtype=vqvae.token_dtype)
        self.shard_samples = manifest.shard_samples
        self.views = recipe.token_views if split == "train" else 1

        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        shards = [shard for shard in manifest.shards(recipe.token_views) if shard.split == split]
        if absent := [shard for shard in shards if sizes.get(shard.tokens) != manifest.bytes(shard)]:
            raise InputError(
                f"{len(absent)} of the {len(shards)} {split} shards in token_cache={str(folder)!r} are missing or cut "
                f"off, such as {absent[0].tokens}: run var data tokenize with this recipe, which encodes only those"
            )
        self.tokens: list[list[NDArray[Any]]] = [[] for _ in range(self.views)]  # (n, L) or (n, L, C) each
        self.label_table = np.empty((self.views, len(self)), np.int64)
        self.unreadable: dict[tuple[int, int], tuple[Unreadable, ...]] = {}
        for shard in sorted(shards):
            record = token_cache.read_record(folder, shard)
            shape = (shard.samples, *vqvae.token_shape)
            self.tokens[shard.view].append(np.memmap(folder / shard.tokens, manifest.dtype, "r", shape=shape))
            self.label_table[shard.view, shard.first : shard.first + shard.samples] = record.labels
            for row, failures in record.unreadable.items():
                self.unreadable[shard.view, shard.first + row] = tuple(Unreadable(*failure) for failure in failures)
        self.labels = None if LEFT_OUT in self.label_table[0] else self.label_table[0]

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        epoch, index = key
        view = epoch % self.views
        failures = self.unreadable.get((view, index), ())
        label = int(self.label_table[view, index])
        if label == LEFT_OUT:
            return failures[0]
        shard, row = divmod(index, self.shard_samples)
        kind = np.float32 if self.empty.is_floating_point() else np.int64
        tokens = torch.from_numpy(self.tokens[view][shard][row].astype(kind))
        return Sample(tokens, label, f"{self.split} image {index}, view {view}, in {self.folder}", failures)
