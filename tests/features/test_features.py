"""Features files: what is in them, that a killed run goes on to the same bytes, and classifiers on them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import largest_difference, randomize, refused
from numpy.typing import NDArray
from PIL import Image
from tiny import environment, picture, tiny_pipeline

from var.features import extract
from var.features.classifiers import HELD_OUT, check_comparable, held_out_rows, linear, nearest_neighbors
from var.features.extract import FeatureSummary, open_source, write_features
from var.features.feature_file import FeatureTable, Pool, Settings, read_features
from var.features.images import ImageList, LabeledImage, list_folder, list_split
from var.features.sources import EncoderFeatures, load_features
from var.hub.checkpoint import save_model
from var.models.aim import AIM, AIMConfig, Encoder, EncoderConfig, val_transforms
from var.utils import files
from var.utils.classes import class_labels
from var.utils.images import resize_and_center_crop
from var.utils.locks import locked

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 3, "heads": 2}
LENGTH, PATCHES = 8, 4


def tiny_encoder(seed: int = 0) -> Encoder:
    encoder = Encoder(EncoderConfig(**SIZES))
    randomize(encoder, seed)
    return encoder.eval()


def images(folder: Path, *paths: str) -> Path:
    """A picture at each of these paths, no two the same; returns the folder."""
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        picture(i % 3, i, side=20).save(folder / path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of two classes."""
    names = ["cup/b.png", "cup/deep/er/a.jpg", "bar/2.webp", "bar/10.png", "cup/c.gif", "bar/x.JPEG", "bar/y.bmp"]
    return images(tmp_path / "images", *names)


def write(encoder: Encoder, folder: Path, out: Path, **options: Any) -> FeatureSummary:
    return write_features(
        EncoderFeatures(encoder), list_folder(folder), out, "tiny", **{"layers": [0, 2], "batch": 2} | options
    )


def column(file: Path, name: str) -> list[Any]:
    return pq.ParquetFile(file).read(columns=[name])[name].to_pylist()


def direct(encoder: Encoder, folder: Path, path: str) -> torch.Tensor:
    """(N, D): the mean over layers 0 and 2, one image alone."""
    with torch.no_grad(), Image.open(folder / path) as image:
        first, _, third = encoder.extract_features(val_transforms(16)(image)[None])
    return ((first + third) / 2)[0]


def test_rows_are_in_the_order_of_paths_with_label_and_class(folder: Path, tmp_path: Path) -> None:
    done = write(tiny_encoder(), folder, tmp_path / "f.parquet")
    assert done == FeatureSummary(features=7, length=LENGTH, unreadable=0, classes=2, computed=7)
    assert column(tmp_path / "f.parquet", "path") == [
        "bar/10.png",
        "bar/2.webp",
        "bar/x.JPEG",
        "bar/y.bmp",
        "cup/b.png",
        "cup/c.gif",
        "cup/deep/er/a.jpg",
    ]
    assert column(tmp_path / "f.parquet", "label") == [0] * 4 + [1] * 3
    assert column(tmp_path / "f.parquet", "class_name") == ["bar"] * 4 + ["cup"] * 3
    schema = pq.read_schema(tmp_path / "f.parquet")
    assert schema.field("feature").type == pa.list_(pa.float32(), LENGTH)
    assert not (tmp_path / "f.parquet.parts").exists()


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_features_are_those_of_the_encoder(folder: Path, tmp_path: Path, pool: Pool) -> None:
    encoder = tiny_encoder()
    write(encoder, folder, tmp_path / "f.parquet", pool=pool, batch=3)
    found = read_features(tmp_path / "f.parquet")
    assert found.values.shape == (7, LENGTH * (PATCHES if pool == "none" else 1))
    for path, values in zip(column(tmp_path / "f.parquet", "path"), found.values, strict=True):
        patches = direct(encoder, folder, path)
        expected = patches.mean(dim=0) if pool == "mean" else patches.flatten()
        assert largest_difference(torch.from_numpy(values), expected) < 1e-6


