"""Training data: what is read from folders and tables, in which order, and what happens to images that are damaged."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from var.data.config import DataConfig
from var.data.dataset import (
    SUBSTITUTES,
    Batch,
    ImageDataset,
    Sample,
    StepSampler,
    Unreadable,
    collate,
    epoch_order,
    loader,
    open_dataset,
    substitute,
    validation_batches,
)
from var.utils.images import resize_and_crop, to_rgb, to_tensor

SIDE = 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A smooth colored picture that no two seeds share."""
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


# --- where images come from


def test_parquet(parquet: Path) -> None:
    train, validation = opened(parquet), opened(parquet, "validation")
    assert (len(train), len(validation)) == (12, 4)
    assert train.labels.tolist() == [207, 3, 970] * 4
    assert train.num_classes == validation.num_classes == 971
    assert train.class_names == {207: "golden retriever", 3: "shark"}
    image, label, *_ = sample(train, 1)
    assert (tuple(image.shape), image.dtype, label) == ((3, SIDE, SIDE), torch.float32, 3)
    assert -1 <= image.min() < image.max() <= 1


def test_validation_image_is_the_centre_of_the_resized_one(parquet: Path) -> None:
    image = picture(50).resize((22, 18), Image.Resampling.LANCZOS).crop((3, 1, 19, 17))
    torch.testing.assert_close(sample(opened(parquet, "validation"), 0).content, to_tensor(image), atol=2 / 127, rtol=0)


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
    assert torch.equal(images[0].content, images[1].content)
    assert images[0].label == 5


def test_choice_of_classes_keeps_their_numbers(parquet: Path) -> None:
    chosen = opened(parquet, classes=(970, 3))
    assert chosen.labels.tolist() == [3, 970] * 4
    assert [sample(chosen, i).label for i in range(2)] == [3, 970]
    plain = [opened(parquet, crop="center"), opened(parquet, crop="center", classes=(970, 3))]
    assert [torch.equal(sample(plain[1], i).content, sample(plain[0], i + 1).content) for i in range(2)] == [True, True]
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


def test_test_split_serves_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([1, 0], train=2, test=1))
    assert opened("owner/name", "validation").labels.tolist() == [1]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([1, 0], train=2, test=1, val=2))
    assert opened("owner/name", "validation").labels.tolist() == [1, 0]
    write_folder(tmp_path, {"cat": 2}, "train")
    write_folder(tmp_path, {"cat": 1}, "test")
    assert len(opened(tmp_path, "validation")) == 1


# --- images without labels


def test_images_directly_below_train_are_one_class(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            picture(i).save(tmp_path / split / f"{i}.png")
    train, validation = opened(tmp_path, crop="center"), opened(tmp_path, "validation")
    assert (train.labels.tolist(), validation.labels.tolist()) == ([0, 0, 0], [0, 0])
    assert (train.num_classes, train.class_names) == (1, {})
    found = sample(train, 2)
    assert (found.label, found.place) == (0, str(tmp_path / "train/2.png"))
    assert torch.equal(found.content, to_tensor(resize_and_crop(picture(2), 18, SIDE)))


def test_label_column_null_leaves_labels_aside(tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"cat": 2, "dog": 1}, "train")
    write_parquet(tmp_path / "unlabelled/train.parquet", [encoded(picture(i)) for i in range(3)], None)
    found = [opened(source, label_column=None) for source in (tmp_path, tmp_path / "unlabelled")]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([1, 0, 2], train=3))
    for dataset in (*found, opened("owner/name", label_column=None)):
        assert dataset.labels.tolist() == [0, 0, 0]
        assert (dataset.num_classes, dataset.class_names) == (1, {})
        assert sample(dataset, 2).label == 0


# --- a part of the training images held out


def places(dataset: ImageDataset) -> list[str]:
    return [sample(dataset, i).place for i in range(len(dataset))]


def test_part_held_out_is_disjoint_complete_and_spread(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 20, "c": 10}, "train")
    every = places(opened(tmp_path))
    for fraction, count in ((0.25, 10), (0.1, 4), (0.001, 1)):
        train, validation = (opened(tmp_path, split, validation_fraction=fraction) for split in ("train", "validation"))
        assert (len(train), len(validation)) == (40 - count, count)
        assert sorted(places(train) + places(validation)) == every
        assert [sample(validation, i).label for i in range(count)] == validation.labels.tolist()
        assert validation.class_names == train.class_names == {0: "a", 1: "b", 2: "c"}
    spread = opened(tmp_path, "validation", validation_fraction=0.2).labels.tolist()
    assert spread == [0, 0, 1, 1, 1, 1, 2, 2]


