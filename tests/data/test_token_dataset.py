"""What a token cache holds, and that it stands in for the images."""

import json
import logging
import os
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import VOCAB, refused, small_vqvae
from tiny import picture
from tiny_tokens import (
    TRAIN,
    VALIDATION,
    VIEWS,
    break_image,
    changed,
    contents,
    equal,
    file,
    images_of,
    waits,
    write,
    written,
)

from tokenizer.vqvae import VQVAE
from var.data.dataset import Sample, Unreadable
from var.data.loader import StepSampler, loader
from var.data.token_dataset import TokenDataset
from var.data.tokenize import TokenSummary, write_tokens
from var.training.stages.var import VARRecipe
from var.utils.ranks import Ranks

# What it holds


def test_each_view_is_what_encoding_the_image_of_that_epoch_gives(recipe: VARRecipe, vqvae: VQVAE) -> None:
    for split, views in (("train", VIEWS), ("validation", 1)):
        tokens, images = written(recipe, vqvae, split), images_of(recipe, split)
        assert len(tokens) == len(images)
        for view in range(views):
            for index in range(len(images)):
                sample, image = tokens[view, index], images[view, index]
                assert isinstance(sample, Sample)
                assert isinstance(image, Sample)
                assert sample.content.dtype == torch.int64
                assert torch.equal(sample.content, vqvae.encode(image.content[None])[0])
                assert (sample.label, sample.unreadable) == (image.label, ())
        assert VOCAB > tokens.tokens[0][0].max() > 0


