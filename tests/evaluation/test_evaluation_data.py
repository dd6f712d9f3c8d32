"""Which images a model is measured on: the crop, the choice, what cannot be read, and mistakes in one line."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image
from tiny import TOKENIZER, image_folder, picture, write_recipe

from var.data.config import DataConfig
from var.data.dataset import ImageDataset, open_dataset
from var.evaluation.data import count_requested, image_batches, open_images, read_source, restrict_to_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight training and six validation images of two classes, 16 px."""
    return image_folder(tmp_path / "images")


def everything(dataset: ImageDataset, batch_size: int, limit: int | None = None) -> tuple[torch.Tensor, list[int]]:
    batches = list(image_batches(dataset, batch_size, limit))
    return torch.cat([images for images, _ in batches]), [label for _, labels in batches for label in labels]


def test_images_are_those_of_a_trainings_validation(folder: Path) -> None:
    images, labels = everything(open_images(str(folder), "validation", 8), 4)
    theirs = open_dataset(DataConfig(source=str(folder)), "validation", 8, seed=3)
    assert labels == [0, 0, 0, 1, 1, 1]
    assert images.shape == (6, 3, 8, 8)
    assert torch.equal(images, torch.stack([theirs[0, i].content for i in range(6)]))


def test_the_crop_is_pillows(folder: Path) -> None:
    images, _ = everything(open_images(str(folder), "validation", 8), 1)
    with Image.open(folder / "val" / "bar" / "4.png") as image:
        whole = np.asarray(image.resize((9, 9), Image.Resampling.LANCZOS), dtype=np.float64)
    ours = (images[0].permute(1, 2, 0).double().numpy() + 1) * 127.5
    # There is one pixel more than the crop takes: it is cut off at the left and at the top.
    assert np.abs(whole[1:9, 1:9] - ours).max() < 1e-3


def test_training_images_are_not_augmented(folder: Path) -> None:
    recipe = DataConfig(source=str(folder), flip=True)
    dataset = open_images(recipe, "train", 8)
    first, labels = everything(dataset, 3)
    again, _ = everything(dataset, 8)
    assert len(labels) == 8
    assert torch.equal(first, again)
    assert torch.equal(first, everything(open_images(str(folder), "train", 8), 8)[0])


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_any_batch_size_gives_the_same_images(folder: Path, batch_size: int) -> None:
    dataset = open_images(str(folder), "validation", 8)
    sizes = [len(labels) for _, labels in image_batches(dataset, batch_size)]
    assert sum(sizes) == 6
    assert all(size == batch_size for size in sizes[:-1])
    assert torch.equal(everything(dataset, batch_size)[0], everything(dataset, 6)[0])


def test_a_limit_spreads_over_the_split(folder: Path) -> None:
    dataset = open_images(str(folder), "validation", 8)
    whole, _ = everything(dataset, 6)
    some, labels = everything(dataset, 2, limit=3)
    assert labels == [0, 0, 1]
    assert torch.equal(some, whole[[0, 2, 4]])
    assert [count_requested(dataset, limit) for limit in (None, 3, 6, 100)] == [6, 3, 6, 6]
    assert len(everything(dataset, 4, limit=100)[1]) == 6


def test_classes_keep_their_numbers(folder: Path) -> None:
    dataset = open_images(str(folder), "validation", 8, classes=[1])
    assert everything(dataset, 4)[1] == [1, 1, 1]
    assert dataset.class_names == {1: "cup"}
    assert everything(restrict_to_labels(open_images(str(folder), "validation", 8), {1, 7}), 4)[1] == [1, 1, 1]


def test_what_cannot_be_read_is_left_out_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bar/5.png", "cup/4.png"):
        (folder / "val" / name).write_bytes(b"no image")
    dataset = open_images(str(folder), "validation", 8)
    with caplog.at_level(logging.WARNING):
        images, labels = everything(dataset, 1)
    assert labels == [0, 0, 1, 1]
    assert len(images) == 4
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    *named, counted = warnings
    assert [line.split(" (")[0] for line in named] == [f"cannot read {folder}/val/{n}.png" for n in ("bar/5", "cup/4")]
    assert counted == "2 of 6 images could not be read and are skipped"


