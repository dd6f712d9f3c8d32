"""Between images of any kind, square RGB ones, and tensors."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.utils.contents import HEAD, find_substitute
from var.utils.files import atomic_write
from var.utils.image_files import FORMATS
from var.utils.paths import check_regular, to_path

MAX_PIXELS = 2**26  # of an image that is edited, 8192 x 8192

VAR_RESIZE = 1.125  # as VAR is trained: short side of an image before the crop over the side of the crop

# Of ImageNet's training images in [0, 1], as encoders of images have them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> uint8; values are rounded to the nearest of 256."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> B RGB images; values are rounded to the nearest of 256."""
    pixels = rearrange(to_uint8(images), "b c h w -> b h w c").cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def open_image(file: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image in the size and mode that it is stored in.

    Raises InputError: no such file, no regular one, not an image in one of the known formats, damaged, more than
    max_pixels.
    """
    path = to_path(file, "image")
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is lower
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        with path.open("rb") as opened:
            if substitute := find_substitute(opened.read(HEAD)):
                raise InputError(f"{file} is no image: {substitute}") from error
        raise InputError(
            f"{file} is not an image in one of the formats {', '.join(FORMATS)}, or its kind of pixels is not read"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise InputError(f"cannot read {file}: {one_line(error)}: give another image") from error
    with image:
        return load_image(image, str(file), max_pixels)


def load_image(image: Image.Image, name: str = "the image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image with its pixels read, which Pillow puts off until they are needed.

    Raises InputError: not a PIL image, damaged, without pixels, or more than max_pixels.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"{name} is of type {type(image).__name__}: give a PIL image, such as PIL.Image.open reads")
    if not image.width * image.height:
        raise InputError(f"{name} has {image.width}x{image.height} px: give an image that has pixels")
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height} px"
        raise InputError(f"{name} has {size}: at most {max_pixels:,} pixels are read; reduce it first")
    try:
        image.load()
    except Exception as error:  # as above
        raise InputError(f"cannot read {name}: {one_line(error)}: give another image") from error
    return image


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any image as Pillow opens it -> RGB, upright, 8 bits, transparent parts over `background`.

    - Upright by the EXIF orientation. One that is damaged, or none of the numbers 1 to 8, is not applied.
    - Depth: 16-bit (or, in TIFF, 12-bit) gray is scaled to 8 bits, of 16-bit colors Pillow reads the upper 8. In
      floating-point images 0 is black and 1 is white, or 255 where any value is above 1, as in Pillow's own; others are
      refused. So are 32-bit and signed integers, for nothing says which of their values is white.
    - Colors: CMYK, YCbCr and the like by Pillow's formulas. Pixels of RGB, with or without alpha, stay as they are, and
      so does a color profile of RGB; a profile of other channels is dropped.

    Raises InputError: pixels whose white is unknown; it names the image's file, where Pillow knows that.
    """
    file = getattr(image, "filename", "")
    image = _turn_upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F" or _is_signed(image):
        try:
            image = _to_8_bits(image)
        except InputError as error:
            raise InputError(f"{os.fsdecode(file)}: {error}" if file else str(error)) from None
    if has_transparency(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("RGB")
    image.info.pop("icc_profile", None)
    if isinstance(profile, bytes) and profile[16:20] == b"RGB ":  # the header's field of its channels
        image.info["icc_profile"] = profile
    return image


def has_transparency(image: Image.Image) -> bool:
    """Return whether an image has an alpha channel or transparent colors."""
    alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return alpha or (image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, where there is none, it is damaged or no such number.

    Raises what Pillow does for damaged pixels.
    """
    image.load()  # getexif would do so for a PNG, and its error must not be taken for one of the metadata
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises nearly anything on damaged metadata, without which the pixels are as good
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _turn_upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(exif_orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # the result must not be turned again
        image.info.pop(key, None)
    return image


_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


def _tiff_tag(image: Image.Image, tag: int) -> object:
    """Return the first value of a tag of a TIFF file; None: no TIFF, or no such tag."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _is_signed(image: Image.Image) -> bool:
    return _tiff_tag(image, _SAMPLE_FORMAT) == 2


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale gray pixels of another depth. Raises InputError: which value is white is unknown."""
    pixels, bits = np.asarray(image), _tiff_tag(image, _BITS)
    if image.mode == "F":
        low, high = pixels.min(), pixels.max()
        fraction = high <= 2  # resizing overshoots white
        pixels = (pixels * (255 if fraction else 1)).round()
        if not (pixels.min() >= 0 and (fraction or (high >= 16 and pixels.max() <= 255))):  # NaN compares as neither
            raise InputError(
                f"floating-point pixels from {low:g} to {high:g}: 0 is black, and white is 1 where none is above 2, "
                "255 where the largest is in 16..255; scale them to 0..1, or save the image with 8 or 16 bits"
            )
    elif image.mode.startswith("I;16") and not _is_signed(image):
        pixels = pixels / ((2**bits - 1) / 255 if isinstance(bits, int) and 8 < bits < 16 else 257)
    elif image.mode == "I" and image.format in ("PPM", "PNG"):  # 16 bits; Pillow has scaled a PGM's own maximum to them
        pixels = pixels / 257
    elif pixels.any():  # what is all 0 is black in any case
        raise InputError(
            f"pixels of {'signed' if _is_signed(image) else '32-bit'} integers, of which nothing says which one is "
            "white: save the image with 8 or 16 bits"
        )
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - pixels if _tiff_tag(image, _PHOTOMETRIC) == 0 else pixels)


def resize_and_crop(
    image: Image.Image, short_side: int, side: int, at: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """Resize the short side (Lanczos), then crop a square: `at` (0, 0) is top left, (1, 1) bottom right.

    Only the pixels of the crop are computed; they equal those of resizing the whole image first.
    """
    scale = min(image.size) / short_side
    room = [round(length / scale) - side for length in image.size]
    left, top = (min(int(where * (free + 1)), free) for where, free in zip(at, room, strict=True))
    ratio = [length / (free + side) for length, free in zip(image.size, room, strict=True)]
    right, bottom = (min((start + side) * r, n) for start, r, n in zip((left, top), ratio, image.size, strict=True))
    box = (left * ratio[0], top * ratio[1], right, bottom)  # rounding must not carry it over the edge: hence the min
    return image.resize((side, side), Image.Resampling.LANCZOS, box=box)


def resize_and_center_crop(image: Image.Image, side: int) -> Tensor:
    """An image of any size and mode -> (3, side, side) float32 in [-1, 1], as models are shown it.

    The short side becomes 256 / 224 of the side (Lanczos), and the square in the center is kept.

    Raises InputError: not a PIL image, or one that cannot be read.
    """
    return to_tensor(resize_and_crop(to_rgb(load_image(image)), round(side * 256 / 224), side))


def check_images(images: object, side: int) -> None:
    """Raise InputError unless these are floating-point numbers of shape (B, 3, side, side)."""
    needed = "floating-point tensors, as var.models.aim.val_transforms or var.utils.images.resize_and_center_crop makes"
    check_arrays(images, isinstance(images, Tensor) and images.is_floating_point(), f"{needed} them of images", side)


def check_arrays(images: Any, fit: bool, needed: str, side: int) -> None:
    """Raise InputError unless these are images of shape (B, 3, side, side), in arrays of any framework.

    Args:
        fit: True if they are floating-point numbers in the framework's arrays.
        needed: what to give, if not.
    """
    if not fit:
        dtype = f" of {images.dtype}" if hasattr(images, "dtype") else ""
        raise InputError(f"images are of type {type(images).__name__}{dtype}: give {needed}")
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
        raise InputError(f"images of shape {tuple(images.shape)} given, this model takes (B, 3, {side}, {side})")


def crop_and_resize(image: Image.Image, side: int, area: float, aspect: float, at: tuple[float, float]) -> Image.Image:
    """Crop a part of the image, as far as it reaches, and resize it to a square (Lanczos).

    What is wider or higher than the image is cut to it, so the part is then smaller than `area` and its aspect lies
    between `aspect` and the image's own. (torchvision draws area and aspect again, up to ten times: of images within
    its range of aspects both give parts within it.)

    Args:
        area: of the part over the image's, in (0, 1].
        aspect: width of the part over its height.
        at: (0, 0) is top left, (1, 1) bottom right.
    """
    pixels = area * image.width * image.height
    size = (min((pixels * aspect) ** 0.5, image.width), min((pixels / aspect) ** 0.5, image.height))
    left, top = (where * (length - part) for where, length, part in zip(at, image.size, size, strict=True))
    box = (left, top, min(left + size[0], image.width), min(top + size[1], image.height))
    return image.resize((side, side), Image.Resampling.LANCZOS, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def normalize(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> less ImageNet's mean, over its standard deviation."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


def denormalize(images: Tensor) -> Tensor:
    """The inverse of `normalize`."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images * std + mean) * 2 - 1


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """Enlarge by the smallest whole factor that makes the image at least that large (bicubic); larger ones stay."""
    factor = -(-side // min(image.size))
    return image if factor == 1 else ImageOps.scale(image, factor, Image.Resampling.BICUBIC)


def image_grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Images of one size side by side, row by row, white between them."""
    columns = min(columns, len(images))
    width, height = images[0].width + gap, images[0].height + gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def save_image(path: Path, image: Image.Image, frames: Sequence[Image.Image] = (), milliseconds: int = 0) -> None:
    """Write a PNG, or a GIF that continues with `frames`, atomically.

    Raises InputError: the file cannot be written.
    """
    animation = {"save_all": True, "append_images": list(frames), "duration": milliseconds, "loop": 0} if frames else {}
    with atomic_write(path, durable=False) as beside:  # thousands of small ones would wait for the disk
        image.save(beside, format=path.suffix[1:].upper(), **animation)
