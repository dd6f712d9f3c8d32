"""Between pictures and tensors."""

import os
import socket
import struct
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import largest_difference, normal, refused
from PIL import Image, ImageOps

from var.utils.image_files import FORMATS, IMAGE_SUFFIXES, class_folders, find_images
from var.utils.images import (
    MAX_PIXELS,
    check_images,
    crop_and_resize,
    enlarge,
    exif_orientation,
    from_uint8,
    image_grid,
    load_image,
    open_image,
    resize_and_center_crop,
    resize_and_crop,
    save_image,
    to_pil,
    to_rgb,
    to_tensor,
    to_uint8,
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_every_pixel_value_survives_the_round_trip() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values[::-1], values.T], axis=-1))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(np.asarray(to_pil(tensor[None])[0]), np.asarray(image))


def test_axes_are_where_they_belong() -> None:
    tensor = to_tensor(gradient(5, 3))
    assert tensor.shape == (3, 3, 5)
    assert ((tensor[0, 0] + 1) * 127.5).round().tolist() == [0, 1, 2, 3, 4]
    assert ((tensor[1, :, 0] + 1) * 127.5).round().tolist() == [0, 1, 2]
    picture = to_pil(tensor[None])[0]
    assert picture.size == (5, 3)
    assert picture.getpixel((4, 1)) == (4, 1, 0)


