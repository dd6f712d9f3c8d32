"""Finished images: found in order with their labels, read a batch at a time, and named when they cannot be read."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused
from numpy.typing import NDArray
from PIL import Image

from var.evaluation.samples.image_sets import open_image_set


def pixels(seed: int, height: int = 4, width: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def test_a_folder_is_read_at_any_depth_in_the_order_of_its_paths(tmp_path: Path) -> None:
    names = ["b/1.png", "a/z.bmp", "c.PNG", "a/deep/er/0.png"]
    for seed, name in enumerate(names):
        save(tmp_path / name, pixels(seed))
    save(tmp_path / ".hidden.png", pixels(9))
    save(tmp_path / ".cache" / "0.png", pixels(9))
    (tmp_path / "notes.txt").write_text("no image")
    images = open_image_set(tmp_path)
    assert (images.kind, images.count, images.lossy, images.labels) == ("folder", 4, 0, None)
    assert images.sizes == {(4, 4): 4}
    batches = list(images.batches(3))
    assert [batch.shape for batch in batches] == [(3, 3, 4, 4), (1, 3, 4, 4)]
    expected = [pixels(seed) for seed in (3, 1, 0, 2)]  # a/deep, a/z, b/1, c
    torch.testing.assert_close(torch.cat(batches).permute(0, 2, 3, 1), torch.from_numpy(np.stack(expected)))
    assert batches[0].dtype == torch.uint8


def test_labels_come_from_names_of_images(tmp_path: Path) -> None:
    for label, index in ((207, 1), (1, 0), (207, 0)):
        save(tmp_path / "images" / f"{label:06d}_{index:06d}.png", pixels(index))
    labels = open_image_set(tmp_path).labels
    assert labels is not None
    assert labels.tolist() == [1, 207, 207]
    assert labels.dtype == np.int64


def test_labels_come_from_subfolders_named_by_a_number(tmp_path: Path) -> None:
    folder = tmp_path / "5"  # the folder that is given names no class
    for name in ("10/a.png", "9/3_4.png"):
        save(folder / name, pixels(0))
    labels = open_image_set(folder).labels
    assert labels is not None
    assert labels.tolist() == [9, 10]
    save(folder / ("9" * 20) / "a.png", pixels(0))
    assert open_image_set(folder).labels is None  # no label has so many digits
    (folder / ("9" * 20) / "a.png").unlink()
    save(folder / "unlabeled.png", pixels(0))
    assert open_image_set(folder).labels is None


def test_labeled_images_come_in_rounds_of_one_of_every_class(tmp_path: Path) -> None:
    """So that every part of the whole shows all classes, to which the Inception Score is bounded."""
    names = ["7/a.png", "7/b.png", "7/c.png", "2/x.png", "2/y.png"]
    for seed, name in enumerate(names):
        save(tmp_path / name, pixels(seed))
    images = open_image_set(tmp_path)
    assert images.labels is not None
    assert images.labels.tolist() == [2, 7, 2, 7, 7]
    expected = [pixels(seed) for seed in (3, 0, 4, 1, 2)]
    found = torch.cat(list(images.batches(2))).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)))


def test_sizes_are_counted_and_grouped_in_order(tmp_path: Path) -> None:
    shapes = [(4, 4), (4, 4), (2, 6), (4, 4)]
    for index, (height, width) in enumerate(shapes):
        save(tmp_path / f"{index}.png", pixels(index, height, width))
    images = open_image_set(tmp_path)
    assert images.sizes == {(4, 4): 3, (2, 6): 1}
    assert [tuple(batch.shape) for batch in images.batches(8)] == [(2, 3, 4, 4), (1, 3, 2, 6), (1, 3, 4, 4)]


def test_lossy_images_are_counted_by_what_they_are_and_turned_upright(tmp_path: Path) -> None:
    save(tmp_path / "0.png", pixels(0, 8, 16), format="JPEG", exif=exif(6))  # a quarter turn
    save(tmp_path / "1.png", pixels(1, 16, 8))
    images = open_image_set(tmp_path)
    assert images.lossy == 1
    assert images.sizes == {(16, 8): 2}
    assert [tuple(batch.shape) for batch in images.batches(2)] == [(2, 3, 16, 8)]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def test_an_orientation_stored_as_text_ends_no_evaluation(tmp_path: Path) -> None:
    text = struct.pack("<HHI4s", 0x0112, 2, 2, b"6")  # a single entry, of type ASCII
    save(tmp_path / "0.jpg", pixels(0, 8, 16), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + text + bytes(4))
    images = open_image_set(tmp_path)
    assert images.sizes == {(8, 16): 1}
    assert [tuple(batch.shape) for batch in images.batches(1)] == [(1, 3, 8, 16)]


def test_sheets_that_sampling_writes_are_not_scored(tmp_path: Path) -> None:
    for name in ("207_0.png", "207_1.png", "grid.png", "growth.gif", "207_0_scale0.png"):
        save(tmp_path / name, pixels(0))
    images = open_image_set(tmp_path)
    assert (images.count, images.labels.tolist()) == (2, [207, 207])


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    save(tmp_path / "0.png", np.full((2, 2), 100, np.uint8))
    save(tmp_path / "1.png", np.dstack([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)]))
    (batch,) = open_image_set(tmp_path).batches(2)
    assert batch[0].unique().tolist() == [100]
    assert batch[1].unique().tolist() == [255]  # transparent


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", pixels(0, 32, 32))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    images = open_image_set(tmp_path)  # its header is fine
    with refused(str(tmp_path / "cut.png")):
        list(images.batches(2))
    (tmp_path / "cut.png").write_bytes(b"no image")
    with refused(str(tmp_path / "cut.png"), "replace or remove it"):
        open_image_set(tmp_path)


def test_an_npz_is_read_with_its_labels(tmp_path: Path) -> None:
    content = np.stack([pixels(seed, 4, 6) for seed in range(5)])
    np.savez(tmp_path / "set.npz", content, np.arange(5, dtype=np.int32))
    images = open_image_set(tmp_path / "set.npz")
    assert (images.kind, images.count, images.lossy) == ("npz", 5, 0)
    assert images.sizes == {(4, 6): 5}
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3, 4]
    for _ in range(2):  # it can be read again
        batches = list(images.batches(2))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), content)


def test_an_npz_needs_no_labels_but_refuses_wrong_ones(tmp_path: Path) -> None:
    images = np.stack([pixels(seed) for seed in range(3)])
    np.savez_compressed(tmp_path / "set.npz", images)
    assert open_image_set(tmp_path / "set.npz").labels is None
    for wrong in (np.arange(2), np.zeros(3), np.zeros((3, 2), np.int64)):
        np.savez(tmp_path / "wrong.npz", images, wrong)
        with refused("arr_1", "one integer per image, 3"):
            open_image_set(tmp_path / "wrong.npz")


def test_what_is_no_set_of_images_is_refused(tmp_path: Path) -> None:
    with refused(str(tmp_path), "no images", ".png"):
        open_image_set(tmp_path)
    with refused("none.npz", "does not exist"):
        open_image_set(tmp_path / "none.npz")
    save(tmp_path / "0.png", pixels(0))
    with refused("batch=0", "at least 1"):
        list(open_image_set(tmp_path).batches(0))


@pytest.mark.parametrize("count", [1, 7])
def test_only_a_batch_is_read_at_a_time(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from var.evaluation.samples import image_sets

    for index in range(8):
        save(tmp_path / f"{index}.png", pixels(index))
    read: list[str] = []
    opening = image_sets.open_image
    monkeypatch.setattr(image_sets, "open_image", lambda file: (read.append(file.name), opening(file))[1])
    next(iter(open_image_set(tmp_path).batches(count)))
    assert len(read) == count