def test_the_file_tells_what_made_it(folder: Path, tmp_path: Path) -> None:
    write(tiny_encoder(), folder, tmp_path / "f.parquet")
    told = json.loads(pq.read_schema(tmp_path / "f.parquet").metadata[b"var.features"])
    expected = {"model": "tiny", "layers": [0, 2], "pool": "mean", "image_size": 16, "patches": 4, "width": 8}
    assert {name: told[name] for name in expected} == expected
    assert (told["dtype"], told["images"], told["format"]) == ("float32", 7, 1)
    assert told["version"]


def test_weights_tell_models_apart_whatever_their_type(folder: Path, tmp_path: Path) -> None:
    for name, encoder in {
        "a": tiny_encoder(),
        "b": tiny_encoder().to(torch.bfloat16),
        "c": tiny_encoder(1),
    }.items():
        write(encoder, folder, tmp_path / name)
    a, b, c = (read_features(tmp_path / name).settings for name in "abc")
    assert a.weights == b.weights != c.weights
    assert (a.dtype, b.dtype) == ("float32", "bfloat16")


def test_images_without_class_folders_have_no_label(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "b.png", "a.png")
    assert write(tiny_encoder(), folder, tmp_path / "f.parquet").classes == 0
    assert column(tmp_path / "f.parquet", "path") == ["a.png", "b.png"]
    assert column(tmp_path / "f.parquet", "label") == [None, None]
    assert column(tmp_path / "f.parquet", "class_name") == [None, None]
    with refused("f.parquet: 2 of 2 images have no label", "a subfolder a class"):
        read_features(tmp_path / "f.parquet")


def test_labels_are_numbered_as_in_training(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "207/a.png", "12/a.png")
    write(tiny_encoder(), folder, tmp_path / "numbers")
    assert (column(tmp_path / "numbers", "label"), column(tmp_path / "numbers", "class_name")) == (
        [12, 207],
        [None] * 2,
    )
    folder = images(tmp_path / "others", "c/a.png", "a/a.png")
    (folder / "b").mkdir()  # without images, so no class
    write(tiny_encoder(), folder, tmp_path / "names")
    assert column(tmp_path / "names", "label") == [0, 1]
    with refused("the same number", "1 and 01"):
        class_labels(["1", "01"])


def test_hidden_files_and_other_files_are_passed_over(folder: Path, tmp_path: Path) -> None:
    images(folder, "bar/._2.png", ".thumbnails/x.png")
    (folder / "bar" / "notes.txt").write_text("no image")
    assert list_folder(folder).count == 7
    write(tiny_encoder(), folder, tmp_path / "f.parquet")
    assert set(column(tmp_path / "f.parquet", "label")) == {0, 1}  # the hidden folder is no class


