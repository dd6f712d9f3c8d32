"""Encode a dataset into a token cache."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data import token_cache
from var.data.dataset import Batch, ImageDataset, Sample, SampleDataset, UnreadableLog, open_dataset
from var.data.fingerprint import are_other_images, find_renamed_class
from var.data.listing import Split
from var.data.loader import collate, loader, open_batches
from var.data.token_cache import ENCODED_AT_ONCE, LEFT_OUT, MANIFEST, Manifest, Record, Shard, SplitInfo, TokenRecipe
from var.utils.locks import LOCK, locked
from var.utils.paths import check_no_other_files, check_writable
from var.utils.provenance import sha256
from var.utils.ranks import ALONE, Ranks
from var.utils.text import escape, plural

log = logging.getLogger(__name__)

SHARD_SAMPLES = 2048  # the most that a killed process loses
SPLITS: tuple[Split, ...] = ("train", "validation")


class TokenSummary(NamedTuple):
    """Sizes of a complete cache, and the number of samples that this call encoded."""

    samples: int  # views of training images, and validation images
    bytes: int  # of their tokens
    unreadable: int  # images that could not be read, over all views
    encoded: int  # samples, by this process in this call


def log_progress(done: int, total: int) -> None:
    """Log a line after every twentieth of the samples."""
    if 20 * done // total > 20 * max(done - ENCODED_AT_ONCE, 0) // total:
        log.info("encoded %d of %d samples", done, total)


def describe_encoding(samples: int, recipe: TokenRecipe, manifest: Manifest, folder: Path) -> str:
    """Return what is about to be encoded, and where to, in a line."""
    train, validation = (manifest.splits[split].samples for split in SPLITS)
    views = plural(recipe.token_views, "view")
    return (
        f"tokens: encoding {samples:,} samples into {folder}, once for all runs that name it: "
        f"{views} of {train:,} training images, and {validation:,} for validation"
    )


def write_tokens(
    recipe: TokenRecipe,
    vqvae: VQVAE,
    ranks: Ranks = ALONE,
    progress: Callable[[int, int], None] = log_progress,
    shard_samples: int = SHARD_SAMPLES,
) -> TokenSummary:
    """Complete the cache in `recipe.token_cache`: verify all checksums, and encode missing or damaged shards.

    View v of a training image is that of epoch v. A complete cache needs no images; where they are there, it is checked
    that they are still the same. Further views are added to a cache with fewer. If it is killed, the same call goes on
    from the shards that are complete.

    Args:
        recipe: its token_cache, a folder shared by all processes, token_views, seed and data.
        vqvae: float32, in evaluation mode, on the device that encodes.
        ranks: the processes that share the work; all of them call this.
        progress: called on the first process with the numbers of its encoded samples and of all it has to encode.
        shard_samples: samples a shard of a new cache.

    Raises InputError: no folder, one of another tokenizer, data or seed, or one that cannot be written; data that
    cannot be opened, or that has changed since the cache was begun.
    """
    folder = token_cache.folder_of(recipe)
    settings = token_cache.settings_of(recipe, vqvae)
    begun = sum(ranks.all_gather((folder / MANIFEST).exists()))
    if begun < ranks.world_size:
        with ranks.locked(folder), ranks.in_step():
            if ranks.is_main and not (folder / MANIFEST).exists():
                _begin(folder, settings, recipe, vqvae, shard_samples)
    ranks.barrier()
    manifest = token_cache.read_manifest(folder, settings)
    shards = manifest.shards(recipe.token_views)
    missing = [
        shard for shard in shards[ranks.rank :: ranks.world_size] if not token_cache.is_whole(folder, shard, manifest)
    ]
    if samples := sum(ranks.all_gather(sum(shard.samples for shard in missing))):
        if ranks.is_main:
            log.info("%s", describe_encoding(samples, recipe, manifest, folder))
        with ranks.locked(folder):  # not where all is there: a complete cache may be read by several runs at once
            if missing:
                shown = progress if ranks.is_main else lambda done, total: None
                _encode(folder, missing, manifest, recipe, vqvae, shown)
            ranks.barrier()
    else:
        with ranks.in_step():
            if ranks.is_main:
                _check_images(folder, manifest, recipe, vqvae)
        if ranks.is_main and (folder / LOCK).exists():
            with suppress(InputError), locked(folder):  # removes what a killed process left; a living one goes on
                pass
    records = [token_cache.read_record(folder, shard) for shard in shards]
    return TokenSummary(
        samples=sum(shard.samples for shard in shards),
        bytes=sum(manifest.bytes(shard) for shard in shards),
        unreadable=sum(len(failures) for record in records for failures in record.unreadable.values()),
        encoded=sum(shard.samples for shard in missing),
    )


def _begin(folder: Path, settings: dict[str, Any], recipe: TokenRecipe, vqvae: VQVAE, shard_samples: int) -> None:
    """Write the manifest of a new cache."""
    check_writable(folder)
    check_no_other_files(folder, (MANIFEST,))
    manifest = Manifest(
        settings=settings,
        scales=list(vqvae.scales.sides),
        length=math.prod(vqvae.token_shape),
        vocab_size=vqvae.config.vocab_size,
        dtype=token_cache.stored_dtype(vqvae),
        shard_samples=shard_samples,
        splits={split: _info(_images(recipe, vqvae, split)) for split in SPLITS},
    )
    token_cache.write_files(folder, {MANIFEST: manifest.model_dump_json(indent=1).encode()})


def _images(recipe: TokenRecipe, vqvae: VQVAE, split: Split) -> ImageDataset:
    return open_dataset(recipe.data, split, vqvae.config.image_side, recipe.seed)


def _info(dataset: ImageDataset) -> SplitInfo:
    listing, described = dataset.listing, dataset.describe()
    return SplitInfo(
        samples=len(dataset),
        labels=None if dataset.labels is None else sha256([dataset.labels.astype("<i8").tobytes()]),
        num_classes=listing.num_classes,
        class_names=dataset.class_names,
        streamed=None if listing.shards is None else np.unique(listing.shards, return_counts=True)[1].tolist(),
        content=described["content"],
        sampled_labels=described["sampled_labels"],
    )


def _check_images(folder: Path, manifest: Manifest, recipe: TokenRecipe, vqvae: VQVAE) -> None:
    """Raise InputError if the images of a complete cache have changed; they need not be there."""
    if not Path(recipe.data.source).exists():  # removed, or of a hub, which may be out of reach
        return
    for split in SPLITS:
        try:
            images = _images(recipe, vqvae, split)
        except InputError as error:
            log.warning("it is not checked that token_cache=%r goes with the images: %s", str(folder), error)
            return
        _check_same(images, split, folder, manifest)


def _check_same(images: ImageDataset, split: Split, folder: Path, manifest: Manifest) -> None:
    """Raise InputError if the images of a split are not those that the cache was begun with."""
    if change := _find_change(manifest.splits[split], _info(images)):
        raise InputError(
            f"the {split} images of data.source={images.config.source!r} differ from those that "
            f"token_cache={str(folder)!r} was begun with ({change}): give another folder, or restore the images"
        )


def _find_change(before: SplitInfo, now: SplitInfo) -> str | None:
    if now.samples != before.samples:
        return f"{now.samples} now, {before.samples} then"
    if renamed := find_renamed_class(before.class_names, now.class_names):
        return renamed
    unknown = None in (before.sampled_labels, now.sampled_labels)
    compared = {"content": before.content} | ({"sampled_labels": before.sampled_labels} if unknown else {})
    if now.model_copy(update=compared) != before:
        return "with other labels"
    return "other images under the same names" if are_other_images(before.content, now.content) else None


def _encode(
    folder: Path,
    missing: list[Shard],
    manifest: Manifest,
    recipe: TokenRecipe,
    vqvae: VQVAE,
    progress: Callable[[int, int], None],
) -> None:
    names = UnreadableLog()
    total, done = sum(shard.samples for shard in missing), 0

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        progress(done, total)

    for split in SPLITS:
        shards = [shard for shard in missing if shard.split == split]
        dataset = _images(recipe, vqvae, split)
        _check_same(dataset, split, folder, manifest)
        if not shards:
            continue
        keys = [keys for shard in shards for keys in shard.batches()]
        with open_batches(loader(dataset, keys, recipe.data.workers)) as batches:
            for shard in shards:
                tokens, record = _encode_shard(shard, dataset, batches, vqvae, manifest.dtype, names, advance)
                token_cache.write_files(folder, {shard.tokens: tokens, shard.record: record.model_dump_json().encode()})


def _encode_shard(
    shard: Shard,
    dataset: SampleDataset,
    batches: Iterator[Batch],
    vqvae: VQVAE,
    dtype: str,
    names: UnreadableLog,
    advance: Callable[[int], None],
) -> tuple[bytes, Record]:
    device = next(vqvae.parameters()).device
    tokens = np.zeros((shard.samples, *vqvae.token_shape), dtype)
    labels = np.full(shard.samples, LEFT_OUT)
    unreadable: dict[int, list[tuple[int, str, str]]] = {}
    for keys in shard.batches():
        batch = next(batches)
        rows = [index - shard.first for _, index in keys]
        names.add(batch.unreadable)
        if batch.unreadable:  # rare: read again one by one, to find the samples that they belong to
            samples = [dataset[key] for key in keys]
            for row, sample in zip(rows, samples, strict=True):
                if failures := sample.unreadable if isinstance(sample, Sample) else (sample,):
                    unreadable[row] = [(bad.index, escape(bad.location), escape(bad.reason)) for bad in failures]
            rows = [row for row, sample in zip(rows, samples, strict=True) if isinstance(sample, Sample)]
            batch = collate(samples, dataset.empty)
        labels[rows] = batch.labels
        if rows:  # in float32, whatever the training runs in
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                tokens[rows] = vqvae.encode(batch.content.to(device, non_blocking=True)).cpu()
        advance(len(keys))
    checksum = token_cache.checksum(tokens.tobytes(), labels.tolist(), unreadable)
    return tokens.tobytes(), Record(sha256=checksum, labels=labels.tolist(), unreadable=unreadable)
