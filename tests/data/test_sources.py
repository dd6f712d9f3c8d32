"""Where images come from: folders, tables and hub datasets, labeled, chosen, held out or refused."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from huggingface_hub import constants
from PIL import Image
from tiny_data import SIDE, encoded, opened, picture, sample, write_folder, write_parquet
from tiny_hub import use

from var.data.config import DataConfig
from var.data.dataset import ImageDataset
from var.training.estimate.images import find_images
from var.utils.images import resize_and_crop, to_tensor


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


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


def test_hidden_files_are_no_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2, "b": 1}, "train")
    for hidden in ("train/a/._0.jpg", "train/.trash/0.jpg"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"no image")
    assert [sample(opened(tmp_path), i).label for i in range(3)] == [0, 0, 1]
    assert len(opened(tmp_path)) == 3


def test_the_index_of_a_folder_of_shards_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards #1"
    folder.mkdir()
    (folder / "train-0000.tar").touch()
    with refused("neither a train folder", f"list its shards by `var data index '{folder}'`"):
        opened(folder)
    (folder / "index.json").write_text("{}")
    with refused("neither a train folder", f"so give data.source='{folder / 'index.json'}'"):
        opened(folder)


def test_a_pipe_named_like_an_image_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, {"a": 2}, "train")
    os.mkfifo(tmp_path / "train/a/pipe.png")
    assert len(opened(tmp_path)) == 2
    assert f"{tmp_path / 'train'}: 2 images found; passed over: 1 no regular file" in caplog.messages


def test_class_folders_with_numbers_are_labels(tmp_path: Path) -> None:
    write_folder(tmp_path, {"2": 1, "10": 1, "207": 1}, "train")
    (tmp_path / "classes.json").write_text('{"207": {"wnid": "n02099601", "name": "golden retriever"}}')
    train = opened(tmp_path)
    assert sorted(train.labels.tolist()) == [2, 10, 207]
    assert train.num_classes == 208
    assert train.class_names == {207: "golden retriever"}


def test_class_folders_with_ids_are_numbered_from_0_and_named_by_them(tmp_path: Path) -> None:
    write_folder(tmp_path, {"20240101": 1, "20231231": 1}, "train")
    train = opened(tmp_path)
    assert (train.labels.tolist(), train.num_classes) == ([0, 1], 2)
    assert train.class_names == {0: "20231231", 1: "20240101"}
    (tmp_path / "classes.json").write_text('{"20240101": {"name": "new year"}, "7": {"name": "other"}}')
    assert opened(tmp_path).class_names == {0: "20231231", 1: "new year"}


def test_names_of_class_folders_are_valid_unicode(tmp_path: Path) -> None:
    write_folder(tmp_path, {os.fsdecode(b"caf\xe9"): 1, "żółw 🐢": 1, "zoo": 1}, "train")
    assert opened(tmp_path).class_names == {0: "caf\\xe9", 1: "zoo", 2: "żółw 🐢"}


@pytest.mark.parametrize("label", [10**12, 2**63 - 1, 2**63, 40_000])
def test_labels_of_tables_that_are_ids_are_refused(tmp_path: Path, label: int) -> None:
    labels = pa.array([0, label], pa.uint64() if label == 2**63 else pa.int64())
    write_parquet(tmp_path / "train.parquet", [encoded(picture(i)) for i in range(2)], labels)
    with refused("data.label_column='label'", f"has label {min(label, 2**63 - 1)} for 2 classes", "from 0"):
        opened(tmp_path)
    assert "for 2 classes: labels number the classes" in str(find_images(DataConfig(source=str(tmp_path))).unknown)
    assert opened(tmp_path, label_column=None).num_classes == 1


def test_images_outside_the_class_folders_are_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a-b": 1, "a": 2}, "train")
    picture(0).save(tmp_path / "train/cover.png")
    assert opened(tmp_path).labels.tolist() == [0, 0, 1]
    opened(tmp_path, "validation", validation_fraction=0.3)
    told = f"{tmp_path / 'train'}: 1 image outside the class folders passed over"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [told]


def test_folders_that_are_not_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val", "test"):
        write_folder(tmp_path, {"a": 1, "b": 2}, split)
    (tmp_path / "notes").mkdir()
    with caplog.at_level("INFO"):
        opened(tmp_path)
        opened(tmp_path, "validation")
    assert [message for message in caplog.messages if "not used" in message] == [
        f"{tmp_path}: not used beside train: notes, test"
    ]


def test_the_folder_inside_that_would_do_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "all", {"a": 1, "b": 1}, "flowers")
    with refused(f"give {tmp_path / 'all/flowers'}, which does"):
        opened(tmp_path / "all")
    write_folder(tmp_path / "all", {"a": 1}, "birds")
    with refused("give a folder that does, the name of a hub dataset"):
        opened(tmp_path / "all")


def test_folders_without_images_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, {"a": 1, "b": 2}, "train")
    for other in ("__MACOSX/a/._0.jpg", "Empty/notes.txt"):
        (tmp_path / "train" / other).parent.mkdir(parents=True)
        (tmp_path / "train" / other).write_bytes(b"no image")
    write_folder(tmp_path, {"b": 1}, "val")
    train, validation = opened(tmp_path), opened(tmp_path, "validation")
    assert (train.labels.tolist(), train.class_names) == ([0, 1, 1], {0: "a", 1: "b"})
    assert (validation.labels.tolist(), validation.num_classes) == ([1], 2)
    assert caplog.messages.count(f"{tmp_path / 'train'}: folders without images are no classes: Empty") == 1
    (tmp_path / "flat/train/__MACOSX").mkdir(parents=True)
    picture(0).save(tmp_path / "flat/train/0.png")
    assert opened(tmp_path / "flat").num_classes == 1


@pytest.mark.parametrize(
    "below", ["train_images test_images", "trainA testB", "train2017 Validation_2017", "train/train"]
)
def test_folders_that_name_splits_are_no_classes(tmp_path: Path, below: str) -> None:
    for name in below.split():
        (tmp_path / name).mkdir(parents=True)
        picture(0).save(tmp_path / name / "0.png")
    with refused(f"holds the folders {', '.join(sorted(below.removeprefix('train/').split()))}, which name splits"):
        opened(tmp_path)
    assert opened(tmp_path / below.split()[0]).num_classes == 1


def test_classes_whose_names_are_like_those_of_splits(tmp_path: Path) -> None:
    write_folder(tmp_path, {"trainer": 1, "valley": 1, "testimony": 1}, "photos")
    assert opened(tmp_path / "photos").num_classes == 3
    write_folder(tmp_path / "vehicles", {"train": 1, "bus": 1}, "train")
    assert opened(tmp_path / "vehicles").num_classes == 2


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
    assert (found.label, found.location) == (0, str(tmp_path / "train/2.png"))
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
    return [sample(dataset, i).location for i in range(len(dataset))]


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


def test_part_of_the_training_images_is_spread_and_the_same_for_every_seed(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 8, "b": 16}, "train")
    part: dict[str, Any] = {"train_images": 6, "validation_fraction": 0.25}
    chosen = opened(tmp_path, **part)
    assert chosen.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert chosen.num_classes == 2
    assert places(chosen) == places(opened(tmp_path, seed=1, **part))
    whole = places(opened(tmp_path, validation_fraction=0.25))
    assert set(places(chosen)) < set(whole)
    assert places(opened(tmp_path, "validation", **part)) == places(
        opened(tmp_path, "validation", validation_fraction=0.25)
    )
    assert places(opened(tmp_path, train_images=100)) == places(opened(tmp_path))
    assert find_images(DataConfig(source=str(tmp_path), train_images=6)).number == 6


def test_part_of_the_training_images_in_tables_and_of_a_class(parquet: Path) -> None:
    of_two = {"train_images": 4, "classes": (3, 970)}
    assert set(opened(parquet, **of_two).labels.tolist()) <= {3, 970}
    assert find_images(DataConfig(source=str(parquet), **of_two)).number == len(opened(parquet, **of_two)) == 4


def test_nothing_is_held_out_where_there_is_a_validation_split(parquet: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(opened(parquet, validation_fraction=0.5)) == 12
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"data.validation_fraction=0.5 is not used: {parquet} has a validation split"]
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
    with refused("holds -1, which means unlabeled"):
        opened("owner/name")

    def unreachable(name: str) -> None:
        raise ConnectionError("Couldn't reach it\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with refused("'owner/name'", "(Couldn't reach it (offline)): check the name and the connection, or give a folder"):
        opened("owner/name")


def test_a_hub_that_does_not_answer_is_given_up_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would try again for half a minute, with a line each time."""
    offline = []

    def load(name: str) -> None:
        offline.append((datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise datasets.exceptions.DatasetNotFoundError("not in the cache")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        use(f"http://127.0.0.1:{closed.getsockname()[1]}", monkeypatch)
        began = time.monotonic()
        with refused("'owner/name'", "the Hugging Face hub at http://127.0.0.1", "does not answer", "give a folder"):
            opened("owner/name")
    assert time.monotonic() - began < 20
    assert offline == [(True, True)]
    assert (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == (False, False)


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


def test_of_a_single_image_none_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a.png")
    with refused("a single training image or shard", "add a validation split"):  # no other fraction would help
        opened(tmp_path, "validation", validation_fraction=0.1)


# --- layouts


def splits(source: Path, **options: Any) -> list[list[str]]:
    return [
        [place.removeprefix(f"{source}/") for place in places(opened(source, split, **options))]
        for split in ("train", "validation")
    ]


def test_unlabeled_or_labeled_test_folder_gives_way_to_what_is_held_out(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 2, "dog": 2}, "train")
    (tmp_path / "test").mkdir()
    picture(0).save(tmp_path / "test/0.jpg")
    with refused("no classes in test/", "set data.validation_fraction"):
        opened(tmp_path, "validation")
    for labeled in (False, True):
        if labeled:
            write_folder(tmp_path, {"cat": 1}, "test")
        train, validation = splits(tmp_path, validation_fraction=0.25)
        assert len(train) == 3
        assert validation[0] not in train
        assert validation[0].startswith("train/")
    write_parquet(tmp_path / "tables/train.parquet", [encoded(picture(i)) for i in range(4)], [0, 1, 0, 1])
    write_parquet(tmp_path / "tables/test.parquet", [encoded(picture(5))], [0])
    assert len(opened(tmp_path / "tables", "validation")) == 1
    assert "(train)" in places(opened(tmp_path / "tables", "validation", validation_fraction=0.25))[0]


def test_folder_of_images_or_of_class_folders_is_all_for_training(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 2, "dog": 2}, "photos")
    (tmp_path / "flat").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "flat" / f"{i}.jpg")
    for name, classes in (("photos", {0: "cat", 1: "dog"}), ("flat", {})):
        with refused("no validation folder", "set data.validation_fraction"):
            opened(tmp_path / name, "validation")
        assert opened(tmp_path / name).class_names == classes
        train, validation = splits(tmp_path / name, validation_fraction=0.25)
        assert (len(train), len(validation)) == (3, 1)


def test_split_folders_are_no_classes_in_any_case_of_letters(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 1}, "Train")
    write_folder(tmp_path, {"cat": 2}, "VAL")
    assert [len(opened(tmp_path, split)) for split in ("train", "validation")] == [1, 2]
    write_folder(tmp_path / "half", {"cat": 2}, "val")
    with refused("neither a train folder"):
        opened(tmp_path / "half")