def test_names_that_are_no_text(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "a.png")
    try:
        (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes text only")
    write(tiny_encoder(), folder, tmp_path / "f.parquet")
    assert column(tmp_path / "f.parquet", "path") == ["\\xff.png"]


def test_a_class_folder_of_a_split_whose_name_is_no_text(tmp_path: Path) -> None:
    try:
        folder = images(tmp_path / "images", os.fsdecode(b"train/\xff\xfe/a.png"), "train/b/b.png", "val/b/c.png")
    except OSError:
        pytest.skip("this file system takes text only")
    write_features(EncoderFeatures(tiny_encoder()), list_split(str(folder), "train"), tmp_path / "f.parquet", "tiny")
    assert sorted(column(tmp_path / "f.parquet", "class_name")) == ["\\xff\\xfe", "b"]


def test_the_output_of_a_training_stands_for_its_model(tmp_path: Path) -> None:
    save_model(tmp_path / "run" / "model", tiny_encoder())
    assert load_features(str(tmp_path / "run")).depth == SIZES["depth"]
    tiny_pipeline().save_pretrained(tmp_path / "var" / "model")
    assert load_features(str(tmp_path / "var")).networks.keys() == {"transformer", "tokenizer"}


def test_a_split_of_a_recipe_source(tmp_path: Path) -> None:
    """Parquet in the image schema: the same features as of the files, labels from the table."""
    encoder = tiny_encoder()
    folder = images(tmp_path / "images", "train/a/0.png", "train/b/1.png", "val/b/2.png")
    for split, names in {"train": ("a/0.png", "b/1.png"), "val": ("b/2.png",)}.items():
        rows = [{"bytes": (folder / split / name).read_bytes(), "path": None} for name in names]
        table = pa.table({"image": rows, "label": [40, 7][: len(rows)]})
        (tmp_path / "tables").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "tables" / f"{split}.parquet")

    def features_of(source: str, split: Any) -> FeatureTable:
        pictures = list_split(str(tmp_path / source), split)
        write_features(EncoderFeatures(encoder), pictures, tmp_path / f"{source}-{split}.parquet", "tiny")
        return read_features(tmp_path / f"{source}-{split}.parquet")

    by_files, by_table = features_of("images", "train"), features_of("tables", "train")
    assert by_files.labels.tolist() == [0, 1]
    assert by_files.class_names == {0: "a", 1: "b"}
    assert by_table.labels.tolist() == [40, 7]
    assert np.array_equal(by_files.values, by_table.values)
    assert column(tmp_path / "images-train.parquet", "path") == ["train/a/0.png", "train/b/1.png"]
    assert features_of("images", "validation").labels.tolist() == [1]  # numbered as in train/
    below = tmp_path / "below"
    write_features(EncoderFeatures(encoder), list_folder(folder / "train"), below, "tiny")
    assert np.array_equal(read_features(below).values, by_files.values)
    (tmp_path / "tables" / "train.parquet").write_bytes(b"")
    with refused("cannot be read as Parquet"):
        list_split(str(tmp_path / "tables"), "train")


def test_unreadable_images_are_told_and_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "bar" / "2.webp").write_bytes(b"no picture")
    (folder / "cup" / "b.png").write_bytes((folder / "cup" / "b.png").read_bytes()[:60])
    told: list[str] = []
    done = write(tiny_encoder(), folder, tmp_path / "f.parquet", report=told.append)
    assert (done.features, done.unreadable, done.computed) == (5, 2, 7)
    assert len(told) == 2
    assert all(line.startswith("left out: ") and "\n" not in line for line in told)
    assert "bar/2.webp is not an image" in told[0]
    assert "cup/b.png" in told[1]
    assert not {"bar/2.webp", "cup/b.png"} & set(column(tmp_path / "f.parquet", "path"))
    assert write(tiny_encoder(), folder, tmp_path / "f.parquet").unreadable == 2  # also when it is there already


def test_all_unreadable(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.*"):
        path.write_bytes(b"")
    told: list[str] = []
    with refused("none of the 7 images could be read"):
        write(tiny_encoder(), folder, tmp_path / "f.parquet", report=told.append)
    assert len(told) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]  # once repaired, they are read anew


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, run: Callable[[], object]) -> None:
    """The run, ended when so many batches went through the encoder."""
    compute, seen = extract._features, 0

    def counting(*given: Any) -> NDArray[np.float32]:
        nonlocal seen
        seen += 1
        if seen > after:
            raise KeyboardInterrupt
        return compute(*given)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "_features", counting)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "PART_IMAGES", 2)
    (folder / "bar" / "2.webp").write_bytes(b"no picture")
    encoder, whole, out = tiny_encoder(), tmp_path / "whole", tmp_path / "f.parquet"
    write(encoder, folder, whole)
    assert pq.ParquetFile(whole).num_row_groups == 4
    told: list[str] = []
    interrupted(monkeypatch, 2, lambda: write(encoder, folder, out, report=told.append))
    parts = tmp_path / "f.parquet.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["00000.parquet", "00001.parquet", "manifest.json"]
    assert not out.exists()
    assert len(told) == 1
    (parts / ".00002.parquet.new").write_bytes(b"cut off by a kill")
    steps: list[tuple[int, int]] = []
    done = write(encoder, folder, out, report=told.append, progress=lambda now, total: steps.append((now, total)))
    assert steps == [(2, 3), (3, 3)]
    assert (done.computed, done.unreadable, len(told)) == (3, 1, 1)
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_a_complete_file_needs_no_encoder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tiny_encoder(), folder, tmp_path / "f.parquet")
    before = (tmp_path / "f.parquet").read_bytes()
    foreign = tmp_path / "f.parquet.parts"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("not ours to lose")
    monkeypatch.setattr(extract, "_features", None)
    done = write(tiny_encoder(), folder, tmp_path / "f.parquet", batch=5)
    assert (done.features, done.computed) == (7, 0)
    assert (tmp_path / "f.parquet").read_bytes() == before
    assert (foreign / "mine.txt").exists()


