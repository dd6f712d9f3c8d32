"""The token cache: what it holds, that it survives kills and damage, and that it stands in for the images."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import VOCAB, refused, small_vqvae
from tiny import image_folder, picture, run, var_recipe

from tokenizer.vqvae import VQVAE
from var.data.dataset import Batch, ImageDataset, Sample, StepSampler, Unreadable, loader, open_dataset
from var.data.sources import Split
from var.data.tokens import ALONE, Processes, TokenDataset, TokenSummary, open_tokens, write_tokens
from var.hub.checkpoint import save_model
from var.training.config import VARRecipe

VIEWS, SHARD, TRAIN, VALIDATION = 3, 6, 20, 6
AUGMENTED: dict[str, Any] = {"flip": True, "resize": 1.5, "crop": "random"}


@pytest.fixture
def vqvae() -> VQVAE:
    return small_vqvae()


@pytest.fixture
def recipe(tmp_path: Path, vqvae: VQVAE) -> VARRecipe:
    """Ten images of two classes each, four shards a view, the last of two samples."""
    image_folder(tmp_path / "images", train=TRAIN // 2, validation=VALIDATION // 2)
    save_model(tmp_path / "tokenizer", vqvae)
    return written_recipe(tmp_path)


def written_recipe(folder: Path, **changes: Any) -> VARRecipe:
    base = {"tokens": str(folder / "tokens"), "token_views": VIEWS, "data": AUGMENTED}
    return var_recipe(folder / "recipe", folder / "images", folder / "tokenizer", **(base | changes))


def changed(recipe: VARRecipe, **changes: Any) -> VARRecipe:
    return recipe.model_copy(update=changes)


def write(recipe: VARRecipe, vqvae: VQVAE, **options: Any) -> TokenSummary:
    return write_tokens(recipe, vqvae, **({"shard_samples": SHARD} | options))


def written(recipe: VARRecipe, vqvae: VQVAE, split: Split = "train") -> TokenDataset:
    write(recipe, vqvae)
    return open_tokens(recipe, vqvae, split)


def images_of(recipe: VARRecipe, split: Split = "train") -> ImageDataset:
    return open_dataset(recipe.data, split, 8, recipe.seed)


def contents(recipe: VARRecipe) -> dict[str, bytes]:
    assert recipe.tokens is not None
    return {path.name: path.read_bytes() for path in recipe.tokens.iterdir()}


def identities(recipe: VARRecipe) -> dict[str, tuple[int, int]]:
    """Of each file, what writing it anew changes."""
    assert recipe.tokens is not None
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in recipe.tokens.iterdir()}


def file(recipe: VARRecipe, name: str) -> Path:
    assert recipe.tokens is not None
    return recipe.tokens / name


def break_image(recipe: VARRecipe, name: str) -> Path:
    path = Path(recipe.data.source) / name
    path.write_bytes(path.read_bytes()[:40])
    return path


def equal(tokens: Batch, images: Batch, vqvae: VQVAE) -> None:
    """A batch of the cache is that of the images, encoded."""
    assert torch.equal(tokens.content, vqvae.encode(images.content))
    assert torch.equal(tokens.labels, images.labels)
    assert tokens.unreadable == images.unreadable


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
    assert recipe.tokens is not None
    path = recipe.tokens / "manifest.json"
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
    with caplog.at_level(logging.INFO, "var.data.tokens"):
        write(recipe, vqvae)
    assert caplog.messages[-1] == f"encoded {VIEWS * TRAIN + VALIDATION} of {VIEWS * TRAIN + VALIDATION} samples"
    other, told = changed(recipe, tokens=tmp_path / "second"), []
    with pytest.raises(StopIteration):  # the first process has written the manifest, no more
        write(other, vqvae, processes=Processes(0, 2, waits(0)))
    with refused("train-v0-00000.json cannot be read"):  # its shards are not there for the summary
        write(other, vqvae, processes=Processes(1, 2), progress=lambda done, total: told.append(done))
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
    other = changed(recipe, tokens=tmp_path / "autocast")
    with torch.autocast("cpu", torch.bfloat16):
        write(other, vqvae)
    assert contents(other) == contents(recipe)


def test_reader_processes_change_nothing(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    write(recipe, vqvae)
    other = changed(recipe, tokens=tmp_path / "workers", data=recipe.data.model_copy(update={"workers": 1}))
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
            assert all(bad.place == str(broken) for bad in of_tokens.unreadable)
    assert found >= 2


def test_a_substitute_stands_in_with_its_own_label(recipe: VARRecipe, vqvae: VQVAE) -> None:
    for name in ("train/bar/0.png", "train/bar/1.png", "train/cup/0.png"):
        break_image(recipe, name)
    summary = write(recipe, vqvae)
    tokens, images = open_tokens(recipe, vqvae, "train"), images_of(recipe)
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
    assert bad.place == str(broken)
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


def test_names_that_are_no_text(recipe: VARRecipe, vqvae: VQVAE) -> None:
    folder = os.fsencode(Path(recipe.data.source) / "val" / "bar")
    with open(folder + b"/\xff.png", "wb") as image:  # noqa: PTH123  # a name that is only bytes
        image.write(b"no picture")
    bad = written(recipe, vqvae, "validation")[0, 3]
    assert isinstance(bad, Unreadable)
    assert bad.place.endswith("\\udcff.png")


def test_neither_images_nor_encoder_are_needed(
    recipe: VARRecipe, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = write(recipe, vqvae)
    shutil.rmtree(recipe.data.source)

    def encode(self: VQVAE, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the encoder was called")

    monkeypatch.setattr(VQVAE, "encode", encode)
    assert write(recipe, vqvae) == summary._replace(encoded=0)
    tokens = open_tokens(recipe, vqvae, "train")
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


# Damage, kills and several processes


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_label(path: Path) -> None:
    record = json.loads(path.read_bytes())
    record["labels"][0] ^= 1
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-v1-00002.bin", flip_a_bit),
        ("train-v1-00002.bin", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("train-v1-00002.bin", Path.unlink),
        ("train-v1-00002.json", other_label),
        ("train-v1-00002.json", lambda path: path.write_text("{")),
        ("train-v1-00002.json", Path.unlink),
    ],
)
def test_only_a_damaged_shard_is_encoded_again(
    recipe: VARRecipe,
    vqvae: VQVAE,
    name: str,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(recipe, vqvae)
    before, whole = identities(recipe), contents(recipe)
    damage(file(recipe, name))
    with caplog.at_level(logging.WARNING):
        assert write(recipe, vqvae).encoded == SHARD
    assert contents(recipe) == whole
    now = identities(recipe)
    assert {name for name in before if before[name] != now[name]} == {"train-v1-00002.bin", "train-v1-00002.json"}
    gone = damage is Path.unlink and name.endswith("json")
    assert [record.getMessage() for record in caplog.records] == (
        [] if gone else [f"{file(recipe, 'train-v1-00002.bin')} is damaged: encoding it again"]
    )


def killed_at(recipe: VARRecipe, vqvae: VQVAE, moment: int) -> bool:
    """Encode in a process that is killed at one of the moments when it has encoded a batch or is writing a file.

    Returns:
        Whether the process came that far.
    """

    def child() -> None:
        passed = 0

        def moment_passes(*_: object) -> None:
            nonlocal passed
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1

        replace = Path.replace
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", moment_passes)  # a file is whole beside its place
            patch.setattr(Path, "replace", lambda path, target: (replace(path, target), moment_passes()))
            write(recipe, vqvae, progress=moment_passes)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path
) -> None:
    recipe = changed(recipe, token_views=1)
    write(recipe, vqvae)
    for moment in range(0, 27, 2):
        other = changed(recipe, tokens=tmp_path / f"killed-{moment}")
        assert killed_at(other, vqvae, moment)
        done = [path.stem for path in (other.tokens or Path()).glob("*-*.json")]
        before = identities(other)
        summary = write(other, vqvae)
        assert contents(other) == contents(recipe)
        assert summary.encoded <= TRAIN + VALIDATION - sum({"train-v0-00003": 2}.get(name, SHARD) for name in done)
        kept = identities(other)
        assert all(kept[f"{name}.bin"] == before[f"{name}.bin"] for name in done)
    assert not killed_at(changed(recipe, tokens=tmp_path / "through"), vqvae, 1000)


def test_killed_again_and_again_it_comes_to_an_end(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    """Each attempt is killed after one shard; none of them is lost."""
    write(recipe, vqvae)
    other, attempts = changed(recipe, tokens=tmp_path / "killed"), 0
    while killed_at(other, vqvae, 5):
        attempts += 1
    assert attempts == VIEWS * 4 + 1  # the manifest goes first; the last attempt ends before it can be killed
    assert contents(other) == contents(recipe)


def test_processes_share_the_shards(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    """Whatever their number, and also when it changes between two attempts."""
    whole = write(recipe, vqvae)
    other = changed(recipe, tokens=tmp_path / "shared")
    with pytest.raises(StopIteration):  # the others have not come: their shards are missing
        write(other, vqvae, processes=Processes(0, 3, waits(1)))
    assert 0 < len(contents(other)) < len(contents(recipe))
    summary = write(other, vqvae, processes=ALONE)
    assert 0 < summary.encoded < whole.encoded
    assert contents(other) == contents(recipe)


def waits(times: int) -> Callable[[], None]:
    """Waits so many times, and raises when it should wait again."""
    turns = iter([None] * times)
    return lambda: next(turns)


def test_two_processes_write_what_one_writes(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    write_tokens(recipe, vqvae)
    other = changed(recipe, tokens=tmp_path / "two")
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 0, "--standalone")
    result = run(*launch, "-m", "var", "tokenize", tmp_path / "recipe.yaml", f"tokens={other.tokens}")
    assert result.returncode == 0, result.stderr
    assert contents(other) == contents(recipe)
    assert f"holds {VIEWS * TRAIN + VALIDATION} encoded images" in result.stdout
    assert f"{VIEWS * TRAIN + VALIDATION} now" in result.stdout


def test_a_full_disk(recipe: VARRecipe, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with refused("tokens=", "No space left on device", "the same command goes on"):
        write(recipe, vqvae)
    assert sorted(contents(recipe)) == [
        "manifest.json",
        *(f"train-v{view}-00000.{end}" for view in range(2) for end in ("bin", "json")),
    ]
    assert write(recipe, vqvae).encoded == VIEWS * TRAIN + VALIDATION - 2 * SHARD


# What is refused


def test_a_cache_of_something_else_is_refused(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    before = identities(recipe)
    remedy = "give another folder, or remove this one"
    others: list[tuple[VARRecipe, VQVAE, str]] = [
        (changed(recipe, seed=1), vqvae, "with seed=0, not 1"),
        (recipe, small_vqvae(seed=1), "by another tokenizer"),
        (recipe, small_vqvae(beta=0.5), "by another tokenizer"),
    ]
    for name, value in (("flip", False), ("crop", "center"), ("resize", 1.0), ("classes", (0,)), ("source", "x")):
        data = recipe.data.model_copy(update={name: value})
        others.append((changed(recipe, data=data), vqvae, f"data.{name}="))
    for other, theirs, difference in others:
        with refused(str(recipe.tokens), difference, remedy):
            write(other, theirs)
        with refused(str(recipe.tokens), difference, remedy):
            open_tokens(other, theirs, "train")
    assert identities(recipe) == before


def test_the_decoder_and_how_images_are_read_may_change(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    with torch.no_grad():
        vqvae.decoder.conv_out.weight.zero_()
    data = recipe.data.model_copy(update={"workers": 1, "max_unreadable": 0.5, "validation_images": 2})
    assert write(changed(recipe, data=data, batch_size=2), vqvae).encoded == 0


def test_views_can_be_added_and_left_unused(recipe: VARRecipe, vqvae: VQVAE) -> None:
    fewer = changed(recipe, token_views=1)
    write(fewer, vqvae)
    before = identities(fewer)
    with refused("8 of the 12 train shards", "missing or cut off", "train-v1-00000.bin", "run var tokenize"):
        open_tokens(recipe, vqvae, "train")
    assert write(recipe, vqvae).encoded == 2 * TRAIN
    assert before.items() <= identities(recipe).items()
    one, all_views = open_tokens(fewer, vqvae, "train"), open_tokens(recipe, vqvae, "train")
    for index in range(TRAIN):
        first, same, other = one[0, index], one[1, index], all_views[VIEWS, index]
        assert isinstance(first, Sample)
        assert isinstance(same, Sample)
        assert isinstance(other, Sample)
        assert torch.equal(first.content, same.content)
        assert torch.equal(first.content, other.content)


def test_images_that_came_or_went_in_between(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    file(recipe, "train-v0-00001.json").unlink()
    picture(0, 99).save(Path(recipe.data.source) / "train" / "bar" / "99.png")
    with refused("the train images of data.source=", "21 now, 20 then", "give another folder"):
        write(recipe, vqvae)


def test_folders_that_cannot_be_used(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    for function in (write, lambda *given: open_tokens(*given, "train")):
        with refused("the recipe has no tokens", "tokens=FOLDER"):
            function(changed(recipe, tokens=None), vqvae)
    with refused("holds no token cache", "run var tokenize"):
        open_tokens(recipe, vqvae, "train")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with refused("holds other files, such as letter.txt", "give a new folder"):
        write(changed(recipe, tokens=tmp_path / "mine"), vqvae)
    with refused("letter.txt is a file", "give another folder"):
        write(changed(recipe, tokens=tmp_path / "mine" / "letter.txt"), vqvae)
    assert not (recipe.tokens or tmp_path).exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"settings": 1}', "\x00\x01"])
def test_a_manifest_that_is_damaged(recipe: VARRecipe, vqvae: VQVAE, content: str) -> None:
    write(recipe, vqvae)
    file(recipe, "manifest.json").write_text(content)
    for function in (write, lambda *given: open_tokens(*given, "train")):
        with refused("manifest.json cannot be read", "remove this one to encode anew"):
            function(recipe, vqvae)
    with refused("manifest.json cannot be read"):
        open_tokens(recipe, vqvae, "validation")


@pytest.mark.parametrize("name", ["train-v2-00003.bin", "train-v2-00003.json"])
def test_a_shard_that_is_missing(recipe: VARRecipe, vqvae: VQVAE, name: str) -> None:
    write(recipe, vqvae)
    file(recipe, name).unlink()
    with refused("train-v2-00003", "run var tokenize"):
        open_tokens(recipe, vqvae, "train")
    open_tokens(recipe, vqvae, "validation")
