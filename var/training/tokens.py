"""Training images as tokens in memory: encoded once, so that the transformer's steps need no encoder."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.vqvae import VQVAE
from var.training.data import ImageDataset, StepSampler, Unreadable, loader


class TokenBatch(NamedTuple):
    """Encoded images."""

    tokens: Tensor  # (B, L) int64
    labels: Tensor  # (B,) int64
    unreadable: list[Unreadable]


class TokenTable:
    """Tokens of `views` augmented views of every image; epoch e sees view e mod views.

    Args:
        dataset: N training images.
        vqvae: in evaluation mode, on the device that encodes.
        views: how many augmented views of each image.
        workers: processes that read the images.
        batch_size: images encoded at once.
    """

    def __init__(self, dataset: ImageDataset, vqvae: VQVAE, views: int, workers: int, batch_size: int = 64) -> None:
        # Order does not matter here: the sampler of one pass per view hands out every (view, index) once.
        self.tokens = torch.zeros(views, len(dataset), vqvae.scales.total, dtype=torch.int32)
        self.labels = torch.from_numpy(dataset.labels).long()
        self.unreadable: dict[tuple[int, int], Unreadable] = {}
        keys = [(view, index) for view in range(views) for index in range(len(dataset))]
        chunks = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
        device = next(vqvae.parameters()).device
        for chunk, batch in zip(chunks, loader(dataset, chunks, workers), strict=True):
            bad = {entry.index: entry for entry in batch.unreadable}
            readable = [key for key in chunk if key[1] not in bad]
            self.unreadable |= {key: bad[key[1]] for key in chunk if key[1] in bad}
            if readable:
                with torch.inference_mode():
                    tokens = vqvae.encode(batch.images.to(device)).cpu()
                views_read, indices_read = torch.tensor(readable).unbind(dim=1)
                self.tokens[views_read, indices_read] = tokens.int()

    def batches(self, sampler: StepSampler) -> Iterator[TokenBatch]:
        """The batches of a sampler's steps."""
        views = len(self.tokens)
        for keys in sampler:
            places = [(epoch % views, index) for epoch, index in keys]
            bad = [self.unreadable[place] for place in places if place in self.unreadable]
            readable = [place for place in places if place not in self.unreadable]
            view, index = torch.tensor(readable, dtype=torch.int64).reshape(-1, 2).unbind(1)
            yield TokenBatch(self.tokens[view, index].long(), self.labels[index], bad)
