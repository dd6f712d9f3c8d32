"""The files of a token cache: a dataset encoded once, so that training needs neither images nor encoder.

A cache is a folder. manifest.json describes the data and the encoding; it is written first and never changes. The
tokens of up to SHARD_SAMPLES samples are in one file of plain numbers, (n, L) row by row (continuous tokens (n, L, C)),
such as train-v0-00003.bin:
view 0 of the training images from number 3 * SHARD_SAMPLES on. A record of the same name, .json, holds their labels,
the unreadable images and a checksum over all of it; it is written last, so a shard with a record is complete.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import VQVAE
from var.data.config import DataConfig, Section
from var.data.dataset import Key
from var.data.listing import Split
from var.utils.files import atomic_write
from var.utils.provenance import as_key, sha256

log = logging.getLogger(__name__)

FORMAT = 1  # raised when older caches can no longer be read
ENCODED_AT_ONCE = 64
MANIFEST = "manifest.json"
LEFT_OUT = -1  # label of a sample that could not be read

File = TypeVar("File", bound=Section)
StoredDtype = Literal["<u2", "<i4", "<f4"]  # of tokens, in numpy's notation; <f4 of continuous ones

# Keys of a recipe's data that the tokens depend on.
DATA_SETTINGS = (
    *("source", "image_column", "label_column", "classes", "validation_fraction"),
    *("resize", "crop", "crop_area", "pad", "flip", "jitter"),
)


class TokenRecipe(Protocol):
    """The part of a recipe that the tokens and their folder depend on."""

    data: DataConfig
    seed: int
    token_cache: Path | None
    token_views: int


class Shard(NamedTuple):
    """Consecutive samples of one view of a split: first, first + 1, ..."""

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
        """Name of the record."""
        return f"{self.split}-v{self.view}-{self.number:05d}.json"

    def batches(self) -> Iterator[list[Key]]:
        """Keys of the samples, in batches that are encoded at once."""
        keys = [(self.view, index) for index in range(self.first, self.first + self.samples)]
        return (keys[i : i + ENCODED_AT_ONCE] for i in range(0, len(keys), ENCODED_AT_ONCE))


class SplitInfo(Section):
    """Size, labels and classes of a split of the images."""

    samples: int
    labels: str | None  # their checksum; None: they were read with the images
    num_classes: int | None
    class_names: dict[int, str]
    streamed: list[int] | None  # samples in each of the data's own shards; None: it has none
    content: list[str] | None = None  # fingerprints of some images; None: unknown
    sampled_labels: str | None = None  # checksum of theirs, where `labels` is None; None: unknown


class Manifest(Section):
    """The data and its encoding; the same for all views."""

    settings: dict[str, Any]  # all that the tokens depend on: `settings_of`
    scales: list[int]
    length: int  # numbers of a sample: L, of continuous tokens L * C
    vocab_size: int
    dtype: StoredDtype  # of the files
    shard_samples: int
    splits: dict[Split, SplitInfo]

    def shards(self, views: int) -> list[Shard]:
        """List the shards of the first views, those of the same images one after the other."""
        return [
            Shard(split, view, number, first, min(self.shard_samples, info.samples - first))
            for split, info in self.splits.items()
            for number, first in enumerate(range(0, info.samples, self.shard_samples))
            for view in range(views if split == "train" else 1)
        ]

    def bytes(self, shard: Shard) -> int:
        """Size of a shard's file of numbers."""
        return shard.samples * self.length * np.dtype(self.dtype).itemsize


class Record(Section):
    """Labels and unreadable images of a shard, and its checksum."""

    sha256: str  # of the tokens and of all below
    labels: list[int]  # (n,), a substitute's in place of an unreadable image; LEFT_OUT: no tokens either
    unreadable: dict[int, list[tuple[int, str, str]]]  # for rows of the shard: index, location, reason


def folder_of(recipe: TokenRecipe) -> Path:
    """Return the recipe's token_cache. Raises InputError: it has none."""
    if recipe.token_cache is None:
        raise InputError("the recipe has no token_cache: give the folder of the tokens, token_cache=FOLDER")
    return recipe.token_cache


