"""Batches for one process: the samples of each step, and their reading beside the training."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from tokenizer.errors import InputError
from var.data.config import DataConfig
from var.data.dataset import Batch, Key, Sample, SampleDataset, Unreadable
from var.utils.signals import ignore_stop_signals


@dataclass
class StepSampler:
    """The keys that one process reads at each step of a run, a pure function of the arguments.

    The samples are an endless row of epochs, each in the order that the dataset gives it. Step s takes the batch_size
    positions from s * batch_size on, across the end of an epoch where need be. They are dealt out one by one to the
    processes, then to each process's next micro-batch: micro-batch j of process rank has every
    (world * accumulate)-th position from j * world + rank on. Where the batch does not divide, some have one fewer.

    Attributes:
        batch_size: over all processes and micro-batches.
        start_step: first step, that of a resumed run.
        stop_step: one past the last step.
        accumulate: micro-batches a step, a list of keys each.

    Raises InputError: there are no samples.
    """

    dataset: SampleDataset
    batch_size: int
    rank: int
    world: int
    start_step: int
    stop_step: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        if len(self.dataset) < 1:
            raise InputError("the dataset is empty: there is nothing to train on")

    def __len__(self) -> int:
        return max(self.stop_step - self.start_step, 0) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        length = len(self.dataset)
        orders: dict[int, NDArray[np.int64]] = {}
        for step in range(self.start_step, self.stop_step):
            first, end = step * self.batch_size, (step + 1) * self.batch_size
            epochs = range(first // length, (end - 1) // length + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self.dataset.order(epoch) for epoch in epochs}
            for micro in range(self.accumulate):
                positions = range(first + micro * self.world + self.rank, end, self.world * self.accumulate)
                places = (divmod(position, length) for position in positions)
                yield [(epoch, int(orders[epoch][offset])) for epoch, offset in places]


def validation_batches(
    dataset: SampleDataset, batch_size: int, limit: int | None, rank: int, world: int
) -> list[list[Key]]:
    """The batches of keys that this process validates on: the same in every call, for `loader`.

    At most limit samples, spread evenly over the dataset so that one sorted by class gives all classes their share.
    batch_size is that over all processes. Every process has the same number of batches; the last ones may hold fewer
    keys than on other processes, or none.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    keys = [(0, i * len(dataset) // count) for i in range(count)]
    return [keys[first : first + batch_size][rank::world] for first in range(0, count, batch_size)]


def collate(samples: Sequence[Sample | Unreadable], empty: Tensor) -> Batch:
    """Stack what could be read; the content of a batch of which nothing could is `empty`, (0, ...)."""
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    content = torch.stack([sample.content for sample in readable]) if readable else empty
    labels = torch.tensor([sample.label for sample in readable], dtype=torch.int64)
    unreadable = [bad for s in samples for bad in (s.unreadable if isinstance(s, Sample) else (s,))]
    return Batch(content, labels, [sample.location for sample in readable], unreadable)


def loader(dataset: SampleDataset, batch_sampler: Iterable[list[Key]], workers: int) -> "DataLoader[Batch]":
    """Batches in the sampler's order, read by as many processes, at most one a CPU; 0 reads in this process.

    torch limits itself to one thread in such a process, and signals are left to the process that trains: one that is
    told to stop still wants its batch.
    """
    workers = min(workers, _cpus())
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # typed by its samples, the loader by its batches
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=partial(collate, empty=dataset.empty),
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass draws from the global stream, which dropout uses
    )


def validation_loader(
    dataset: SampleDataset, config: DataConfig, batch_size: int, rank: int, world: int
) -> "DataLoader[Batch]":
    """The batches of `validation_batches`, read in this process."""
    return loader(dataset, validation_batches(dataset, batch_size, config.validation_images, rank, world), workers=0)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
