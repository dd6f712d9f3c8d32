"""The token cache: a dataset encoded once, so that the transformer's steps need neither images nor encoder.

A cache is a folder. manifest.json says what was encoded and how; it is written first and never changes. The tokens of
up to SHARD_SAMPLES samples lie in one file of plain numbers, (n, L) row by row, such as train-v0-00003.bin: view 0 of
the training images from number 3 * SHARD_SAMPLES on. A record of the same name, .json, holds their labels, what could
not be read, and a checksum over all of it; it is written last, so that a shard that has one is whole.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import VQVAE
from var.data.config import DataConfig
from var.data.dataset import (
    Batch,
    ImageDataset,
    Key,
    Sample,
    SampleDataset,
    ShardOrder,
    Unreadable,
    collate,
    epoch_order,
    loader,
    open_dataset,
)
from var.data.sources import Split
from var.utils.files import atomic_write, check_no_other_files, check_writable
from var.utils.provenance import as_key, sha256

log = logging.getLogger(__name__)

FORMAT = 1  # raised when caches of before can no longer be read
SHARD_SAMPLES = 2048  # so much is lost at most when a process is killed
ENCODED_AT_ONCE = 64
MANIFEST = "manifest.json"
LEFT_OUT = -1  # label of a sample that could not be read
SPLITS: tuple[Split, ...] = ("train", "validation")

# What of a recipe's data decides what the tokens are.
DATA_SETTINGS = (
    "source",
    "image_column",
    "label_column",
    "classes",
    "resize",
    "crop",
    "crop_area",
    "pad",
    "flip",
    "jitter",
    "validation_fraction",
)


class TokenRecipe(Protocol):
    """The part of a recipe that decides what the tokens are and where they go."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def seed(self) -> int: ...

    @property
    def tokens(self) -> Path | None: ...

    @property
    def token_views(self) -> int: ...