def test_a_batch_may_change_on_the_way(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "PART_IMAGES", 2)
    encoder, out = tiny_encoder(), tmp_path / "f.parquet"
    interrupted(monkeypatch, 2, lambda: write(encoder, folder, out))
    assert write(encoder, folder, out, batch=1).computed == 3
    found = read_features(out)
    for path, values in zip(column(out, "path"), found.values, strict=True):
        assert largest_difference(torch.from_numpy(values), direct(encoder, folder, path).mean(dim=0)) < 1e-6


def begun(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> Path:
    """A file of the folder's features, or the parts of one."""
    if finished:
        write(tiny_encoder(), folder, out)
    else:
        monkeypatch.setattr(extract, "PART_IMAGES", 2)
        interrupted(monkeypatch, 1, lambda: write(tiny_encoder(), folder, out))
    return out


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "seed", "parts"),
    [
        ({"layers": [0, 1]}, 0, ("with layers=(0, 2), not (0, 1)",)),
        ({"pool": "none"}, 0, ("with pool=mean, not none",)),
        ({}, 1, ("by another model (tiny)",)),
    ],
)
def test_other_settings_do_not_mix(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
    options: dict[str, Any],
    seed: int,
    parts: tuple[str, ...],
) -> None:
    out = begun(folder, tmp_path / "f.parquet", monkeypatch, finished)
    with refused("f.parquet" if finished else "f.parquet.parts", "give another --out", *parts):
        write(tiny_encoder(seed), folder, out, **options)
    images(folder, "bar/new.png")
    with refused("was made from other images"):
        write(tiny_encoder(), folder, out)


@pytest.mark.parametrize("finished", [True, False])
def test_class_folders_without_images_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    out = begun(folder, tmp_path / "f.parquet", monkeypatch, finished)
    (folder / "aardvark").mkdir()  # before the others
    write(tiny_encoder(), folder, out)
    assert column(out, "label") == [0] * 4 + [1] * 3