def test_values_are_rounded_and_clamped() -> None:
    values = (
        torch.tensor([-3.0, -1.0, -0.5 / 127.5 * 0.9, 0.9 / 127.5, 1.0, 7.0]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    )
    before = values.clone()
    assert np.asarray(to_pil(values)[0])[0, :, 0].tolist() == [0, 0, 127, 128, 255, 255]
    assert torch.equal(values, before)
    assert len(to_pil(normal(3, 3, 2, 2).bfloat16())) == 3


@pytest.mark.parametrize(("mode", "color", "expected"), [("L", 100, (100, 100, 100)), ("1", 1, (255, 255, 255))])
def test_grey_becomes_rgb(mode: str, color: int, expected: tuple[int, ...]) -> None:
    assert to_rgb(Image.new(mode, (2, 2), color)).getpixel((0, 0)) == expected


def test_transparent_parts_lie_over_white() -> None:
    clear, half = Image.new("RGBA", (1, 1), (255, 0, 0, 0)), Image.new("LA", (1, 1), (0, 128))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (1, 1), 0)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(clear.quantize()).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled() -> None:
    image = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [to_rgb(image).getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    gradient(8, 4).save(tmp_path / "turned.png", exif=exif)
    assert to_rgb(Image.open(tmp_path / "turned.png")).size == (4, 8)


def tiff(bits: int, sample_format: int, pixels: bytes, photometric: int = 1) -> BytesIO:
    """A gray TIFF of 2x1 pixels; formats: 1 unsigned, 2 signed, 3 floating-point."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 1, 279: len(pixels)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: sample_format}).items()]
    return BytesIO(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + pixels)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (tiff(32, 3, np.array([0.5, 1], "<f4").tobytes()), [128, 255]),
        (tiff(32, 3, np.array([0.0, 1], "<f4").tobytes(), photometric=0), [255, 0]),
        (tiff(32, 3, np.array([1, 255], "<f4").tobytes()), [1, 255]),
        (tiff(32, 3, np.array([0.5, 1.05], "<f4").tobytes()), [128, 255]),
        (tiff(32, 3, np.array([1, 16], "<f4").tobytes()), [1, 16]),
        (tiff(16, 1, np.array([0, 65535], "<u2").tobytes()), [0, 255]),
        (tiff(16, 1, np.array([0, 65535], "<u2").tobytes(), photometric=0), [255, 0]),
        (tiff(12, 1, b"\xff\xf8\x00"), [255, 127]),
        (BytesIO(b"P5 2 1 1000\n" + np.array([1000, 500], ">u2").tobytes()), [255, 127]),
        (BytesIO(b"Pf\n2 1\n-1.0\n" + np.array([0, 1], "<f4").tobytes()), [0, 255]),
    ],
)
def test_gray_of_any_depth_is_scaled_to_eight_bits(file: BytesIO, expected: list[int]) -> None:
    assert np.asarray(to_rgb(Image.open(file)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (tiff(32, 3, np.array([0, 256], "<f4").tobytes()), "floating-point pixels from 0 to 256"),
        (tiff(32, 3, np.array([0, 2.5], "<f4").tobytes()), "floating-point pixels from 0 to 2.5"),
        (tiff(32, 3, np.array([0, 15], "<f4").tobytes()), "floating-point pixels from 0 to 15"),
        (tiff(32, 3, np.array([-1, 1], "<f4").tobytes()), "floating-point pixels from -1 to 1"),
        (tiff(32, 3, np.array([0, np.nan], "<f4").tobytes()), "floating-point pixels from nan to nan"),
        (tiff(32, 1, np.array([0, 2**31], "<u4").tobytes()), "pixels of 32-bit integers"),
        (tiff(32, 2, np.array([-5, 255], "<i4").tobytes()), "pixels of signed integers"),
        (tiff(16, 2, np.array([-5, 255], "<i2").tobytes()), "pixels of signed integers"),
        (tiff(8, 2, np.array([-5, 5], "i1").tobytes()), "pixels of signed integers"),
    ],
)
def test_gray_whose_white_is_unknown_is_refused(file: BytesIO, told: str) -> None:
    with refused(told, "save the image with 8 or 16 bits"):
        to_rgb(Image.open(file))


def test_an_image_whose_white_is_unknown_is_named(tmp_path: Path) -> None:
    file = tmp_path / "depth.tif"
    file.write_bytes(tiff(32, 3, np.array([0, np.nan], "<f4").tobytes()).getvalue())
    with refused(f"{file}: floating-point pixels from nan to nan"):
        to_rgb(open_image(file))


def test_black_of_any_depth_is_black() -> None:
    assert (
        to_rgb(Image.new("I", (1, 1))).getpixel((0, 0)) == to_rgb(Image.new("F", (1, 1))).getpixel((0, 0)) == (0, 0, 0)
    )


def test_sixteen_bit_colors_keep_their_upper_bits() -> None:
    header = b"P6 1 1 65535\n"
    assert to_rgb(Image.open(BytesIO(header + b"\xff\xff\x80\x00\x00\x10"))).getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L"])
def test_a_color_profile_is_kept_where_the_pixels_are_its_own(mode: str) -> None:
    image = Image.new(mode, (1, 1))
    channels = {"CMYK": b"CMYK", "L": b"GRAY"}.get(mode, b"RGB ")
    image.info["icc_profile"] = profile = bytes(16) + channels + bytes(108)
    assert to_rgb(image).info.get("icc_profile") == (profile if channels == b"RGB " else None)


@pytest.mark.parametrize("value", ["6", "six", b"6", (6, 6), 6.5, 0, 9, -6, 2**31, None])
def test_an_orientation_that_is_no_number_from_1_to_8_is_not_applied(value: object) -> None:
    image = gradient(8, 4)
    image.getexif()[0x0112] = value
    assert exif_orientation(image) == 1
    assert to_rgb(image).tobytes() == image.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_an_image_as_it_is(tmp_path: Path) -> None:
    gradient(8, 4).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=100)
    assert to_rgb(open_image(tmp_path / "a.jpg")).size == (8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_images_are_those_of_pillow_and_are_not_turned_again(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(8, 4).save(tmp_path / "turned.png", exif=exif)
    upright = to_rgb(Image.open(tmp_path / "turned.png"))
    assert upright.tobytes() == ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")).tobytes()
    assert to_rgb(upright).size == upright.size


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (50, 50), (33, 90)])
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.2, 0.9)])
def test_crop_equals_resizing_the_whole_image_first(size: tuple[int, int], at: tuple[float, float]) -> None:
    image = noise(*size)
    ours = resize_and_crop(image, short_side=18, side=16, at=at)
    assert ours.size == (16, 16)
    scale = min(size) / 18
    whole = image.resize([round(length / scale) for length in size], Image.Resampling.LANCZOS)
    left, top = (min(int(a * (n - 16 + 1)), n - 16) for a, n in zip(at, whole.size, strict=True))
    expected = whole.crop((left, top, left + 16, top + 16))
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1


def test_image_of_the_right_size_stays_as_it_is() -> None:
    image = noise(16, 16)
    assert np.array_equal(np.asarray(resize_and_crop(image, 16, 16)), np.asarray(image))


@pytest.mark.parametrize(("side", "size"), [(8, (8, 8)), (9, (16, 16)), (20, (24, 24)), (4, (8, 8))])
def test_enlarge_takes_the_smallest_whole_factor(side: int, size: tuple[int, int]) -> None:
    assert enlarge(noise(8, 8), side).size == size


def test_grid_lays_pictures_out_row_by_row() -> None:
    colors = ["red", "lime", "blue"]
    sheet = image_grid([Image.new("RGB", (4, 3), color) for color in colors], columns=2, gap=2)
    assert sheet.size == (10, 8)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((9, 0)) == (0, 255, 0)
    assert sheet.getpixel((0, 7)) == (0, 0, 255)
    for white in ((4, 0), (5, 2), (0, 3), (0, 4), (6, 5), (9, 7)):
        assert sheet.getpixel(white) == (255, 255, 255)


def test_grid_is_no_wider_than_its_pictures() -> None:
    assert image_grid([Image.new("RGB", (4, 3))] * 2, columns=5, gap=1).size == (9, 3)
    assert image_grid([Image.new("RGB", (4, 3))], columns=1, gap=0).size == (4, 3)


def test_saved_png_is_the_picture(tmp_path: Path) -> None:
    image = noise(6, 5)
    save_image(tmp_path / "new" / "a.png", image)
    loaded = Image.open(tmp_path / "new" / "a.png")
    assert loaded.format == "PNG"
    assert np.array_equal(np.asarray(loaded), np.asarray(image))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_saved_gif_has_all_frames(tmp_path: Path) -> None:
    first, *others = (Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue"))
    save_image(tmp_path / "a.gif", first, frames=others, milliseconds=100)
    loaded = Image.open(tmp_path / "a.gif")
    assert (loaded.n_frames, loaded.info["duration"], loaded.info["loop"]) == (3, 100, 0)
    loaded.seek(2)
    assert largest_difference(to_tensor(loaded.convert("RGB")), to_tensor(others[1])) < 0.05


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(str(tmp_path / "file" / "a.png"), "cannot write"):
        save_image(tmp_path / "file" / "a.png", noise(2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- reading


@pytest.fixture
def no_warnings(recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing but the error is told."""
    warnings.simplefilter("always")
    yield
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG whose header claims a size, with next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("file_format", FORMATS)
def test_pictures_are_read_as_they_are(file_format: str, tmp_path: Path) -> None:
    image = noise(12, 10)
    image = image.convert("P") if file_format == "GIF" else image
    image.save(tmp_path / "a", file_format, **({"lossless": True} if file_format == "WEBP" else {}))
    read = open_image(tmp_path / "a")
    assert (read.mode, read.size) == (image.mode, (12, 10))
    (tmp_path / "a").unlink()  # all of it has been read
    if file_format not in ("JPEG", "AVIF"):
        assert np.array_equal(np.asarray(to_rgb(read)), np.asarray(image.convert("RGB")))


def test_a_file_may_be_given_as_text_and_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(2, 2).save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_image("~/a.png").size == open_image(str(tmp_path / "a.png")).size == (2, 2)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_which_way_is_up_survives_reading(file_format: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = gradient(16, 8)
    image.save(tmp_path / "turned", file_format, exif=exif, quality=100)
    upright = np.asarray(to_rgb(open_image(tmp_path / "turned"))).astype(int)
    assert upright.shape == (16, 8, 3)
    assert np.abs(upright - np.rot90(np.asarray(image), -1)).max() < 5


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("name", ["none.png", "none/none.png", "", "folder"])
def test_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with refused(str(tmp_path / name), "cannot read"):
        open_image(tmp_path / name)


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("content", [b"hello\nworld\n", b"\x89PNG", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 1000])
def test_files_that_are_no_pictures(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with refused(str(tmp_path / "a.png"), "not an image", "JPEG, PNG, WEBP"):
        open_image(tmp_path / "a.png")


def test_an_empty_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with refused(str(tmp_path / "a.png"), "empty file"):
        open_image(tmp_path / "a.png")


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures(file_format: str, share: float, tmp_path: Path) -> None:
    noise(60, 60).save(tmp_path / "a", file_format)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: int(share * len(content))])
    with refused(str(tmp_path / "a")):
        open_image(tmp_path / "a")


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("size", [(20000, 20000), (100000, 100000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_decompression_bombs(size: tuple[int, int], tmp_path: Path) -> None:
    with refused(str(tmp_path / "bomb.png"), "pixels"):
        open_image(bomb(tmp_path / "bomb.png", *size))


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("size", [(8193, 8192), (10000, 10000), (13000, 13000), (1, MAX_PIXELS + 1)])
def test_pictures_too_large_to_edit_are_refused_before_they_are_read(size: tuple[int, int], tmp_path: Path) -> None:
    with refused(str(tmp_path / "large.png"), f"{size[0]}x{size[1]} px", f"{MAX_PIXELS:,} pixels", "reduce it"):
        open_image(bomb(tmp_path / "large.png", *size))


def test_an_image_that_is_loaded(tmp_path: Path) -> None:
    image = noise(5, 4)
    assert load_image(image) is image
    with refused("the image has 8193x8192 px"):
        load_image(Image.open(bomb(tmp_path / "large.png", 8193, 8192)))
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    with Image.open(tmp_path / "b.png") as lazy, refused("cannot read the image"):
        load_image(lazy)


# --- what models are shown


def part(width: int, height: int, area: float, aspect: float, at: tuple[float, float]) -> tuple[float, ...]:
    """Left, top, width and height of what is cropped of an image, read off ramps along its sides."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    columns, rows = (
        np.asarray(crop_and_resize(Image.fromarray(ramp.astype(np.float32)), 16, area, aspect, at)) for ramp in (x, y)
    )
    across, down = columns[8], rows[:, 8]
    sizes = [(ramp[11] - ramp[4]) / 7 * 16 for ramp in (across, down)]  # without the edges, where Lanczos has no more
    left, top = ((ramp[7] + ramp[8]) / 2 - size / 2 for ramp, size in zip((across, down), sizes, strict=True))
    return left, top, *sizes


@pytest.mark.parametrize("size", [(160, 160), (200, 150), (150, 200)])
def test_a_part_of_an_image_of_usual_aspect_is_of_usual_aspect(size: tuple[int, int]) -> None:
    for area in (0.4, 0.7, 1.0):
        for aspect in (3 / 4, 1.0, 4 / 3):
            left, top, width, height = part(*size, area, aspect, (0.3, 0.8))
            assert 3 / 4 - 0.01 < width / height < 4 / 3 + 0.01
            assert width * height < (area + 0.01) * size[0] * size[1]
            assert left == pytest.approx(0.3 * (size[0] - width), abs=0.5)
            assert top == pytest.approx(0.8 * (size[1] - height), abs=0.5)
    assert part(*size, 0.5, 0.9, (0, 0))[2:] == pytest.approx(
        ((0.5 * size[0] * size[1] * 0.9) ** 0.5, (0.5 * size[0] * size[1] / 0.9) ** 0.5), rel=0.01
    )


def test_what_would_reach_over_the_edge_of_a_wide_image_is_cut_off() -> None:
    """Its aspect is then between the one asked for and the image's own, its area less."""
    _, top, width, height = part(320, 160, 0.9, 4 / 3, (0.5, 0.5))
    assert (top, height) == pytest.approx((0, 160), abs=0.5)
    assert width == pytest.approx((0.9 * 320 * 160 * 4 / 3) ** 0.5, rel=0.01)
    assert 4 / 3 < width / height < 2


def test_the_square_in_the_centre() -> None:
    picture = noise(64, 48)
    expected = to_tensor(resize_and_crop(picture, 32, 28))  # 256 / 224 of the side
    assert torch.equal(resize_and_center_crop(picture, 28), expected)
    assert resize_and_center_crop(Image.new("LA", (9, 300)), 8).shape == (3, 8, 8)
    with refused("the image is of type str"):
        resize_and_center_crop("picture.png", 8)  # type: ignore[arg-type]


def test_images_that_a_model_cannot_take() -> None:
    check_images(torch.zeros(0, 3, 8, 8, dtype=torch.float16), 8)
    for given, parts in (
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.int64),
            ("of type Tensor of torch.int64", "val_transforms", "resize_and_center_crop"),
        ),
        ([Image.new("RGB", (8, 8))], ("of type list", "val_transforms")),
        (torch.zeros(1, 3, 8, 9), ("(1, 3, 8, 9)", "(B, 3, 8, 8)")),
        (torch.zeros(3, 8, 8), ("(3, 8, 8)",)),
    ):
        with refused(*parts):
            check_images(given, 8)


# --- finding


def test_images_are_found_at_any_depth_sorted_and_without_what_is_hidden(tmp_path: Path) -> None:
    for name in (
        "b/2.PNG",
        "b/10.png",
        "a-b/1.jpeg",
        "a/1.jpg",
        "top.webp",
        "._1.png",
        ".hidden/1.png",
        "a/._1.jpg",
        "n.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert find_images(tmp_path) == ["a-b/1.jpeg", "a/1.jpg", "b/10.png", "b/2.PNG", "linked/1.jpg", "top.webp"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_what_is_found_and_what_is_passed_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.JFIF", "3.pgm", "._1.jpg", ".git/x.png", "a/b.heic", "c.heic", "LICENSE")
    (tmp_path / "a/back").symlink_to(tmp_path)
    assert find_images(tmp_path) == ["3.pgm", "a/1.jpg", "a/2.JFIF"]
    assert caplog.messages == [
        f"{tmp_path}: 3 images found; passed over: 2 .heic, 2 hidden, 1 linked to a folder above, 1 without a suffix"
    ]


def test_only_regular_files_are_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opening a pipe would wait without end; a link to an image is one, a folder may be called as one."""
    touch(tmp_path, "a/1.jpg", "x.png/2.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes/pipe.png")
    (tmp_path / "linked.png").symlink_to("a/1.jpg")
    (tmp_path / "broken.png").symlink_to("nothing")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "to_a_pipe.png").symlink_to("a/pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))  # which must be short
        assert find_images(tmp_path) == ["a/1.jpg", "linked.png", "x.png/2.png"]
    found = f"{tmp_path}: 3 images found; passed over: 3 linked to no file, 3 no regular file"
    assert caplog.messages == [found]
    assert class_folders(tmp_path) == ["a", "x.png"]
    for name in ("a/pipe.png", "to_a_pipe.png"):
        with refused(str(tmp_path / name), "a pipe, socket or device: give a regular file"):
            open_image(tmp_path / name)


def test_what_is_found_is_said_by_the_first_process_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1.jpg", "notes.txt")
    monkeypatch.setenv("RANK", "1")
    find_images(tmp_path)
    assert not caplog.messages
    monkeypatch.setenv("RANK", "0")
    find_images(tmp_path)
    find_images(tmp_path)  # the same line is not repeated
    assert len(caplog.messages) == 1


def test_sheets_of_our_own_output_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "s/207_0.png", "s/207_0_scale3.png", "s/grid.png", "s/growth.gif", "user/grid.png", "user/a.png")
    touch(tmp_path, "e/cat_inpaint_0.png", "e/cat_inpaint_mask.png", "e/cat_inpaint_sheet.png", "e/dog_sheet.png")
    assert find_images(tmp_path) == [
        "e/cat_inpaint_0.png",
        "e/dog_sheet.png",
        "s/207_0.png",
        "user/a.png",
        "user/grid.png",
    ]
    (line,) = caplog.messages
    for name in ("grid.png", "growth.gif", "cat_inpaint_mask.png", "cat_inpaint_sheet.png"):
        assert f"1 {name} (made of the images beside it)" in line
    assert "1 of a single scale" in line


def test_the_suffixes_are_those_of_the_formats() -> None:
    assert {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS} <= IMAGE_SUFFIXES


def test_eight_bits_and_back() -> None:
    integers = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(from_uint8(integers)), integers)
