"""Batches for one process: the samples of each step, and the processes that read them during training."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from tokenizer.errors import InputError
from var.data.config import DataConfig
from var.data.dataset import Batch, Key, Sample, SampleDataset, Unreadable
from var.utils.signals import follow_parent


@dataclass
class StepSampler:
    """The keys that one process reads at each step of a run, a pure function of the arguments.

    The samples form an endless sequence of epochs, each in the dataset's order. Step s takes batch_size positions from
    s * batch_size on, across the end of an epoch if necessary. They are dealt out one by one to the processes, then to
    each process's next micro-batch: micro-batch j of process rank has every (world * accumulate)-th position from
    j * world + rank on. If the batch does not divide evenly, some have one fewer.

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
                offsets = (divmod(position, length) for position in positions)  # epoch, offset in it
                yield [(epoch, int(orders[epoch][offset])) for epoch, offset in offsets]


def validation_batches(
    dataset: SampleDataset, batch_size: int, limit: int | None, rank: int, world: int
) -> list[list[Key]]:
    """List the batches of keys that this process validates on: the same in every call, for `loader`.

    At most limit samples, spread evenly over the dataset, so that all classes of a sorted one have their share.
    batch_size counts all processes. Every process has the same number of batches; its last ones may hold fewer keys
    than on other processes, or none.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    keys = [(0, i * len(dataset) // count) for i in range(count)]
    return [keys[first : first + batch_size][rank::world] for first in range(0, count, batch_size)]


def collate(samples: Sequence[Sample | Unreadable], empty: Tensor) -> Batch:
    """Stack the readable samples; the content of a batch without any is `empty`, (0, ...).

    In a reader process the tensors are moved to shared memory here, where an error reaches the parent: later it would
    only be printed, and the parent would wait for ever.
    """
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    content = torch.stack([sample.content for sample in readable]) if readable else empty
    labels = torch.tensor([sample.label for sample in readable], dtype=torch.int64)
    unreadable = [bad for s in samples for bad in (s.unreadable if isinstance(s, Sample) else (s,))]
    if get_worker_info() is not None:
        content, labels = content.share_memory_(), labels.share_memory_()
    return Batch(content, labels, [sample.location for sample in readable], unreadable)


def loader(dataset: SampleDataset, batch_sampler: Iterable[list[Key]], workers: int) -> "DataLoader[Batch]":
    """Load batches in the sampler's order by `workers` processes, at most one a CPU; 0 reads in this process.

    torch limits itself to one thread in such a process. They ignore stop signals, for a training process that is
    stopped still finishes its step; `open_batches` ends them.
    """
    workers = min(workers, _cpus())
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # typed by its samples, the loader by its batches
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=partial(collate, empty=dataset.empty),
        persistent_workers=workers > 0,
        worker_init_fn=follow_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass draws from the global stream, which dropout uses
    )


@contextmanager
def open_batches(batches: "DataLoader[Batch]") -> Iterator[Iterator[Batch]]:
    """Give the batches; when the block ends, however it does, the processes that read them are killed.

    Raises RuntimeError, where a batch is waited for: one of these processes has ended. torch's own handler raises it
    anywhere, so also in the middle of a step.
    """
    others = set(multiprocessing.active_children())
    source = iter(batches)
    readers = set(multiprocessing.active_children()) - others
    waiting = False

    def check_readers() -> None:
        for reader in readers:
            if reader.exitcode is not None:
                reason = f"signal {-reader.exitcode}" if reader.exitcode < 0 else f"code {reader.exitcode}"
                raise RuntimeError(
                    f"process {reader.pid}, which reads data, ended with {reason}: is there enough memory, and "
                    "shared memory in /dev/shm? data.workers=0 needs neither"
                )

    def child_ended(number: int, frame: FrameType | None) -> None:
        if waiting:
            check_readers()

    def read() -> Iterator[Batch]:
        nonlocal waiting
        while True:
            waiting = True
            try:
                check_readers()
                batch = next(source, None)
            finally:
                waiting = False
            if batch is None:
                return
            yield batch

    handled = bool(readers) and threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    previous = signal.signal(signal.SIGCHLD, child_ended) if handled else None
    try:
        yield read()
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.join()
        if handled:
            signal.signal(signal.SIGCHLD, previous)


def validation_loader(
    dataset: SampleDataset, config: DataConfig, batch_size: int, rank: int, world: int
) -> "DataLoader[Batch]":
    """Load the batches of `validation_batches` in this process."""
    return loader(dataset, validation_batches(dataset, batch_size, config.validation_images, rank, world), workers=0)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