def test_class_names_of_a_split_that_changed_do_not_mix(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "train/a/0.png", "train/b/1.png")
    table = pa.table({"image": [{"bytes": (folder / "train/a/0.png").read_bytes(), "path": None}] * 2, "label": [0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    before = list_split(str(tmp_path), "train").checksum
    assert list_split(str(tmp_path), "train").checksum == before
    (tmp_path / "classes.json").write_text(json.dumps({"0": {"name": "cat"}, "1": {"name": "dog"}}))
    named = list_split(str(tmp_path), "train")
    assert named.class_names == {0: "cat", 1: "dog"}
    assert named.checksum != before


def test_damaged_parts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "PART_IMAGES", 2)
    encoder, out, parts = tiny_encoder(), tmp_path / "f.parquet", tmp_path / "f.parquet.parts"
    interrupted(monkeypatch, 2, lambda: write(encoder, folder, out))
    (parts / "00001.parquet").write_bytes(b"")
    with refused("00001.parquet is damaged", "remove this file"):
        write(encoder, folder, out)
    assert not out.exists()
    (parts / "00001.parquet").unlink()
    assert write(encoder, folder, out).computed == 2
    out.unlink()
    interrupted(monkeypatch, 2, lambda: write(encoder, folder, out))
    for content in ("", "[]", "{}", '{"part_images": 2, "settings": {}}'):
        (parts / "manifest.json").write_text(content)
        with refused("manifest.json cannot be read", "remove", "to begin anew"):
            write(encoder, folder, out)
    (parts / "manifest.json").unlink()
    with refused("f.parquet.parts holds other files, such as 00000.parquet"):
        write(encoder, folder, out)


def test_parts_are_bounded_in_images_and_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for batch, most_bytes in ((2, 2**26), (2, 3 * 4 * LENGTH), (5, 1), (1000, 2**26)):
        monkeypatch.setattr(extract, "PART_BYTES", most_bytes)
        out = tmp_path / f"{batch}-{most_bytes}"
        interrupted(monkeypatch, 0, lambda out=out, batch=batch: write(tiny_encoder(), folder, out, batch=batch))
        manifest = json.loads((tmp_path / f"{out.name}.parts" / "manifest.json").read_text())
        sizes[batch, most_bytes] = manifest["part_images"]
    assert list(sizes.values()) == [256, 2, 5, 1000]


def test_features_that_are_not_finite(folder: Path, tmp_path: Path) -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.patchify.bias[0] = torch.nan  # type: ignore[index]
    with refused("the features of bar/10.png are not finite", "float32"):
        write(encoder, folder, tmp_path / "f.parquet")


def test_what_cannot_work(folder: Path, tmp_path: Path) -> None:
    encoder, out = tiny_encoder(), tmp_path / "f.parquet"
    for options, part in (
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"batch": 1.5}, "batch=1.5 must be a whole number"),
        ({"pool": "max"}, "pool='max' must be mean or none"),
    ):
        with refused(part):
            write(encoder, folder, out, **options)
    with refused("layers [3] must be different blocks in 0..2"):
        write(encoder, folder, out, layers=[3])
    with refused("the best layers are known of"):
        write(encoder, folder, out, layers="best")
    with refused("is a folder", "give the name of a file"):
        write(encoder, folder, folder)
    (tmp_path / "file").write_text("")
    with refused("cannot write", "file is a file"):
        write(encoder, folder, tmp_path / "file" / "f.parquet")
    with refused("file is not a features file: give another --out"):
        write(encoder, folder, tmp_path / "file")
    assert not out.exists()
    assert not (tmp_path / "f.parquet.parts").exists()