@pytest.mark.parametrize(("vocab", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<i4")])
def test_two_bytes_a_token_where_they_are_enough(
    recipe: VARRecipe, vocab: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest index of either type comes back as it is."""
    vqvae = small_vqvae(vocab_size=vocab)
    monkeypatch.setattr(vqvae, "encode", lambda images: torch.full((len(images), 21), vocab - 1))
    tokens = written(recipe, vqvae)
    sample = tokens[0, 0]
    assert isinstance(sample, Sample)
    assert sample.content.tolist() == [vocab - 1] * 21
    assert {part.dtype for view in tokens.tokens for part in view} == {np.dtype(dtype)}


def test_a_cache_from_before_a_setting_was_there_is_read(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write_tokens(recipe, vqvae)
    assert recipe.token_cache is not None
    path = recipe.token_cache / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["data.pad"]
    path.write_text(json.dumps(manifest))
    assert write_tokens(recipe, vqvae).encoded == 0


def test_views_differ_and_take_turns(recipe: VARRecipe, vqvae: VQVAE) -> None:
    tokens = written(recipe, vqvae)
    rows = [[tokens[epoch, index] for index in range(len(tokens))] for epoch in range(2 * VIEWS)]
    flat = [torch.cat([sample.content for sample in row if isinstance(sample, Sample)]).tolist() for row in rows]
    assert len({tuple(row) for row in flat}) == VIEWS
    assert flat[VIEWS:] == flat[:VIEWS]


def test_what_a_dataset_tells_of_itself(recipe: VARRecipe, vqvae: VQVAE) -> None:
    for split in ("train", "validation"):
        tokens, images = written(recipe, vqvae, split), images_of(recipe, split)
        assert tokens.labels is not None
        assert tokens.labels.dtype == np.int64
        assert np.array_equal(tokens.labels, images.labels)
        assert (tokens.num_classes, tokens.class_names) == (2, {0: "bar", 1: "cup"})
        assert (tuple(tokens.empty.shape), tokens.empty.dtype) == ((0, 21), torch.int64)
        for epoch in range(3):
            assert np.array_equal(tokens.order(epoch), images.order(epoch))


def test_the_summary_and_the_progress(recipe: VARRecipe, vqvae: VQVAE) -> None:
    told: list[tuple[int, int]] = []
    samples = VIEWS * TRAIN + VALIDATION
    summary = write(recipe, vqvae, progress=lambda done, total: told.append((done, total)))
    assert summary == TokenSummary(samples, samples * 21 * 2, unreadable=0, encoded=samples)
    assert told[-1] == (samples, samples)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert write(recipe, vqvae) == summary._replace(encoded=0)


def test_progress_is_told_by_the_first_process_and_logged_by_default(
    recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "var.data.tokenize"):
        write(recipe, vqvae)
    ours = [record.getMessage() for record in caplog.records if record.name == "var.data.tokenize"]
    assert ours[0] == (
        f"tokens: encoding {VIEWS * TRAIN + VALIDATION} samples into {recipe.token_cache}, once for all runs that name "
        f"it: {VIEWS} views of {TRAIN} training images, and {VALIDATION} for validation"
    )
    assert ours[-1] == f"encoded {VIEWS * TRAIN + VALIDATION} of {VIEWS * TRAIN + VALIDATION} samples"
    other, told = changed(recipe, token_cache=tmp_path / "second"), []
    with pytest.raises(StopIteration):  # the first process has written the manifest, no more
        write(other, vqvae, ranks=Ranks(0, 2, waits(0)))
    with refused("train-v0-00000.json cannot be read"):  # its shards are not there for the summary
        write(other, vqvae, ranks=Ranks(1, 2), progress=lambda done, total: told.append(done))
    assert file(other, "train-v1-00000.bin").exists()
    assert told == []


def test_tokens_are_read_through_the_page_cache(recipe: VARRecipe, vqvae: VQVAE) -> None:
    tokens = written(recipe, vqvae)
    parts = tokens.tokens[0]
    assert [part.shape for part in parts] == [(6, 21), (6, 21), (6, 21), (2, 21)]
    assert all(isinstance(part, np.memmap) and not part.flags.writeable for part in parts)
    assert file(recipe, "train-v0-00000.bin").stat().st_size == 6 * 21 * 2


def test_precision_changes_nothing(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    write(recipe, vqvae)
    other = changed(recipe, token_cache=tmp_path / "autocast")
    with torch.autocast("cpu", torch.bfloat16):
        write(other, vqvae)
    assert contents(other) == contents(recipe)


def test_reader_processes_change_nothing(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    write(recipe, vqvae)
    other = changed(recipe, token_cache=tmp_path / "workers", data=recipe.data.model_copy(update={"workers": 1}))
    write(other, vqvae)
    assert contents(other) == contents(recipe)


# In place of images


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_those_of_the_images(recipe: VARRecipe, vqvae: VQVAE, world: int, accumulate: int) -> None:
    """Several steps and epochs with flips, random crops, an unreadable image and an odd batch size."""
    broken = break_image(recipe, "train/cup/3.png")
    tokens, images = written(recipe, vqvae), images_of(recipe)
    steps, found = VIEWS * TRAIN // 7, 0
    for rank in range(world):
        batches = [
            loader(data, StepSampler(data, 7, rank, world, 0, steps, accumulate), workers=0)
            for data in (tokens, images)
        ]
        assert len(batches[0]) == steps * accumulate
        for of_tokens, of_images in zip(*batches, strict=True):
            equal(of_tokens, of_images, vqvae)
            found += len(of_tokens.unreadable)
            assert all(bad.location == str(broken) for bad in of_tokens.unreadable)
    assert found >= 2


def test_a_substitute_stands_in_with_its_own_label(recipe: VARRecipe, vqvae: VQVAE) -> None:
    for name in ("train/bar/0.png", "train/bar/1.png", "train/cup/0.png"):
        break_image(recipe, name)
    summary = write(recipe, vqvae)
    tokens, images = TokenDataset(recipe, vqvae, "train"), images_of(recipe)
    assert summary.unreadable >= 3 * VIEWS
    for key in [(view, index) for view in range(VIEWS) for index in range(TRAIN)]:
        sample, image = tokens[key], images[key]
        assert isinstance(sample, Sample)
        assert isinstance(image, Sample)
        assert (sample.label, sample.unreadable) == (image.label, image.unreadable)


def test_unreadable_validation_images_are_left_out(recipe: VARRecipe, vqvae: VQVAE) -> None:
    broken = break_image(recipe, "val/bar/11.png")
    tokens, images = written(recipe, vqvae, "validation"), images_of(recipe, "validation")
    assert tokens.labels is None
    assert tokens[0, 1] == images[0, 1]
    bad = tokens[5, 1]
    assert isinstance(bad, Unreadable)
    assert bad.location == str(broken)
    keys = [[(0, index) for index in range(VALIDATION)]]
    of_tokens, of_images = (next(iter(loader(data, keys, workers=0))) for data in (tokens, images))
    assert len(of_tokens.content) == VALIDATION - 1
    equal(of_tokens, of_images, vqvae)


def test_a_dataset_of_which_nothing_can_be_read(recipe: VARRecipe, vqvae: VQVAE) -> None:
    for path in Path(recipe.data.source).glob("*/*/*.png"):
        path.write_bytes(b"no picture")
    tokens = written(recipe, vqvae)
    batch = next(iter(loader(tokens, StepSampler(tokens, 4, 0, 1, 0, 1), workers=0)))
    assert (tuple(batch.content.shape), batch.content.dtype, len(batch.unreadable)) == ((0, 21), torch.int64, 4)


def test_names_that_are_no_text(recipe: VARRecipe, vqvae: VQVAE, caplog: pytest.LogCaptureFixture) -> None:
    folder = os.fsencode(Path(recipe.data.source) / "val" / "bar")
    with open(folder + b"/\xff.png", "wb") as image:  # noqa: PTH123  # a name that is only bytes
        image.write(b"no picture")
    bad = written(recipe, vqvae, "validation")[0, 3]
    assert isinstance(bad, Unreadable)
    assert bad.location.endswith("\\udcff.png")
    assert "\\udcff.png (not an image" in caplog.text


def test_neither_images_nor_encoder_are_needed(
    recipe: VARRecipe, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = write(recipe, vqvae)
    shutil.rmtree(recipe.data.source)

    def encode(self: VQVAE, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the encoder was called")

    monkeypatch.setattr(VQVAE, "encode", encode)
    assert write(recipe, vqvae) == summary._replace(encoded=0)
    tokens = TokenDataset(recipe, vqvae, "train")
    assert all(isinstance(tokens[epoch, index], Sample) for epoch in range(VIEWS) for index in range(TRAIN))


def shards_of_images(folder: Path) -> Path:
    """Four shards of five labeled images, streamed, and one for validation; the path of their index."""
    folder.mkdir()
    index: dict[str, Any] = {"train": [], "validation": [], "num_classes": 2}
    for number in range(5):
        split = "train" if number < 4 else "validation"
        path = folder / f"{split}-{number}.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(5):
                png = BytesIO()
                picture(i % 2, 5 * number + i).save(png, "PNG")
                for suffix, content in (("png", png.getvalue()), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{number}{i}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
        index[split].append({"url": path.name, "nsamples": 5})
    (folder / "index.json").write_text(json.dumps(index))
    return folder / "index.json"


def test_streamed_shards_are_encoded_too(tmp_path: Path, recipe: VARRecipe, vqvae: VQVAE) -> None:
    """Their labels are known only once they are read, and their order is their own."""
    data = {"source": str(shards_of_images(tmp_path / "shards")), "shuffle_shards": 2, "cache": tmp_path / "streamed"}
    streamed = changed(recipe, data=recipe.data.model_copy(update=data))
    tokens, images = written(streamed, vqvae), images_of(streamed)
    assert images.labels is None
    assert tokens.labels is not None
    assert tokens.labels.tolist() == [0, 1, 0, 1, 0] * 4
    assert tokens.num_classes == 2
    batches = [loader(data, StepSampler(data, 7, 0, 1, 0, VIEWS * 20 // 7), workers=0) for data in (tokens, images)]
    for of_tokens, of_images in zip(*batches, strict=True):
        equal(of_tokens, of_images, vqvae)
