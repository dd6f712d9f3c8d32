"""Training images as tokens in memory."""

from pathlib import Path

import pytest
import torch
from helpers import small_vqvae
from tiny import image_folder

from var.training.config import DataConfig
from var.training.data import ImageDataset, Sample, StepSampler, open_dataset
from var.training.tokens import TokenTable

VIEWS = 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def opened(folder: Path, **options: object) -> ImageDataset:
    config = DataConfig.model_validate({"source": str(folder), "flip": True, "resize": 1.5, **options})
    return open_dataset(config, "train", side=8, seed=0)


def sampler(length: int, batch: int, steps: int, rank: int = 0, world: int = 1) -> StepSampler:
    return StepSampler(length, batch, 0, rank, world, 0, steps)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_table_holds_what_encoding_each_view_gives(images: Path, batch_size: int) -> None:
    dataset, vqvae = opened(images), small_vqvae()
    table = TokenTable(dataset, vqvae, VIEWS, workers=0, batch_size=batch_size)
    assert tuple(table.tokens.shape) == (VIEWS, 8, vqvae.scales.total)
    assert not table.unreadable
    for view in range(VIEWS):
        for index in range(len(dataset)):
            sample = dataset[view, index]
            assert isinstance(sample, Sample)
            expected = vqvae.encode(sample.image[None])[0]
            assert torch.equal(table.tokens[view, index].long(), expected)
    assert len({tuple(row) for row in table.tokens[:, 0].tolist()}) > 1  # views differ


def test_batches_are_those_of_the_sampler_and_views_take_turns(images: Path) -> None:
    dataset, vqvae = opened(images), small_vqvae()
    table = TokenTable(dataset, vqvae, VIEWS, workers=0)
    steps = 8 * (VIEWS + 2) // 4  # beyond the last view, so that the first comes again
    keys = list(sampler(8, 4, steps))
    batches = list(table.batches(sampler(8, 4, steps)))
    assert len(batches) == steps
    assert {epoch for step in keys for epoch, _ in step} == set(range(VIEWS + 2))
    for step, batch in zip(keys, batches, strict=True):
        assert batch.tokens.dtype == batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [int(dataset.labels[index]) for _, index in step]
        rows = [table.tokens[epoch % VIEWS, index].long() for epoch, index in step]
        assert torch.equal(batch.tokens, torch.stack(rows))
        assert batch.unreadable == []


def test_processes_share_the_batch(images: Path) -> None:
    table = TokenTable(opened(images), small_vqvae(), 1, workers=0)
    whole = list(table.batches(sampler(8, 4, 3)))
    halves = [list(table.batches(sampler(8, 4, 3, rank, 2))) for rank in range(2)]
    for batch, even, odd in zip(whole, *halves, strict=True):
        assert torch.equal(batch.tokens[0::2], even.tokens)
        assert torch.equal(batch.labels[1::2], odd.labels)


def test_unreadable_images_are_told_of_and_left_out(images: Path) -> None:
    broken = images / "train" / "cup" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    dataset = opened(images)
    table = TokenTable(dataset, small_vqvae(), VIEWS, workers=0, batch_size=20)  # a chunk spans three views
    assert sorted(table.unreadable) == [(view, 5) for view in range(VIEWS)]
    for epoch, batch in enumerate(table.batches(sampler(8, 8, VIEWS + 1))):
        assert len(batch.tokens) == len(batch.labels) == 7
        assert [entry.place for entry in batch.unreadable] == [str(broken)]
        indices = [index for _, index in list(sampler(8, 8, VIEWS + 1))[epoch] if index != 5]
        assert torch.equal(batch.tokens, table.tokens[epoch % VIEWS, indices].long())


def test_a_batch_of_which_nothing_could_be_read_is_empty(images: Path) -> None:
    for path in images.glob("train/*/*.png"):
        path.write_bytes(b"no picture")
    table = TokenTable(opened(images), small_vqvae(), 1, workers=0)
    batch = next(iter(table.batches(sampler(8, 4, 1))))
    assert (tuple(batch.tokens.shape), tuple(batch.labels.shape), len(batch.unreadable)) == ((0, 21), (0,), 4)