class Processes(NamedTuple):
    """Those that share the encoding: which one this is, of how many, and how they wait for each other."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = Processes()


class TokenSummary(NamedTuple):
    """What a complete cache holds, and what of it this process encoded just now."""

    samples: int  # views of training images, and validation images
    bytes: int  # of their tokens
    unreadable: int  # images that could not be read, over all views
    encoded: int  # samples by this process in this call


def log_progress(done: int, total: int) -> None:
    """A line in the log for every twentieth part."""
    if 20 * done // total > 20 * max(done - ENCODED_AT_ONCE, 0) // total:
        log.info("encoded %d of %d samples", done, total)


def write_tokens(
    recipe: TokenRecipe,
    vqvae: VQVAE,
    processes: Processes = ALONE,
    progress: Callable[[int, int], None] = log_progress,
    shard_samples: int = SHARD_SAMPLES,
) -> TokenSummary:
    """Complete the cache in `recipe.tokens`: verify all checksums, and encode what is missing or damaged.

    View v of a training image is what epoch v sees. The images are opened only if something is missing; a complete
    cache needs none. More views than it has are added to it. Killed at any time, the same call goes on from the shards
    that were done.

    Args:
        recipe: its tokens, a folder that all processes see, token_views, seed and data.
        vqvae: float32, in evaluation mode, on the device that encodes.
        processes: those that share the shards; all of them call this.
        progress: on the first process, is told how many of its samples are encoded, and how many it has to encode.
        shard_samples: samples a shard of a new cache.

    Raises:
        InputError: no folder, one of another tokenizer, data or seed, or one that cannot be written; data that cannot
            be opened.
    """
    folder = _folder(recipe)
    settings = _settings(recipe, vqvae)
    if processes.rank == 0 and not (folder / MANIFEST).exists():
        _begin(folder, settings, recipe, vqvae, shard_samples)
    processes.wait()
    manifest = _read_manifest(folder, settings)
    shards = manifest.shards(recipe.token_views)
    missing = [shard for shard in shards[processes.rank :: processes.world] if not _verified(folder, shard, manifest)]
    if missing:
        _encode(folder, missing, manifest, recipe, vqvae, progress if processes.rank == 0 else _silent)
    processes.wait()
    return _summary(folder, shards, manifest, sum(shard.samples for shard in missing))


def open_tokens(recipe: TokenRecipe, vqvae: VQVAE, split: Split) -> "TokenDataset":
    """The tokens of a split, memory-mapped. Settings and sizes are checked here, checksums by `write_tokens`.

    Raises:
        InputError: no cache, an incomplete one, or one of another tokenizer, data or seed.
    """
    folder = _folder(recipe)
    if not (folder / MANIFEST).exists():
        raise InputError(f"tokens={str(folder)!r} holds no token cache: run var tokenize with this recipe")
    manifest = _read_manifest(folder, _settings(recipe, vqvae))
    return TokenDataset(folder, manifest, split, recipe)


class TokenDataset:
    """Tokens in place of images: sample (epoch, index) is view epoch mod views, and reading it copies L numbers.

    Reading is faster than handing over between processes: `loader` wants workers=0 here.

    Attributes:
        labels: (len,) int64, those of view 0; None where one of it could not be read.
        class_names: name of a label; {} where the data has no names.
        empty: (0, L) int64.

    Raises:
        InputError: shards are missing or of a wrong size.
    """

    def __init__(self, folder: Path, manifest: "Manifest", split: Split, recipe: TokenRecipe) -> None:
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
                f"{len(absent)} of the {len(shards)} {split} shards in tokens={str(folder)!r} are missing or cut off, "
                f"such as {absent[0].tokens}: run var tokenize with this recipe, which encodes only those"
            )
        self.tokens: list[list[NDArray[np.integer[Any]]]] = [[] for _ in range(self.views)]  # (n, L) each
        self.label_table = np.empty((self.views, self.info.samples), np.int32)
        self.unreadable: dict[tuple[int, int], tuple[Unreadable, ...]] = {}
        for shard in sorted(shards):
            record = _read_record(folder, shard)
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
        """One more than the largest label that can occur, as the data told it.

        Raises:
            InputError: it did not.
        """
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


class Shard(NamedTuple):
    """The samples first, first + 1, ... of a view of a split."""

    split: Split
    view: int
    number: int
    first: int
    samples: int

    @property
    def tokens(self) -> str:
        """Name of the file of numbers."""
        return f"{self.split}-v{self.view}-{self.number:05d}.bin"

    @property
    def record(self) -> str:
        """Name of the file beside it."""
        return f"{self.split}-v{self.view}-{self.number:05d}.json"

    def batches(self) -> Iterator[list[Key]]:
        """Keys of the samples that are encoded at once."""
        keys = [(self.view, index) for index in range(self.first, self.first + self.samples)]
        return (keys[i : i + ENCODED_AT_ONCE] for i in range(0, len(keys), ENCODED_AT_ONCE))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitInfo(_File):
    """What the images' dataset told of itself."""

    samples: int
    labels: str | None  # their checksum; None: they were read beside the images
    num_classes: int | None
    class_names: dict[int, str]
    streamed: list[int] | None  # samples in each of the data's own shards; None: it has none


class Manifest(_File):
    """What was encoded, and how; the same for all views."""

    settings: dict[str, Any]  # all that decides what the tokens are: `_settings`
    scales: list[int]
    length: int  # L
    vocab_size: int
    dtype: Literal["<u2", "<i4"]  # of the files, as numpy calls it
    shard_samples: int
    splits: dict[Split, SplitInfo]

    def shards(self, views: int) -> list[Shard]:
        """The shards of so many views, those of the same images one after the other."""
        return [
            Shard(split, view, number, first, min(self.shard_samples, info.samples - first))
            for split, info in self.splits.items()
            for number, first in enumerate(range(0, info.samples, self.shard_samples))
            for view in range(views if split == "train" else 1)
        ]

    def bytes(self, shard: Shard) -> int:
        """Size of a shard's file of numbers."""
        return shard.samples * self.length * np.dtype(self.dtype).itemsize


class Record(_File):
    """What belongs to a shard's tokens."""

    sha256: str  # of the tokens and of all below
    labels: list[int]  # (n,), a substitute's in place of an unreadable image; LEFT_OUT: no tokens either
    unreadable: dict[int, list[tuple[int, str, str]]]  # for rows of the shard: index, place, reason


