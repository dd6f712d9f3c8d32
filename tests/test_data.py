"""Training data: what is read from folders and tables, in which order, and what happens to images that are damaged."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenizer.errors import InputError
from var.images import resize_and_crop, to_rgb, to_tensor
from var.training.config import DataConfig
from var.training.data import (
    Batch,
    ImageDataset,
    Sample,
    StepSampler,
    Unreadable,
    collate,
    epoch_order,
    loader,
    open_dataset,
    validation_batches,
)

SIDE = 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A smooth coloured picture that no two seeds share."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[Any] | None, image: str = "image") -> None:
    columns: dict[str, Any] = {image: [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]}
    columns |= {} if labels is None else {"label": labels}
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path)


def write_folder(folder: Path, classes: dict[str, int], split: str) -> None:
    for number, (name, count) in enumerate(classes.items()):
        (folder / split / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * number + i).save(folder / split / name / f"{i}.jpg")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "parquet"
    write_parquet(folder / "train.parquet", [encoded(picture(i)) for i in range(12)], [207, 3, 970] * 4)
    write_parquet(folder / "validation.parquet", [encoded(picture(50 + i)) for i in range(4)], [3, 207, 3, 970])
    (folder / "classes.json").write_text(json.dumps({"207": {"name": "golden retriever"}, "3": {"name": "shark"}}))
    return folder


def opened(source: object, split: Any = "train", seed: int = 0, **options: Any) -> ImageDataset:
    return open_dataset(DataConfig(source=str(source), **options), split, SIDE, seed)


def sample(dataset: ImageDataset, index: int, epoch: int = 0) -> Sample:
    found = dataset[epoch, index]
    assert isinstance(found, Sample), found
    return found


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where images come from


def test_parquet(parquet: Path) -> None:
    train, validation = opened(parquet), opened(parquet, "validation")
    assert (len(train), len(validation)) == (12, 4)
    assert train.labels.tolist() == [207, 3, 970] * 4
    assert train.num_classes == validation.num_classes == 971
    assert train.class_names == {207: "golden retriever", 3: "shark"}
    image, label = sample(train, 1)
    assert (tuple(image.shape), image.dtype, label) == ((3, SIDE, SIDE), torch.float32, 3)
    assert -1 <= image.min() < image.max() <= 1


def test_validation_image_is_the_centre_of_the_resized_one(parquet: Path) -> None:
    image = picture(50).resize((22, 18), Image.Resampling.LANCZOS).crop((3, 1, 19, 17))
    torch.testing.assert_close(sample(opened(parquet, "validation"), 0).image, to_tensor(image), atol=2 / 127, rtol=0)


def test_shards_and_the_layout_of_a_cloned_hub_dataset(tmp_path: Path) -> None:
    for shard in range(2):
        images = [encoded(picture(10 * shard + i)) for i in range(3)]
        write_parquet(tmp_path / f"hub/data/train-0000{shard}-of-00002.parquet", images, [shard] * 3)
    assert opened(tmp_path / "hub").labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_kept_as_paths_and_as_bare_bytes(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "image.png")
    forms: dict[str, list[Any]] = {"path": [str(tmp_path / "image.png")], "bytes": [encoded(picture(1))]}
    images = []
    for name, column in forms.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"picture": column, "kind": [5]}), tmp_path / name / "train.parquet")
        images.append(sample(opened(tmp_path / name, image_column="picture", label_column="kind"), 0))
    assert torch.equal(images[0].image, images[1].image)
    assert images[0].label == 5


def test_choice_of_classes_keeps_their_numbers(parquet: Path) -> None:
    chosen = opened(parquet, classes=(970, 3))
    assert chosen.labels.tolist() == [3, 970] * 4
    assert [sample(chosen, i).label for i in range(2)] == [3, 970]
    plain = [opened(parquet, crop="center"), opened(parquet, crop="center", classes=(970, 3))]
    assert [torch.equal(sample(plain[1], i).image, sample(plain[0], i + 1).image) for i in range(2)] == [True, True]
    assert chosen.num_classes == 971
    assert chosen.class_names == {3: "shark"}


def test_image_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"n02": 2, "n01": 3, "n03": 1}, "train")
    write_folder(tmp_path, {"n03": 2}, "val")
    (tmp_path / "train/n01/notes.txt").write_text("not an image")
    (tmp_path / "train/n03/deeper").mkdir()
    picture(9).save(tmp_path / "train/n03/deeper/x.PNG")
    train, validation = opened(tmp_path), opened(tmp_path, "validation")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert train.class_names == {0: "n01", 1: "n02", 2: "n03"}
    assert train.num_classes == 3
    assert validation.labels.tolist() == [2, 2]  # numbered by the training classes
    assert [sample(train, i).label for i in range(7)] == train.labels.tolist()


def test_class_folders_with_numbers_are_labels(tmp_path: Path) -> None:
    write_folder(tmp_path, {"2": 1, "10": 1, "207": 1}, "train")
    (tmp_path / "classes.json").write_text('{"207": {"wnid": "n02099601", "name": "golden retriever"}}')
    train = opened(tmp_path)
    assert sorted(train.labels.tolist()) == [2, 10, 207]
    assert train.num_classes == 208
    assert train.class_names == {207: "golden retriever"}


def hub_dataset(labels: list[int], **splits: int) -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])})
    rows = {"image": [{"bytes": encoded(picture(i)), "path": None} for i in range(len(labels))], "label": labels}
    table = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict({name: table.select(range(count)) for name, count in splits.items()})


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: asked.append(name) or hub_dataset([1, 0], train=2, valid=1)
    )
    train, validation = opened("owner/name"), opened("owner/name", "validation")
    assert asked == ["owner/name"] * 2
    assert (train.labels.tolist(), validation.labels.tolist()) == ([1, 0], [1])
    assert train.class_names == {0: "cat", 1: "dog", 2: "owl"}
    assert train.num_classes == 3
    assert sample(train, 1).label == 0


# --- what cannot be used


def test_hub_dataset_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([1], train=1, test=1))
    assert "'owner/name' has no validation split, only train, test" in refusal(
        lambda: opened("owner/name", "validation")
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([-1], train=1))
    assert "holds -1, which means unlabelled" in refusal(lambda: opened("owner/name"))

    def unreachable(name: str) -> None:
        raise ConnectionError("Couldn't reach it\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    text = refusal(lambda: opened("owner/name"))
    assert "'owner/name'" in text
    assert "(ConnectionError: Couldn't reach it (offline)): check the name and the connection, or give a folder" in text


@pytest.mark.parametrize("source", ["no/such/folder/here", "./nowhere", "/no/where", "nowhere", "parquet"])
def test_source_that_does_not_exist(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("a path was taken for a hub name"))
    assert f"{source!r} does not exist: give a folder, or a hub dataset" in refusal(lambda: opened(source))


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "is a file: give the folder" in refusal(lambda: opened(file))
    assert "neither train/CLASS folders nor train*.parquet files" in refusal(lambda: opened(tmp_path))
    (tmp_path / "train").mkdir()
    assert "holds no class folders" in refusal(lambda: opened(tmp_path))
    (tmp_path / "train/cat").mkdir()
    assert "holds no images: expected train/CLASS/*.jpg" in refusal(lambda: opened(tmp_path))
    write_folder(tmp_path, {"dog": 1}, "train")
    assert "has no validation folder: add val/CLASS/*.jpg" in refusal(lambda: opened(tmp_path, "validation"))
    write_folder(tmp_path, {"owl": 1}, "val")
    assert f"owl is not in {tmp_path / 'train'}" in refusal(lambda: opened(tmp_path, "validation"))


def test_class_folders_of_the_same_number(tmp_path: Path) -> None:
    write_folder(tmp_path, {"1": 1, "01": 1}, "train")
    assert "same number" in refusal(lambda: opened(tmp_path))


def test_parquet_that_cannot_be_used(tmp_path: Path, parquet: Path) -> None:
    assert "data.image_column='img'" in refusal(lambda: opened(parquet, image_column="img"))
    assert "choose one of image, label" in refusal(lambda: opened(parquet, label_column="kind"))
    assert "'label' of" in refusal(lambda: opened(parquet, image_column="label"))
    assert "struct<bytes: binary, path: string>: labels must be integers" in refusal(
        lambda: opened(parquet, label_column="image")
    )
    text = refusal(lambda: opened(parquet, classes=(3, 5)))
    assert "no training images of [5], only of 3, 207, 970" in text
    (parquet / "validation.parquet").unlink()
    assert "no validation*.parquet" in refusal(lambda: opened(parquet, "validation"))
    (parquet / "classes.json").write_text("[]")
    assert "is not of the form" in refusal(lambda: opened(parquet))

    data = encoded(picture(0))
    write_parquet(tmp_path / "unlabelled/train.parquet", [data], None)
    assert "data.label_column='label' is no column" in refusal(lambda: opened(tmp_path / "unlabelled"))
    write_parquet(tmp_path / "gap/train.parquet", [data, data], [1, None])
    assert "lacks 1 of 2 labels" in refusal(lambda: opened(tmp_path / "gap"))
    write_parquet(tmp_path / "words/train.parquet", [data], ["dog"])
    assert "holds string: labels must be integers" in refusal(lambda: opened(tmp_path / "words"))
    write_parquet(tmp_path / "other/train.parquet", [data], [1])
    write_parquet(tmp_path / "other/validation.parquet", [data], [2])
    assert "no validation images" in refusal(lambda: opened(tmp_path / "other", "validation", classes=(1,)))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/train.parquet").write_bytes(b"PAR1 and nothing else")
    assert "cannot be read as Parquet" in refusal(lambda: opened(tmp_path / "damaged"))


# --- what becomes of an image


def of_one_image(folder: Path, data: bytes | None, **options: Any) -> ImageDataset:
    write_parquet(folder / "train.parquet", [data], [0])
    return opened(folder, crop="center", **options)


RED_ON_CLEAR = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
RED_ON_CLEAR.paste((255, 0, 0, 255), (0, 0, 20, 10))
CLEAR = Image.new("P", (20, 20), 1)
CLEAR.putpalette([0, 0, 0, 255, 0, 0])
CMYK = Image.new("CMYK", (20, 20), (0, 255, 255, 0))  # red
UPSIDE_DOWN = Image.new("RGB", (20, 20), "white")
UPSIDE_DOWN.paste("red", (0, 10, 20, 20))
EXIF = Image.Exif()
EXIF[0x0112] = 3  # turn by 180 degrees
SIXTEEN_BITS = Image.fromarray(np.full((20, 20), 257 * 100, np.uint16))


@pytest.mark.parametrize(
    ("data", "top", "bottom"),
    [
        (encoded(RED_ON_CLEAR), (255, 0, 0), (255, 255, 255)),
        (encoded(RED_ON_CLEAR, "WEBP", lossless=True), (255, 0, 0), (255, 255, 255)),
        (encoded(RED_ON_CLEAR.convert("P")), (255, 0, 0), (255, 255, 255)),
        (encoded(RED_ON_CLEAR, "GIF"), (255, 0, 0), (255, 255, 255)),
        (encoded(CLEAR, transparency=1), (255, 255, 255), (255, 255, 255)),
        (encoded(Image.new("LA", (20, 20), (0, 51))), (204, 204, 204), (204, 204, 204)),
        (encoded(Image.new("L", (20, 20), 100)), (100, 100, 100), (100, 100, 100)),
        (encoded(Image.new("1", (20, 20), 1)), (255, 255, 255), (255, 255, 255)),
        (encoded(SIXTEEN_BITS), (100, 100, 100), (100, 100, 100)),
        (encoded(SIXTEEN_BITS, "TIFF"), (100, 100, 100), (100, 100, 100)),
        (encoded(CMYK, "JPEG", quality=100), (254, 0, 0), (254, 0, 0)),
        (encoded(UPSIDE_DOWN, "PNG", exif=EXIF), (255, 0, 0), (255, 255, 255)),
    ],
    ids=["RGBA", "WebP", "palette-alpha", "GIF", "palette", "LA", "grey", "bilevel", "16-bit", "TIFF", "CMYK", "EXIF"],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, data: bytes, top: tuple[int, ...], bottom: tuple[int, ...]
) -> None:
    image = sample(of_one_image(tmp_path, data), 0).image
    levels = (image + 1) * 127.5
    for row, expected in ((0, top), (SIDE - 1, bottom)):
        torch.testing.assert_close(levels[:, row, SIDE // 2], torch.tensor(expected).float(), atol=1.5, rtol=0)


def test_opaque_image_is_not_changed() -> None:
    assert np.array_equal(np.asarray(to_rgb(picture(0))), np.asarray(picture(0)))


PNG, JPEG, WEBP = encoded(picture(0)), encoded(picture(0, (200, 200)), "JPEG"), encoded(picture(0), "WEBP")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + bytes(40) + PNG[100:], "broken"),
        (WEBP[: len(WEBP) // 2], ""),
        (b"", "not an image"),
        (b"<html>404</html>", "not an image in one of the formats JPEG, PNG"),
        (None, "0.png"),
    ],
    ids=["JPEG", "PNG", "flipped-bytes", "WebP", "empty", "html", "missing"],
)
def test_damaged_image_is_named_and_not_raised(tmp_path: Path, data: bytes | None, reason: str) -> None:
    found = of_one_image(tmp_path, data)[0, 0]
    assert isinstance(found, Unreadable)
    assert found.index == 0
    assert found.place == f"row 0 of {tmp_path} (train) (0.png)"
    assert reason in found.reason
    assert found.reason
    assert "\n" not in found.reason


def test_damaged_file_is_named_by_its_path(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2}, "train")
    (tmp_path / "train/a/1.jpg").write_bytes(b"nothing")
    dataset = opened(tmp_path)
    found = dataset[0, 1]
    assert isinstance(found, Unreadable)
    assert found.place == str(tmp_path / "train/a/1.jpg")
    (tmp_path / "train/a/0.jpg").unlink()
    assert isinstance(dataset[0, 0], Unreadable)


def test_more_pixels_than_pillow_allows_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = of_one_image(tmp_path, encoded(picture(0, (30, 30))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 899)  # Pillow itself warns at this size, and refuses twice of it
    with pytest.warns(Image.DecompressionBombWarning):
        found = dataset[0, 0]
    assert isinstance(found, Unreadable)
    assert "900 pixels, 899 allowed" in found.reason


@settings(deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    short_side=st.integers(8, 40),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_crop_of_any_size_equals_resizing_all_first(
    width: int, height: int, short_side: int, at: tuple[float, float]
) -> None:
    image = Image.new("RGB", (width, height), (80, 120, 160))
    image.paste((160, 90, 100), (width // 3, height // 4, width, height))
    scale = min(width, height) / short_side
    whole = image.resize((round(width / scale), round(height / scale)), Image.Resampling.LANCZOS)
    left, top = (min(int(where * (n - 7)), n - 8) for where, n in zip(at, whole.size, strict=True))
    expected = np.asarray(whole.crop((left, top, left + 8, top + 8)), dtype=int)
    found = np.asarray(resize_and_crop(image, short_side, 8, at), dtype=int)
    assert abs(found - expected).max() <= 1


def test_random_crop_reaches_every_place_and_flip_both_sides(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(18, dtype=np.uint8) * 10, (18, 18))
    write_parquet(tmp_path / "train.parquet", [encoded(Image.fromarray(ramp))], [0])
    dataset = opened(tmp_path, flip=True)  # short side 18 at side 16: three places, two directions
    ends = {
        (round(float(row[0] + 1) * 12.75), round(float(row[-1] + 1) * 12.75))
        for epoch in range(60)
        for row in [sample(dataset, 0, epoch).image[0, 0]]
    }
    assert ends == {(0, 15), (1, 16), (2, 17), (15, 0), (16, 1), (17, 2)}


def test_augmentation_follows_from_seed_epoch_and_index_alone(parquet: Path) -> None:
    dataset = opened(parquet, flip=True)
    first = sample(dataset, 3, epoch=5).image
    for index in range(12):
        sample(dataset, index)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global stream must have no influence
    assert torch.equal(sample(dataset, 3, epoch=5).image, first)
    assert torch.equal(sample(opened(parquet, flip=True), 3, epoch=5).image, first)
    other_epochs = [sample(dataset, 3, epoch).image for epoch in range(5)]
    assert not all(torch.equal(image, first) for image in other_epochs)
    other_seeds = [sample(opened(parquet, flip=True, seed=seed), 3, epoch=5).image for seed in range(1, 5)]
    assert not all(torch.equal(image, first) for image in other_seeds)


def test_each_image_has_its_own_augmentation(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [PNG] * 12, [0] * 12)
    first, *others = [sample(opened(tmp_path, flip=True), i).image for i in range(12)]
    assert not all(torch.equal(image, first) for image in others)


def test_validation_is_not_augmented(parquet: Path) -> None:
    dataset = opened(parquet, "validation", flip=True)
    assert all(torch.equal(sample(dataset, 2, epoch).image, sample(dataset, 2).image) for epoch in range(8))


# --- the order


runs = {
    "length": st.integers(1, 40),
    "seed": st.integers(0, 2**32 - 1),
    "world": st.integers(1, 4),
    "per_rank": st.integers(1, 9),
    "steps": st.integers(0, 12),
}


def keys(
    length: int, batch: int, seed: int, rank: int, world: int, start: int, stop: int
) -> list[list[tuple[int, int]]]:
    return list(StepSampler(length, batch, seed, rank, world, start, stop))


@settings(deadline=None)
@given(**runs)
def test_processes_together_see_the_batches_of_one(
    length: int, seed: int, world: int, per_rank: int, steps: int
) -> None:
    batch = world * per_rank
    one = keys(length, batch, seed, 0, 1, 0, steps)
    many = [keys(length, batch, seed, rank, world, 0, steps) for rank in range(world)]
    assert all(len(local) == per_rank for part in many for local in part)
    for step in range(steps):
        together: list[Any] = [None] * batch
        for rank in range(world):
            together[rank::world] = many[rank][step]
        assert together == one[step]


@settings(deadline=None)
@given(**runs)
def test_every_epoch_sees_every_image_once(length: int, seed: int, world: int, per_rank: int, steps: int) -> None:
    seen = [key for step in keys(length, per_rank, seed, 0, 1, 0, steps) for key in step]
    assert len(seen) == per_rank * steps
    for epoch in range(len(seen) // length):
        part = seen[epoch * length : (epoch + 1) * length]
        assert {at for at, _ in part} == {epoch}
        assert sorted(index for _, index in part) == list(range(length))


@settings(deadline=None)
@given(**runs, data=st.data())
def test_resuming_equals_going_on(
    length: int, seed: int, world: int, per_rank: int, steps: int, data: st.DataObject
) -> None:
    batch, rank = world * per_rank, data.draw(st.integers(0, world - 1))
    start = data.draw(st.integers(0, steps))
    whole = keys(length, batch, seed, rank, world, 0, steps)
    assert keys(length, batch, seed, rank, world, start, steps) == whole[start:]
    assert len(StepSampler(length, batch, seed, rank, world, start, steps)) == steps - start


def test_order_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_batch_that_does_not_divide() -> None:
    assert "batch_size=10 does not divide among 4 processes: try 8" in refusal(
        lambda: StepSampler(5, 10, 0, 0, 4, 0, 1)
    )
    assert "batch_size=3 does not divide among 4 processes: try 4" in refusal(lambda: StepSampler(5, 3, 0, 0, 4, 0, 1))
    assert "empty" in refusal(lambda: StepSampler(0, 4, 0, 0, 1, 0, 1))


# --- batches


def test_collate_keeps_what_could_be_read() -> None:
    bad = Unreadable(4, "there", "torn")
    batch = collate([Sample(torch.full((3, 8, 8), 0.5), 7), bad, Sample(torch.zeros(3, 8, 8), 2)], side=8)
    assert batch.images.mean(dim=(1, 2, 3)).tolist() == [0.5, 0]
    assert (batch.labels.tolist(), batch.labels.dtype, batch.unreadable) == ([7, 2], torch.int64, [bad])


@pytest.mark.parametrize("samples", [[], [Unreadable(4, "there", "torn")]])
def test_collate_of_nothing_readable(samples: list[Sample | Unreadable]) -> None:
    batch = collate(samples, side=8)
    assert (tuple(batch.images.shape), batch.images.dtype) == ((0, 3, 8, 8), torch.float32)
    assert (tuple(batch.labels.shape), batch.labels.dtype) == ((0,), torch.int64)
    assert batch.unreadable == samples


def test_reader_processes_change_nothing(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.training.data._cpus", lambda: 2)
    write_parquet(parquet / "train.parquet", [b"torn" if i == 5 else encoded(picture(i)) for i in range(12)], [0] * 12)
    dataset = opened(parquet, flip=True)
    sampler = StepSampler(len(dataset), 5, 3, 0, 1, 2, 8)
    here, there = (list(loader(dataset, sampler, workers)) for workers in (0, 2))
    assert len(here) == len(there) == 6
    assert sum(len(batch.unreadable) for batch in here) > 0
    for one, two in zip(here, there, strict=True):
        assert isinstance(two, Batch)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert one.unreadable == two.unreadable


def test_loader_takes_no_more_processes_than_cpus_and_no_global_randomness(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("var.training.data._cpus", lambda: 1)
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
