"""Samples of the reference model: tokens that it draws without guidance, kept in the format of a token cache's shards.

L tokens of all scales.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.data import token_cache
from var.data.listing import Split
from var.data.token_cache import FORMAT, MANIFEST, Manifest, Record, Shard, SplitInfo, stored_dtype
from var.models.var import VAR
from var.sampling.drawing import index_within_class
from var.sampling.generate import draw_tokens
from var.sampling.params import SamplingParams
from var.utils.paths import check_no_other_files
from var.utils.provenance import fingerprint, sha256
from var.utils.ranks import Ranks

log = logging.getLogger(__name__)

SHARD_SAMPLES = 1024  # the most that a killed process loses

Labels = dict[Split, list[int]]  # of the images to draw, for training and held out


class ReferenceSamples(NamedTuple):
    """Drawn images as tokens, read when they are taken."""

    tokens: Sequence[NDArray[np.integer]]  # (n, L) each, n the same in all but the last
    labels: NDArray[np.int64]

    @classmethod
    def none(cls, length: int) -> Self:
        """One image of L zeros."""
        return cls([np.zeros((1, length), np.int64)], np.zeros(1, np.int64))

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the tokens, (len(indices), L) int64, and labels of these images."""
        size = len(self.tokens[0])
        rows = [self.tokens[index // size][index % size] for index in indices]
        tokens = np.stack(rows) if rows else np.zeros((0, self.tokens[0].shape[1]))
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(self.labels[list(indices)])


def write_reference_samples(folder: Path, model: VAR, vqvae: VQVAE, labels: Labels, seed: int, ranks: Ranks) -> None:
    """Draw the images of these labels without guidance, top-k and top-p, each once: what is there and whole stays.

    Args:
        folder: shared by all processes, and written by nobody else.
        model: float32, in evaluation mode, on the device that draws; vqvae too.
        labels: an image's random numbers follow from seed, label and its number among those of its class.
        ranks: the processes that share the work; all of them call this.

    Raises InputError: a folder of another model, seed or number of images, or one that cannot be written.
    """
    manifest = _describe(model, vqvae, labels, seed)
    with ranks.in_step():
        if ranks.is_main:
            _begin(folder, manifest)
    ranks.barrier()
    missing = [
        shard
        for shard in manifest.shards(views=1)[ranks.rank :: ranks.world_size]
        if not token_cache.is_whole(folder, shard, manifest, "drawing it again")
    ]
    numbers = index_within_class(labels["train"] + labels["validation"])  # held-out images are other ones
    for done, shard in enumerate(missing, 1):
        first = shard.first + (len(labels["train"]) if shard.split == "validation" else 0)
        tokens = _draw(model, vqvae, labels[shard.split][shard.first :][: shard.samples], numbers[first:], seed)
        _write(folder, shard, tokens.astype(manifest.dtype), labels[shard.split])
        if ranks.is_main:
            log.info("drew %d of %d shards of the reference's images", done, len(missing))
    ranks.barrier()


def open_reference_samples(folder: Path, split: Split) -> ReferenceSamples:
    """Open the complete drawn images in a folder. Raises InputError: they are missing or damaged."""
    manifest = _read_manifest(folder)
    tokens, labels = [], []
    for shard in (shard for shard in manifest.shards(views=1) if shard.split == split):
        labels += token_cache.read_record(folder, shard).labels
        tokens.append(np.memmap(folder / shard.tokens, manifest.dtype, "r", shape=(shard.samples, manifest.length)))
    return ReferenceSamples(tokens, np.array(labels))


def _describe(model: VAR, vqvae: VQVAE, labels: Labels, seed: int) -> Manifest:
    def info(split: Split) -> SplitInfo:
        checksum = sha256([np.array(labels[split], "<i8").tobytes()])
        count = len(labels[split])
        return SplitInfo(samples=count, labels=checksum, num_classes=None, class_names={}, streamed=None)

    return Manifest(
        settings={"format": FORMAT, "model": fingerprint(model, vqvae.quantizer), "seed": seed},
        scales=list(vqvae.scales.sides),
        length=vqvae.scales.total,
        vocab_size=vqvae.config.vocab_size,
        dtype=stored_dtype(vqvae),
        shard_samples=SHARD_SAMPLES,
        splits={split: info(split) for split in labels},
    )


def _begin(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, or compare it with that which is there."""
    if not (folder / MANIFEST).exists():
        check_no_other_files(folder, (MANIFEST,))
        folder.mkdir(parents=True, exist_ok=True)
        token_cache.write_files(folder, {MANIFEST: manifest.model_dump_json(indent=1).encode()}, "output")
    elif _read_manifest(folder) != manifest:
        raise InputError(
            f"the images in {folder} were drawn by another model, or with another seed, number or labels: give another "
            "output, or remove that folder to draw anew"
        )


def _read_manifest(folder: Path) -> Manifest:
    return token_cache.read_file(Manifest, folder / MANIFEST, "remove the folder to draw its images anew")


def _draw(model: VAR, vqvae: VQVAE, labels: list[int], numbers: list[int], seed: int) -> NDArray[np.int64]:
    """Draw images in batches, (len(labels), L)."""
    size, unguided = token_cache.ENCODED_AT_ONCE, SamplingParams(cfg=0.0, top_k=0, top_p=0.0)
    drawn = [
        draw_tokens(model, vqvae, part, unguided, seed, numbers[first:][: len(part)]).tokens
        for first in range(0, len(labels), size)
        for part in [labels[first : first + size]]
    ]
    return torch.cat(drawn).cpu().numpy()


def _write(folder: Path, shard: Shard, tokens: NDArray[np.integer], labels: list[int]) -> None:
    labels = labels[shard.first :][: shard.samples]
    record = Record(sha256=token_cache.checksum(tokens.tobytes(), labels, {}), labels=labels, unreadable={})
    files = {shard.tokens: tokens.tobytes(), shard.record: record.model_dump_json().encode()}
    token_cache.write_files(folder, files, "output")