def _silent(done: int, total: int) -> None:
    """Progress of the other processes."""


def _folder(recipe: TokenRecipe) -> Path:
    if recipe.tokens is None:
        raise InputError("the recipe has no tokens: say where the token cache goes, with tokens=FOLDER")
    return recipe.tokens


def _settings(recipe: TokenRecipe, vqvae: VQVAE) -> dict[str, Any]:
    """All that decides what the tokens are, for the manifest."""
    data = recipe.data.model_dump(mode="json", include=set(DATA_SETTINGS))
    names = {f"data.{name}": data[name] for name in DATA_SETTINGS}
    return {"format": FORMAT, "tokenizer": _fingerprint(vqvae), "seed": recipe.seed, **names}


def _fingerprint(vqvae: VQVAE) -> str:
    """A checksum of what encodes; the decoder may change under a cache."""
    config = {name: value for name, value in vqvae.config.to_dict().items() if name != "decoder_width"}
    parts = (vqvae.encoder, vqvae.quant_conv, vqvae.quantizer)
    return sha256([as_key(config), *(parameter for part in parts for parameter in part.parameters())])


def _begin(folder: Path, settings: dict[str, Any], recipe: TokenRecipe, vqvae: VQVAE, shard_samples: int) -> None:
    """Write the manifest of a new cache."""
    check_writable(folder)
    check_no_other_files(folder, (MANIFEST,))
    manifest = Manifest(
        settings=settings,
        scales=list(vqvae.scales.sides),
        length=vqvae.scales.total,
        vocab_size=vqvae.config.vocab_size,
        dtype="<u2" if vqvae.config.vocab_size <= 2**16 else "<i4",
        shard_samples=shard_samples,
        splits={split: _info(_images(recipe, vqvae, split)) for split in SPLITS},
    )
    _write(folder, {MANIFEST: manifest.model_dump_json(indent=1).encode()})


def _images(recipe: TokenRecipe, vqvae: VQVAE, split: Split) -> ImageDataset:
    return open_dataset(recipe.data, split, vqvae.config.image_side, recipe.seed)


def _info(dataset: ImageDataset) -> SplitInfo:
    listing = dataset.listing
    return SplitInfo(
        samples=len(dataset),
        labels=None if dataset.labels is None else sha256([dataset.labels.astype("<i8").tobytes()]),
        num_classes=listing.num_classes,
        class_names=dataset.class_names,
        streamed=None if listing.shards is None else np.unique(listing.shards, return_counts=True)[1].tolist(),
    )


def _read_manifest(folder: Path, settings: dict[str, Any]) -> Manifest:
    remedy = "give another folder, or remove this one to encode anew"
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({one_line(error)}): {remedy}") from error
    # A setting that came after the cache was written had its default then.
    defaults = {f"data.{name}": DataConfig.model_fields[name].default for name in DATA_SETTINGS}
    theirs = defaults | manifest.settings
    if different := [name for name in settings if settings[name] != theirs.get(name)]:
        name = different[0]
        was = "by another tokenizer" if name == "tokenizer" else f"with {name}={theirs.get(name)}, not {settings[name]}"
        raise InputError(f"tokens={str(folder)!r} was encoded {was}: {remedy}")
    return manifest


def _verified(folder: Path, shard: Shard, manifest: Manifest) -> bool:
    """Whether a shard is there and whole; one that is damaged is told of."""
    if not (folder / shard.record).exists():
        return False
    try:
        record = _read_record(folder, shard)
        tokens = (folder / shard.tokens).read_bytes()
        whole = _checksum(tokens, record.labels, record.unreadable) == record.sha256
    except (OSError, InputError):
        whole = False
    if not whole:
        log.warning("%s is damaged: encoding it again", folder / shard.tokens)
    return whole


def _read_record(folder: Path, shard: Shard) -> Record:
    try:
        return Record.model_validate_json((folder / shard.record).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{folder / shard.record} cannot be read ({one_line(error)}): run var tokenize with this recipe"
        ) from error