def test_a_disk_that_is_full(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with refused("cannot write", "manifest.json: No space left on device", "make room"):
        write(tiny_encoder(), folder, tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet.parts").exists()
    monkeypatch.undo()
    assert write(tiny_encoder(), folder, tmp_path / "f.parquet").features == 7


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with refused("nowhere does not exist"):
        list_folder(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with refused("a.txt is a file: give a folder"):
        list_folder(tmp_path / "a.txt")
    with refused("holds no image files", ".jpg"):
        list_folder(tmp_path)
    (tmp_path / "train-0.parquet").write_bytes(b"")
    with refused("holds no image files but Parquet", "--split train"):
        list_folder(tmp_path)


def test_encoders_are_opened_with_and_without_a_probe(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    save_model(tmp_path / "encoder", encoder)
    probed = AIM(AIMConfig(**SIZES, probe_layers=(1,), num_classes=2))
    probed.encoder.load_state_dict(encoder.state_dict())
    save_model(tmp_path / "probed", probed)
    pixels = torch.zeros(1, 3, 16, 16)
    (expected,) = EncoderFeatures(encoder).features(pixels, [2])
    for name in ("encoder", "probed"):
        opened = open_source(tmp_path / name, device="cpu", dtype="float32")
        assert torch.equal(opened.features(pixels, [2])[0], expected)
    half = open_source(tmp_path / "encoder", device="cpu", dtype="bfloat16")
    assert (half.device, half.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert half.features(pixels, [2])[0].dtype == torch.bfloat16
    with refused("'nowhere' is neither a folder nor a known name"):
        open_source("nowhere")
    with refused("aim-tiny", "no released weights", "train it"):
        open_source("aim-tiny")
    with refused("dtype 'float8'"):
        open_source(tmp_path / "encoder", dtype="float8")


def test_layers_of_a_folder_with_a_probe_are_the_probes(folder: Path, tmp_path: Path) -> None:
    """One rule: best or nothing, what the probe reads; last, as many last blocks; an encoder alone: the last."""
    encoder = tiny_encoder()
    save_model(tmp_path / "encoder", encoder)
    save_model(tmp_path / "probed", AIM(AIMConfig(**SIZES, probe_layers=(0, 1), num_classes=2)))
    found = {}
    for name in ("encoder", "probed"):
        source = open_source(tmp_path / name, device="cpu", dtype="float32")
        for layers in (None, "last", "best", [2, 0]):
            if (name, layers) == ("encoder", "best"):
                with refused("the best layers are known of", "take last"):
                    source.choose(layers)
                continue
            out = tmp_path / f"{name}-{layers}"
            write_features(source, list_folder(folder), out, name, layers)
            found[name, str(layers)] = read_features(out).settings.layers
    assert found == {
        ("encoder", "None"): (0, 1, 2),
        ("encoder", "last"): (0, 1, 2),
        ("encoder", "[2, 0]"): (0, 2),
        ("probed", "None"): (0, 1),
        ("probed", "last"): (1, 2),
        ("probed", "best"): (0, 1),
        ("probed", "[2, 0]"): (0, 2),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_of_a_var_are_its_hidden_states(folder: Path, tmp_path: Path, dtype: str) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    source = open_source(tmp_path / "pipeline", device="cpu", dtype=dtype)
    write_features(source, list_folder(folder), tmp_path / "f.parquet", "pipeline", [1])
    found = read_features(tmp_path / "f.parquet")
    assert (found.settings.image_size, found.settings.patches, found.settings.dtype) == (8, 21, dtype)
    with Image.open(folder / "bar/10.png") as image:
        (expected,) = load_features(str(tmp_path / "pipeline")).features(resize_and_center_crop(image, 8)[None], [1])
    tolerance = 1e-5 if dtype == "float32" else 0.05 * float(expected.abs().max())
    assert largest_difference(torch.from_numpy(found.values[0]), expected[0].mean(dim=0)) < tolerance


def test_features_of_baselines(folder: Path, tmp_path: Path) -> None:
    sizes, weights = EncoderConfig(**SIZES), set()
    for name, width in (("pixels", 3 * 8 * 8), ("untrained", 8)):
        for call in range(2):  # the same weights, whatever was drawn before
            torch.manual_seed(call)
            source = open_source(name, sizes, "cpu", "float32")
            write_features(source, list_folder(folder), tmp_path / f"{name}{call}", name)
            weights.add((name, read_features(tmp_path / f"{name}{call}").settings.weights))
            assert read_features(tmp_path / f"{name}{call}").values.shape == (7, width)
    assert len(weights) == len({fingerprint for _, fingerprint in weights}) == 2
    with Image.open(folder / "bar/10.png") as image:
        pixels = val_transforms(16)(image)
    expected = pixels.unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(1, 2)).permute(1, 2, 0).flatten()
    assert largest_difference(torch.from_numpy(read_features(tmp_path / "pixels0").values[0]), expected) < 1e-5
    with refused("model=pixels needs sizes"):
        open_source("pixels")


def made_up(values: NDArray[np.floating[Any]], labels: NDArray[np.int64], **changes: Any) -> FeatureTable:
    settings: dict[str, Any] = {
        "model": "tiny",
        "weights": "1",
        "layers": (0,),
        "pool": "mean",
        "image_size": 16,
        "patches": PATCHES,
        "width": values.shape[1],
        "dtype": "float32",
        "images": len(labels),
        "checksum": "",
        "version": "",
    }
    return FeatureTable(Settings(**(settings | changes)), values.astype(np.float32), labels, {})


def clusters(count: int, spread: float, seed: int, classes: int = 8, width: int = 16) -> FeatureTable:
    """Points around one center a class; labels are not 0, 1, 2 ..."""
    centers = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng((1, seed))
    labels = rng.integers(classes, size=count)
    return made_up(centers[labels] + spread * rng.normal(size=(count, width)), 10 * labels + 3)


def test_separable_features_are_told_apart() -> None:
    train, validation = clusters(400, 0.05, 0), clusters(100, 0.05, 1)
    assert nearest_neighbors(train, validation, k=5) == (1.0, 1.0)
    found = linear(train, validation)
    assert found.accuracy == (1.0, 1.0)
    assert (found.held_out, found.converged) == (1.0, True)


def test_random_features_say_nothing() -> None:
    rng = np.random.default_rng(0)
    train, validation = (made_up(rng.normal(size=(count, 16)), rng.integers(8, size=count)) for count in (2000, 2000))
    for accuracy in (nearest_neighbors(train, validation), linear(train, validation).accuracy):
        assert accuracy.top1 == pytest.approx(1 / 8, abs=0.03)
        assert accuracy.top5 == pytest.approx(5 / 8, abs=0.05)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_nearest_neighbors_equal_plain_numpy(k: int) -> None:
    train, validation = clusters(300, 1.2, 0), clusters(200, 1.2, 1)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.values, validation.values))
    distance = 1 - b.astype(np.float64) @ a.T.astype(np.float64)
    top1 = top5 = 0
    for row, label in zip(distance, validation.labels, strict=True):
        votes: dict[int, float] = {}
        for i in np.argsort(row)[:k]:
            votes[train.labels[i]] = votes.get(train.labels[i], 0) + 1 / row[i]
        ranked = sorted(votes, key=lambda name: -votes[name])
        top1 += label == ranked[0]
        top5 += label in ranked[:5]
    assert nearest_neighbors(train, validation, k) == pytest.approx((top1 / 200, top5 / 200), abs=1e-12)
    assert 0.2 < top1 / 200 < 0.9  # neither trivial nor hopeless
    assert top5 > top1 or k == 1  # a class without a vote is not named, even where five may be


def test_validation_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = clusters(300, 1.2, 0), clusters(50, 1.2, 1)
    whole = nearest_neighbors(train, validation), linear(train, validation)
    monkeypatch.setattr("var.features.classifiers.CHUNK", 7)
    assert (nearest_neighbors(train, validation), linear(train, validation)) == whole


def test_the_strength_is_chosen_on_what_was_held_out() -> None:
    """Few images and many numbers that say nothing: weak regularization fits them."""
    rng = np.random.default_rng(0)

    def noisy(count: int) -> FeatureTable:
        labels = rng.integers(2, size=count)
        values = rng.normal(size=(count, 200))
        values[:, :20] += 0.5 * labels[:, None]
        return made_up(values, labels)

    train, validation = noisy(400), noisy(2000)
    found = linear(train, validation)
    assert found.strength <= 0.01
    assert found.accuracy.top1 > 0.8
    assert found.accuracy.top5 == 1


def test_scale_and_offset_of_features_do_not_matter_to_the_linear_classifier() -> None:
    train, validation = clusters(400, 1.2, 0), clusters(200, 1.2, 1)
    factors = 10.0 ** np.arange(-4, 4).repeat(2)
    stretched = [x._replace(values=(x.values * factors + 3 * factors).astype(np.float32)) for x in (train, validation)]
    assert linear(*stretched).accuracy.top1 == pytest.approx(linear(train, validation).accuracy.top1, abs=0.02)


def test_a_class_that_is_held_out_whole_is_fitted_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    train = clusters(200, 0.05, 0)
    chosen = (train.labels == train.labels[0]) | (np.arange(200) % 5 == 0)
    monkeypatch.setattr("var.features.classifiers.held_out_rows", lambda labels: chosen)
    found = linear(train, train)
    assert found.held_out == np.mean(train.labels[chosen] != train.labels[0])
    assert found.accuracy.top1 == 1


def test_one_in_ten_is_held_out_of_every_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([5, 6, 9], [200, 100, 20]))
    chosen = held_out_rows(labels)
    assert chosen.sum() == 320 // HELD_OUT
    assert [int(chosen[labels == label].sum()) for label in (5, 6, 9)] == [20, 10, 2]
    assert np.array_equal(chosen, held_out_rows(labels))


def test_features_that_cannot_be_compared() -> None:
    train, validation = clusters(100, 1, 0), clusters(50, 1, 1)
    check_comparable(train, validation)

    def changed(**changes: Any) -> FeatureTable:
        return made_up(validation.values, validation.labels, **changes)

    check_comparable(train, changed(dtype="bfloat16", images=3, checksum="other"))
    with refused("others than the training features", "of other, not tiny"):
        check_comparable(train, changed(weights="2", model="other"))
    with refused("layers=(1,), not (0,)"):
        check_comparable(train, changed(layers=(1,)))
    with refused("pool=none, not mean"):
        check_comparable(train, changed(pool="none"))
    foreign = validation.labels.copy()
    foreign[:2] = 99, 4
    with refused("2 labels of the validation features have no training features: 4, 99"):
        check_comparable(train, validation._replace(labels=foreign))
    with refused("all of one class"):
        check_comparable(train._replace(labels=np.full(100, 3)), validation)
    with refused("label 3 is 'cat' in training and 'dog' in validation"):
        check_comparable(train._replace(class_names={3: "cat"}), validation._replace(class_names={3: "dog"}))
    for k in (0, 101):
        with refused(f"k={k} must be in 1..100"):
            nearest_neighbors(train, validation, k)
    few = made_up(np.eye(2), np.arange(2))
    with refused("2 training features are too few"):
        linear(few, few)


def test_files_that_hold_no_features(folder: Path, tmp_path: Path) -> None:
    with refused("nowhere does not exist"):
        read_features(tmp_path / "nowhere")
    pq.write_table(pa.table({"feature": [1.0]}), tmp_path / "other.parquet")
    (tmp_path / "text").write_text("no Parquet")
    for name in ("other.parquet", "text"):
        with refused(f"{name} is not a features file", "var features"):
            read_features(tmp_path / name)
    out = tmp_path / "f.parquet"
    write(tiny_encoder(), folder, out)
    table = pq.read_table(out)
    told = json.loads(table.schema.metadata[b"var.features"])
    for change, message in (({"format": 2}, "is of format 2"), ({"new": 1}, "is not a features file")):
        pq.write_table(table.replace_schema_metadata({b"var.features": json.dumps(told | change)}), out)
        with refused(message):
            read_features(out)
    pq.write_table(table.select(["path", "label"]), out)
    with refused("f.parquet cannot be read"):
        read_features(out)


def test_a_changed_byte_of_a_features_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    write(tiny_encoder(), folder, out)
    data = bytearray(out.read_bytes())
    data[data.index(read_features(out).values[1].tobytes()[:8])] ^= 1
    out.write_bytes(data)
    with refused("f.parquet cannot be read", "CRC", "make it anew"):
        read_features(out)


def test_a_bug_in_reading_is_no_unreadable_image(folder: Path, tmp_path: Path) -> None:
    pictures = list_folder(folder)

    def broken(i: int, side: int) -> LabeledImage:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_features(
            EncoderFeatures(tiny_encoder()),
            ImageList(pictures.count, pictures.checksum, {}, broken),
            tmp_path / "f.parquet",
            "tiny",
        )


def test_a_second_process_that_writes_the_same_features_is_refused(folder: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "f.parquet.parts"), refused("f.parquet.parts is in use by process ", "another --out"):
        write(tiny_encoder(), folder, tmp_path / "f.parquet")


def test_features_go_through_a_link_and_not_into_a_pipe(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "f.parquet").symlink_to(tmp_path / "disk" / "real.parquet")
    write(tiny_encoder(), folder, tmp_path / "f.parquet")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.parquet"]
    assert (tmp_path / "f.parquet").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with refused("pipe is a device or a pipe", "give a file"):
        write(tiny_encoder(), folder, tmp_path / "pipe")


def test_a_signal_ends_a_process_whose_readers_hang() -> None:
    """A read may hang for minutes, as on a network disk: one SIGTERM must do."""
    code = """
import time
from contextlib import closing
from var.cli.progress import stopping
from var.features.extract import _read_ahead
with stopping(), closing(_read_ahead(lambda i: (print(i, flush=True), time.sleep(600)), [range(2)])) as batches:
    next(batches)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, err.splitlines()) == (
        128 + signal.SIGTERM, ["stopped: the same command goes on with what is missing"]
    )  # fmt: skip