def settings_of(recipe: TokenRecipe, vqvae: VQVAE) -> dict[str, Any]:
    """Return all settings that the tokens depend on, for the manifest."""
    data = recipe.data.model_dump(mode="json", include=set(DATA_SETTINGS))
    names = {f"data.{name}": data[name] for name in DATA_SETTINGS}
    return {"format": FORMAT, "tokenizer": _encoder_checksum(vqvae), "seed": recipe.seed, **names}


def _encoder_checksum(vqvae: VQVAE) -> str:
    """SHA-256 of encoder and token weights; a change of the decoder leaves a cache valid."""
    config = {name: value for name, value in vqvae.config.to_dict().items() if name != "decoder_width"}
    weights = [*vqvae.encoder.parameters(), *vqvae.quant_conv.parameters(), *vqvae.token_weights]
    return sha256([as_key(config), *weights])


def stored_dtype(vqvae: VQVAE) -> StoredDtype:
    """Return the type that the files keep a tokenizer's tokens in."""
    if vqvae.is_continuous:
        return "<f4"
    return "<u2" if vqvae.config.vocab_size <= 2**16 else "<i4"


def read_manifest(folder: Path, settings: dict[str, Any]) -> Manifest:
    """Read a cache's manifest. Raises InputError if it is damaged, or of other settings."""
    remedy = "give another folder, or remove this one to encode anew"
    manifest = read_file(Manifest, folder / MANIFEST, remedy)
    # A setting that is newer than the cache had its default.
    defaults = {f"data.{name}": DataConfig.model_fields[name].default for name in DATA_SETTINGS}
    theirs = defaults | manifest.settings
    if different := [name for name in settings if settings[name] != theirs.get(name)]:
        name = different[0]
        if name == "data.source" and not Path(settings[name]).exists():
            raise InputError(
                f"data.source={settings[name]!r} is no folder here, and token_cache={str(folder)!r} was encoded from "
                f"{theirs[name]!r}: correct data.source, or give another token_cache for a dataset of the hub"
            )
        was = "by another tokenizer" if name == "tokenizer" else f"with {name}={theirs.get(name)}, not {settings[name]}"
        raise InputError(
            f"token_cache={str(folder)!r} was encoded {was}: give another token_cache, and another output where a run "
            "began on this one, or remove it to encode anew"
        )
    return manifest


def is_whole(folder: Path, shard: Shard, manifest: Manifest, repair: str = "encoding it again") -> bool:
    """Return whether a shard exists and is intact; a damaged one is logged, with what repairs it."""
    if not (folder / shard.record).exists():
        return False
    try:
        record = read_record(folder, shard)
        tokens = (folder / shard.tokens).read_bytes()
        whole = checksum(tokens, record.labels, record.unreadable) == record.sha256
    except (OSError, InputError):
        whole = False
    if not whole:
        log.warning("%s is damaged: %s", folder / shard.tokens, repair)
    return whole


def read_record(folder: Path, shard: Shard) -> Record:
    """Read a shard's record. Raises InputError if it is missing or damaged."""
    return read_file(Record, folder / shard.record, "run var data tokenize with this recipe")


def read_file(kind: type[File], file: Path, remedy: str) -> File:
    """Read a manifest or record. Raises InputError, with the remedy, if it is missing or damaged."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): {remedy}") from error


def checksum(tokens: bytes, labels: list[int], unreadable: dict[int, list[tuple[int, str, str]]]) -> str:
    """SHA-256 of a shard's tokens and record."""
    return sha256([tokens, json.dumps([labels, sorted(unreadable.items())]).encode()])


def write_files(folder: Path, files: dict[str, bytes], key: str = "token_cache") -> None:
    """Write files one after the other, each atomically and flushed to the disk; `key` is the recipe's, for messages."""
    remedy = f"make room there or give another folder ({key}=FOLDER); the same command encodes only what is missing"
    for name, content in files.items():
        with atomic_write(folder / name, remedy) as beside:
            beside.write_bytes(content)