def _checksum(tokens: bytes, labels: list[int], unreadable: dict[int, list[tuple[int, str, str]]]) -> str:
    return sha256([tokens, json.dumps([labels, sorted(unreadable.items())]).encode()])


def _encode(
    folder: Path,
    missing: list[Shard],
    manifest: Manifest,
    recipe: TokenRecipe,
    vqvae: VQVAE,
    progress: Callable[[int, int], None],
) -> None:
    total, done = sum(shard.samples for shard in missing), 0
    for split in SPLITS:
        shards = [shard for shard in missing if shard.split == split]
        if not shards:
            continue
        dataset = _images(recipe, vqvae, split)
        if _info(dataset) != manifest.splits[split]:
            raise InputError(
                f"the {split} images of data.source={recipe.data.source!r} are others than when tokens={str(folder)!r} "
                f"was begun ({len(dataset)} now, {manifest.splits[split].samples} then): give another folder"
            )
        batches = iter(loader(dataset, [keys for shard in shards for keys in shard.batches()], recipe.data.workers))
        for shard in shards:
            parts = []
            for keys in shard.batches():
                parts.append(_encode_batch(dataset, keys, next(batches), vqvae))
                done += len(keys)
                progress(done, total)
            _write_shard(folder, shard, parts, manifest.dtype)


class _Encoded(NamedTuple):
    """Of n samples."""

    tokens: NDArray[np.int64]  # (n, L)
    labels: list[int]
    failures: list[tuple[Unreadable, ...]]


def _encode_batch(dataset: SampleDataset, keys: list[Key], batch: Batch, vqvae: VQVAE) -> _Encoded:
    failures: list[tuple[Unreadable, ...]] = [()] * len(keys)
    readable = [True] * len(keys)
    if batch.unreadable:  # rare: read once more, one by one, to see which of the samples they belong to
        samples = [dataset[key] for key in keys]
        failures = [sample.unreadable if isinstance(sample, Sample) else (sample,) for sample in samples]
        readable = [isinstance(sample, Sample) for sample in samples]
        batch = collate(samples, dataset.empty)
    tokens = np.zeros((len(keys), vqvae.scales.total), np.int64)
    labels = np.full(len(keys), LEFT_OUT, np.int64)
    labels[readable] = batch.labels.numpy()
    if any(readable):
        tokens[readable] = _tokens(vqvae, batch.content).cpu().numpy()
    return _Encoded(tokens, labels.tolist(), failures)


def _tokens(vqvae: VQVAE, images: Tensor) -> Tensor:
    device = next(vqvae.parameters()).device
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # float32 whatever the training runs in
        return vqvae.encode(images.to(device, non_blocking=True))


def _write_shard(folder: Path, shard: Shard, parts: Iterable[_Encoded], dtype: str) -> None:
    tokens = np.concatenate([part.tokens for part in parts]).astype(dtype).tobytes()
    labels = [label for part in parts for label in part.labels]
    failures = [failures for part in parts for failures in part.failures]
    unreadable = {
        row: [(bad.index, _text(bad.place), _text(bad.reason)) for bad in found]
        for row, found in enumerate(failures)
        if found
    }
    record = Record(sha256=_checksum(tokens, labels, unreadable), labels=labels, unreadable=unreadable)
    _write(folder, {shard.tokens: tokens, shard.record: record.model_dump_json().encode()})


def _text(given: str) -> str:
    """What JSON can hold: names of files may be no text."""
    return given.encode(errors="backslashreplace").decode()


def _summary(folder: Path, shards: list[Shard], manifest: Manifest, encoded: int) -> TokenSummary:
    records = [_read_record(folder, shard) for shard in shards]
    return TokenSummary(
        samples=sum(shard.samples for shard in shards),
        bytes=sum(manifest.bytes(shard) for shard in shards),
        unreadable=sum(len(failures) for record in records for failures in record.unreadable.values()),
        encoded=encoded,
    )


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files one after the other, each whole and on the disk."""
    remedy = "make room there or give another folder with tokens=FOLDER; the same command goes on with what is missing"
    for name, content in files.items():
        with atomic_write(folder / name, remedy) as beside:
            beside.write_bytes(content)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