def test_part_held_out_is_the_same_for_every_seed(parquet: Path) -> None:
    (parquet / "validation.parquet").unlink()
    first, second = (places(opened(parquet, "validation", seed, validation_fraction=0.3)) for seed in (0, 1))
    assert first == second
    assert len(first) == 4


def test_nothing_is_held_out_where_there_is_a_validation_split(parquet: Path) -> None:
    assert len(opened(parquet, validation_fraction=0.5)) == 12
    assert places(opened(parquet, "validation", validation_fraction=0.5)) == places(opened(parquet, "validation"))


def test_holding_out_everything_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2}, "train")
    with refused("validation_fraction=0.9 holds out 2 of 2 training images"):
        opened(tmp_path, validation_fraction=0.9)


# --- what cannot be used


def test_hub_dataset_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([1], train=1, extra=1))
    with refused("'owner/name' has no validation split, only train, extra", "or set data.validation_fraction"):
        opened("owner/name", "validation")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub_dataset([-1], train=1))
    with refused("holds -1, which means unlabelled"):
        opened("owner/name")

    def unreachable(name: str) -> None:
        raise ConnectionError("Couldn't reach it\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with refused("'owner/name'", "(Couldn't reach it (offline)): check the name and the connection, or give a folder"):
        opened("owner/name")


@pytest.mark.parametrize("source", ["no/such/folder/here", "./nowhere", "/no/where", "nowhere", "parquet"])
def test_source_that_does_not_exist(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("a path was taken for a hub name"))
    with refused(f"{source!r} does not exist: give a folder, or a hub dataset"):
        opened(source)


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with refused("is a file: give the folder"):
        opened(file)
    with refused("neither a train folder nor train*.parquet files"):
        opened(tmp_path)
    (tmp_path / "train").mkdir()
    with refused("holds no images: expected train/CLASS/*.jpg, or *.jpg"):
        opened(tmp_path)
    (tmp_path / "train/cat").mkdir()
    with refused("holds no images: expected train/CLASS/*.jpg"):
        opened(tmp_path)
    write_folder(tmp_path, {"dog": 1}, "train")
    with refused("has no validation folder: add val/CLASS/*.jpg, or set data.validation_fraction"):
        opened(tmp_path, "validation")
    write_folder(tmp_path, {"owl": 1}, "val")
    with refused(f"owl is not in {tmp_path / 'train'}"):
        opened(tmp_path, "validation")


def test_class_folders_of_the_same_number(tmp_path: Path) -> None:
    write_folder(tmp_path, {"1": 1, "01": 1}, "train")
    with refused("same number"):
        opened(tmp_path)


def test_parquet_that_cannot_be_used(tmp_path: Path, parquet: Path) -> None:
    with refused("data.image_column='img'"):
        opened(parquet, image_column="img")
    with refused("choose one of image, label, or null for unconditional training"):
        opened(parquet, label_column="kind")
    with refused("'label' of"):
        opened(parquet, image_column="label")
    with refused("struct<bytes: binary, path: string>: labels must be integers"):
        opened(parquet, label_column="image")
    with refused("no training images of [5], only of 3, 207, 970"):
        opened(parquet, classes=(3, 5))
    (parquet / "validation.parquet").unlink()
    with refused("no validation*.parquet", "data.validation_fraction"):
        opened(parquet, "validation")
    (parquet / "classes.json").write_text("[]")
    with refused("is not of the form"):
        opened(parquet)

    data = encoded(picture(0))
    write_parquet(tmp_path / "unlabelled/train.parquet", [data], None)
    with refused("data.label_column='label' is no column"):
        opened(tmp_path / "unlabelled")
    write_parquet(tmp_path / "gap/train.parquet", [data, data], [1, None])
    with refused("lacks 1 of 2 labels"):
        opened(tmp_path / "gap")
    write_parquet(tmp_path / "words/train.parquet", [data], ["dog"])
    with refused("holds string: labels must be integers"):
        opened(tmp_path / "words")
    write_parquet(tmp_path / "other/train.parquet", [data], [1])
    write_parquet(tmp_path / "other/validation.parquet", [data], [2])
    with refused("no validation images"):
        opened(tmp_path / "other", "validation", classes=(1,))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/train.parquet").write_bytes(b"PAR1 and nothing else")
    with refused("cannot be read as Parquet"):
        opened(tmp_path / "damaged")


# --- what becomes of an image


def of_one_image(folder: Path, data: bytes | None, **options: Any) -> ImageDataset:
    """As in validation: nothing stands in for an image that cannot be read."""
    for split in ("train", "validation"):
        write_parquet(folder / f"{split}.parquet", [data], [0])
    return opened(folder, "validation", **options)


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
    image = sample(of_one_image(tmp_path, data), 0).content
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
    assert found.place == f"row 0 of {tmp_path} (validation) (0.png)"
    assert reason in found.reason
    assert found.reason
    assert "\n" not in found.reason


def test_damaged_file_is_named_by_its_path(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_folder(tmp_path, {"a": 2}, split)
    (tmp_path / "val/a/1.jpg").write_bytes(b"nothing")
    dataset = opened(tmp_path, "validation")
    found = dataset[0, 1]
    assert isinstance(found, Unreadable)
    assert found.place == str(tmp_path / "val/a/1.jpg")
    (tmp_path / "val/a/0.jpg").unlink()
    gone = dataset[0, 0]
    assert isinstance(gone, Unreadable)
    assert gone.place == str(tmp_path / "val/a/0.jpg")


# --- what stands in for it in training


def with_torn(folder: Path, torn: set[int], count: int = 12, **options: Any) -> ImageDataset:
    images = [b"torn" if i in torn else encoded(picture(i)) for i in range(count)]
    write_parquet(folder / "train.parquet", images, list(range(count)))
    return opened(folder, **options)


def first_readable(dataset: ImageDataset, epoch: int, index: int, torn: set[int]) -> tuple[int, list[int]]:
    """Which image must stand in for a torn one, and those that were tried before."""
    tried = [index]
    for attempt in range(1, SUBSTITUTES + 1):
        instead = substitute(dataset.seed, epoch, index, attempt, len(dataset))
        if instead not in torn:
            return instead, tried
        tried.append(instead)
    raise AssertionError("none is left")


def test_torn_images_are_replaced_and_told(tmp_path: Path) -> None:
    torn = {2, 5, 7, 8, 9, 11}
    dataset = with_torn(tmp_path, torn)
    longest = 0
    for epoch in range(4):
        for index in range(12):
            found = sample(dataset, index, epoch)
            if index not in torn:
                assert (found.label, found.unreadable) == (index, ())
                continue
            instead, tried = first_readable(dataset, epoch, index, torn)
            assert found.label == instead
            assert [bad.index for bad in found.unreadable] == tried
            assert torch.equal(found.content, sample(dataset, instead, epoch).content)
            longest = max(longest, len(tried))
    assert longest > 1  # a torn one was replaced by a torn one


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    index=st.integers(0, 99),
    attempt=st.integers(1, SUBSTITUTES),
)
def test_substitute_is_another_of_the_same_data(seed: int, epoch: int, index: int, attempt: int) -> None:
    instead = substitute(seed, epoch, index, attempt, 100)
    assert instead == substitute(seed, epoch, index, attempt, 100)
    assert 0 <= instead < 100
    assert instead != index
    assert substitute(seed, epoch, 0, attempt, 1) == 0
    assert substitute(seed, epoch, 0, attempt, 2) == 1


def test_substitutes_depend_on_every_argument() -> None:
    keys = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    draws = [[substitute(*key, attempt, 1000) for attempt in range(1, 17)] for key in keys]
    assert len({tuple(draw) for draw in draws}) == 4
    assert all(len(set(draw)) > 12 for draw in draws)


def test_torn_images_change_nothing_about_how_a_batch_is_divided(tmp_path: Path) -> None:
    dataset = with_torn(tmp_path, {1, 4, 6}, flip=True)
    whole = next(iter(loader(dataset, StepSampler(dataset, 12, 0, 1, 0, 1), 0)))
    assert len(whole.labels) == 12
    assert len(whole.unreadable) >= 3
    for rank in range(2):
        parts = list(loader(dataset, StepSampler(dataset, 12, rank, 2, 0, 1, accumulate=2), 0))
        for micro, part in enumerate(parts):
            assert torch.equal(part.content, whole.content[2 * micro + rank :: 4])
            assert part.labels.tolist() == whole.labels[2 * micro + rank :: 4].tolist()
            assert part.places == whole.places[2 * micro + rank :: 4]


def test_validation_leaves_torn_images_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "validation.parquet", [PNG, b"torn", PNG], [0, 1, 2])
    with_torn(tmp_path, set())
    batch = next(iter(loader(opened(tmp_path, "validation"), [[(0, 0), (0, 1), (0, 2)]], 0)))
    assert batch.labels.tolist() == [0, 2]
    assert [bad.index for bad in batch.unreadable] == [1]


def test_where_no_substitute_can_be_read_the_first_is_told(tmp_path: Path) -> None:
    dataset = with_torn(tmp_path, set(range(3)), count=3)
    found = dataset[0, 1]
    assert isinstance(found, Unreadable)
    assert found.index == 1


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
        for row in [sample(dataset, 0, epoch).content[0, 0]]
    }
    assert ends == {(0, 15), (1, 16), (2, 17), (15, 0), (16, 1), (17, 2)}


