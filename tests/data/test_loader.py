"""In which order images are read, in which batches and by which processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import SIDE, of_one_image, opened, with_torn

from var.data.dataset import Batch, Sample, Unreadable
from var.data.loader import StepSampler, collate, loader, validation_batches
from var.data.order import epoch_order

# --- the order


class Ordered:
    """Nothing but a length and orders, and how often they were asked for."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def order(self, epoch: int) -> np.ndarray:
        self.asked.append(epoch)
        return epoch_order(self.length, self.seed, epoch)


def sampler(length: int, batch: int, seed: int, rank: int, world: int, start: int, stop: int, micro: int = 1) -> Any:
    return StepSampler(Ordered(length, seed), batch, rank, world, start, stop, micro)  # type: ignore[arg-type]


def keys(*arguments: int) -> list[list[tuple[int, int]]]:
    return list(sampler(*arguments))


runs = {
    "length": st.integers(1, 40),
    "seed": st.integers(0, 2**32 - 1),
    "world": st.integers(1, 4),
    "batch": st.integers(1, 30),
    "steps": st.integers(0, 12),
}


@settings(deadline=None)
@given(**runs, accumulate=st.integers(1, 3))
def test_processes_and_micro_batches_together_see_the_batches_of_one(
    length: int, seed: int, world: int, batch: int, steps: int, accumulate: int
) -> None:
    one = keys(length, batch, seed, 0, 1, 0, steps)
    many = [keys(length, batch, seed, rank, world, 0, steps, accumulate) for rank in range(world)]
    assert all(len(part) == steps * accumulate for part in many)
    for step in range(steps):
        parts = [many[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(world)]
        together: list[Any] = [None] * batch
        for place, part in enumerate(parts):
            together[place :: world * accumulate] = part
        assert together == one[step]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(**runs)
def test_every_epoch_sees_every_image_once(length: int, seed: int, world: int, batch: int, steps: int) -> None:
    seen = [key for step in keys(length, batch, seed, 0, 1, 0, steps) for key in step]
    assert len(seen) == batch * steps
    for epoch in range(len(seen) // length):
        part = seen[epoch * length : (epoch + 1) * length]
        assert {at for at, _ in part} == {epoch}
        assert sorted(index for _, index in part) == list(range(length))


@settings(deadline=None)
@given(**runs, accumulate=st.integers(1, 3), data=st.data())
def test_resuming_equals_going_on(
    length: int, seed: int, world: int, batch: int, steps: int, accumulate: int, data: st.DataObject
) -> None:
    rank, start = data.draw(st.integers(0, world - 1)), data.draw(st.integers(0, steps))
    whole = keys(length, batch, seed, rank, world, 0, steps, accumulate)
    assert keys(length, batch, seed, rank, world, start, steps, accumulate) == whole[start * accumulate :]
    assert len(sampler(length, batch, seed, rank, world, start, steps, accumulate)) == (steps - start) * accumulate


def test_order_of_an_epoch_is_computed_once() -> None:
    steps = sampler(10, 4, 0, 0, 1, 0, 10)
    assert len(list(steps)) == 10
    assert steps.dataset.asked == [0, 1, 2, 3]


def test_order_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_dataset_orders_by_its_seed(parquet: Path) -> None:
    assert opened(parquet, seed=3).order(2).tolist() == epoch_order(12, 3, 2).tolist()


def test_nothing_to_train_on() -> None:
    with refused("empty"):
        sampler(0, 4, 0, 0, 1, 0, 1)


# --- batches

EMPTY = torch.empty(0, 3, 8, 8)


def test_collate_keeps_what_could_be_read_and_tells_the_rest() -> None:
    bad = [Unreadable(i, "there", "torn") for i in range(3)]
    first = Sample(torch.full((3, 8, 8), 0.5), 7, "a", (bad[0], bad[1]))
    batch = collate([first, bad[2], Sample(torch.zeros(3, 8, 8), 2, "b", ())], EMPTY)
    assert batch.content.mean(dim=(1, 2, 3)).tolist() == [0.5, 0]
    assert (batch.labels.tolist(), batch.labels.dtype) == ([7, 2], torch.int64)
    assert (batch.locations, batch.unreadable) == (["a", "b"], bad)


@pytest.mark.parametrize("samples", [[], [Unreadable(4, "there", "torn")]])
@pytest.mark.parametrize("empty", [EMPTY, torch.empty(0, 21, dtype=torch.int64)], ids=["images", "tokens"])
def test_collate_of_nothing_readable(samples: list[Sample | Unreadable], empty: torch.Tensor) -> None:
    batch = collate(samples, empty)
    assert (batch.content.shape, batch.content.dtype) == (empty.shape, empty.dtype)
    assert (tuple(batch.labels.shape), batch.labels.dtype) == ((0,), torch.int64)
    assert (batch.locations, batch.unreadable) == ([], samples)


def test_batch_of_which_nothing_could_be_read_has_the_shape_of_the_dataset(tmp_path: Path) -> None:
    batch = next(iter(loader(of_one_image(tmp_path, b"torn"), [[(0, 0)]], 0)))
    assert (tuple(batch.content.shape), batch.content.dtype) == ((0, 3, SIDE, SIDE), torch.float32)


def test_reader_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.data.loader._cpus", lambda: 2)
    dataset = with_torn(tmp_path, {5}, flip=True)
    steps = StepSampler(dataset, 5, 0, 1, 2, 8)
    here, there = (list(loader(dataset, steps, workers)) for workers in (0, 2))
    assert len(here) == len(there) == 6
    assert sum(len(batch.unreadable) for batch in here) > 0
    for one, two in zip(here, there, strict=True):
        assert isinstance(two, Batch)
        assert torch.equal(one.content, two.content)
        assert torch.equal(one.labels, two.labels)
        assert (one.locations, one.unreadable) == (two.locations, two.unreadable)


def test_loader_takes_no_more_processes_than_cpus_and_no_global_randomness(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("var.data.loader._cpus", lambda: 1)
    dataset = opened(parquet)
    assert loader(dataset, [], 8).num_workers == 1
    before = torch.get_rng_state()
    assert len(next(iter(loader(dataset, [[(0, 0)]], 0))).labels) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_batches_cover_the_data_evenly(parquet: Path) -> None:
    dataset = opened(parquet)  # 12 images
    assert validation_batches(dataset, 5, None, 0, 1) == [
        [(0, i) for i in range(5)],
        [(0, i) for i in range(5, 10)],
        [(0, 10), (0, 11)],
    ]
    assert validation_batches(dataset, 5, 4, 0, 1) == [[(0, 0), (0, 3), (0, 6), (0, 9)]]
    assert validation_batches(dataset, 5, 100, 0, 1) == validation_batches(dataset, 5, None, 0, 1)
    ranks = [validation_batches(dataset, 5, 11, rank, 2) for rank in range(2)]
    assert [[len(batch) for batch in part] for part in ranks] == [[3, 3, 1], [2, 2, 0]]
    assert sorted(key for part in ranks for batch in part for key in batch) == sorted(
        key for batch in validation_batches(dataset, 5, 11, 0, 1) for key in batch
    )
