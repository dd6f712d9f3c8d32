"""What becomes of an image, of one that is damaged, and what stands in for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import SIDE, encoded, of_one_image, opened, picture, sample, with_torn, write_folder, write_parquet

from var.data.dataset import SUBSTITUTES, ImageDataset, Unreadable
from var.data.loader import StepSampler, loader
from var.data.order import substitute
from var.utils.images import resize_and_crop, to_rgb

# --- what becomes of an image


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
        (b"no image", "not an image in one of the formats JPEG, PNG"),
        (b"<html>404</html>", "it is a web page"),
        (b"", "it is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "it is a pointer of Git LFS"),
        (None, "0.png"),
    ],
    ids=["JPEG", "PNG", "flipped-bytes", "WebP", "text", "html", "empty", "pointer", "missing"],
)
def test_damaged_image_is_named_and_not_raised(tmp_path: Path, data: bytes | None, reason: str) -> None:
    found = of_one_image(tmp_path, data)[0, 0]
    assert isinstance(found, Unreadable)
    assert found.index == 0
    assert found.location == f"row 0 of {tmp_path} (validation) (0.png)"
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
    assert found.location == str(tmp_path / "val/a/1.jpg")
    (tmp_path / "val/a/0.jpg").unlink()
    gone = dataset[0, 0]
    assert isinstance(gone, Unreadable)
    assert gone.location == str(tmp_path / "val/a/0.jpg")


# --- what stands in for it in training


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
            assert part.locations == whole.locations[2 * micro + rank :: 4]


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