def test_padding_moves_images_over_white_ground(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8) * 10, (16, 16))
    write_parquet(tmp_path / "train.parquet", [encoded(Image.fromarray(ramp))], [0])
    dataset = opened(tmp_path, resize=1.0, pad=0.125)  # two pixels on every side, at the image's own scale
    ground = [26, 26]  # white, in tenths of the ramp's steps
    row = [*ground, *range(16), *ground]
    seen = {
        tuple(((sample(dataset, 0, epoch).content[0, 8] + 1) * 12.75).round().int().tolist()) for epoch in range(80)
    }
    assert seen == {tuple(row[first : first + 16]) for first in range(5)}


def test_augmentation_follows_from_seed_epoch_and_index_alone(parquet: Path) -> None:
    dataset = opened(parquet, flip=True)
    first = sample(dataset, 3, epoch=5).content
    for index in range(12):
        sample(dataset, index)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global stream must have no influence
    assert torch.equal(sample(dataset, 3, epoch=5).content, first)
    assert torch.equal(sample(opened(parquet, flip=True), 3, epoch=5).content, first)
    other_epochs = [sample(dataset, 3, epoch).content for epoch in range(5)]
    assert not all(torch.equal(image, first) for image in other_epochs)
    other_seeds = [sample(opened(parquet, flip=True, seed=seed), 3, epoch=5).content for seed in range(1, 5)]
    assert not all(torch.equal(image, first) for image in other_seeds)