def test_classes_are_chosen_by_name_too(folder: Path, tmp_path: Path) -> None:
    assert open_images(str(folder), "validation", 8, classes=["Cup"]).class_names == {1: "cup"}
    assert open_images(str(folder), "validation", 8, classes=["1", 0]).class_names == {0: "bar", 1: "cup"}
    with refused("data.classes", "has no class 'cap', but 0 bar, 1 cup"):
        open_images(str(folder), "validation", 8, classes=["cap"])
    recipe = str(write_recipe(tmp_path / "r.yaml", TOKENIZER, data={"source": str(folder), "classes": ["cup"]}))
    assert open_images(recipe, "train", 8).class_names == {1: "cup"}
    for split in ("train", "val"):  # a number that is a name means the class of that name
        (folder / split / "bar").rename(folder / split / "1")
    assert set(open_images(str(folder), "validation", 8, classes=["1"]).labels.tolist()) == {0}


def test_nothing_readable_is_refused(folder: Path) -> None:
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    with refused("none of the images could be read"):
        everything(open_images(str(folder), "validation", 8), 4)


def test_a_recipe_says_all_of_its_data(folder: Path, tmp_path: Path) -> None:
    data = {"source": str(folder), "resize": 1.0, "classes": [1]}
    recipe = str(write_recipe(tmp_path / "recipe.yaml", TOKENIZER, data=data))
    dataset = open_images(recipe, "validation", 8)
    assert everything(dataset, 4)[1] == [1, 1, 1]
    assert dataset.short_side == 8
    assert everything(open_images(read_source(recipe, ["data.classes=[0]"]), "validation", 8), 4)[1] == [0, 0, 0]
    assert everything(open_images(recipe, "validation", 8, classes=[0]), 4)[1] == [0, 0, 0]


def test_a_part_held_out_is_the_one_that_training_holds_out(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", train=8, validation=1)
    (folder / "val").rename(tmp_path / "elsewhere")
    recipe = str(write_recipe(tmp_path / "r.yaml", TOKENIZER, data={"source": "x", "validation_fraction": 0.25}))
    config = read_source(recipe, [f"data.source={folder}"])
    theirs = open_dataset(config, "validation", 8, seed=9)
    ours = open_images(config, "validation", 8)
    assert len(ours) == 4
    assert np.array_equal(ours.listing.rows, theirs.listing.rows)


def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with refused("nowhere", "does not exist"):
        open_images(str(tmp_path / "nowhere"), "validation", 8)
    with refused("no validation images of data.classes=[5]"):
        open_images(str(folder), "validation", 8, classes=[5])
    with refused("labels 0 to 1", "but the model knows 7"):
        restrict_to_labels(open_images(str(folder), "validation", 8), [7])
    with refused("'data.resize=1'", "give a recipe"):
        read_source(str(folder), ["data.resize=1"])
    with refused("missing.yaml", "does not exist"):
        read_source("missing.yaml")
    dataset = open_images(str(folder), "validation", 8)
    for batch_size, limit, part in ((0, None, "batch=0"), (4, 0, "num=0"), (4, -1, "num=-1")):
        with refused(part, "must be at least 1"):
            image_batches(dataset, batch_size, limit)


def test_labels_are_those_of_the_folders_classes_json(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps({"0": {"name": "a bar"}, "1": {"name": "a cup"}}))
    assert open_images(str(folder), "validation", 8).class_names == {0: "a bar", 1: "a cup"}


def test_without_a_validation_split_the_remedy_is_one_that_works(tmp_path: Path) -> None:
    """Not data.validation_fraction=..., which a folder given as the source does not take."""
    picture(0, 0).save((tmp_path / "train").mkdir() or tmp_path / "train" / "a.png")
    with refused("has no validation images: take the other split, or give a recipe (.yaml) as the source"):
        open_images(str(tmp_path), "validation", 8)