def test_each_image_has_its_own_augmentation(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [PNG] * 12, [0] * 12)
    first, *others = [sample(opened(tmp_path, flip=True), i).content for i in range(12)]
    assert not all(torch.equal(image, first) for image in others)


def test_validation_is_not_augmented(parquet: Path) -> None:
    dataset = opened(parquet, "validation", flip=True)
    assert all(torch.equal(sample(dataset, 2, epoch).content, sample(dataset, 2).content) for epoch in range(8))


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
    assert (batch.places, batch.unreadable) == (["a", "b"], bad)


@pytest.mark.parametrize("samples", [[], [Unreadable(4, "there", "torn")]])
@pytest.mark.parametrize("empty", [EMPTY, torch.empty(0, 21, dtype=torch.int64)], ids=["images", "tokens"])
def test_collate_of_nothing_readable(samples: list[Sample | Unreadable], empty: torch.Tensor) -> None:
    batch = collate(samples, empty)
    assert (batch.content.shape, batch.content.dtype) == (empty.shape, empty.dtype)
    assert (tuple(batch.labels.shape), batch.labels.dtype) == ((0,), torch.int64)
    assert (batch.places, batch.unreadable) == ([], samples)


def test_batch_of_which_nothing_could_be_read_has_the_shape_of_the_dataset(tmp_path: Path) -> None:
    batch = next(iter(loader(of_one_image(tmp_path, b"torn"), [[(0, 0)]], 0)))
    assert (tuple(batch.content.shape), batch.content.dtype) == ((0, 3, SIDE, SIDE), torch.float32)


def test_reader_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.data.dataset._cpus", lambda: 2)
    dataset = with_torn(tmp_path, {5}, flip=True)
    steps = StepSampler(dataset, 5, 0, 1, 2, 8)
    here, there = (list(loader(dataset, steps, workers)) for workers in (0, 2))
    assert len(here) == len(there) == 6
    assert sum(len(batch.unreadable) for batch in here) > 0
    for one, two in zip(here, there, strict=True):
        assert isinstance(two, Batch)
        assert torch.equal(one.content, two.content)
        assert torch.equal(one.labels, two.labels)
        assert (one.places, one.unreadable) == (two.places, two.unreadable)


def test_loader_takes_no_more_processes_than_cpus_and_no_global_randomness(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("var.data.dataset._cpus", lambda: 1)
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
