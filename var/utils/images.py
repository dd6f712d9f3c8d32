"""Between images of any kind, square RGB ones, and tensors."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.utils.files import atomic_write

# Pillow tries all its forty formats one by one otherwise (a third of the time of a small WebP), Ghostscript among them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

IMAGE_SUFFIXES = frozenset(  # of these formats
    f".{suffix}"
    for suffix in (
        *("apng", "bmp", "gif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx"),
        *("pbm", "pfm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)

MAX_PIXELS = 2**26  # of an image that is edited, 8192 x 8192

# Of ImageNet's training images in [0, 1], as encoders of images have them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def find_images(folder: Path) -> list[str]:
    """List the image files below a folder by their paths in it ("b/1.png"), sorted; links to folders are followed.

    Hidden files and folders are passed over: the `._1.png` that some systems leave are no images.

    Raises InputError: a folder that cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES]
        found += [(Path(parent).relative_to(folder) / name).as_posix() for name in images]
    return sorted(found)


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


def open_image(file: str | Path) -> Image.Image:
    """Read an image in the size and mode that it is stored in.

    Raises InputError: no such file, not an image in one of the known formats, damaged, more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is lower
            image = Image.open(Path(file).expanduser(), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not an image in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise InputError(f"cannot read {file}: {one_line(error)}: give another image") from error
    with image:
        return load_image(image, str(file))


def load_image(image: Image.Image, name: str = "the image") -> Image.Image:
    """The image with its pixels read, which Pillow puts off until they are needed.

    Raises InputError: not a PIL image, damaged, without pixels, or more than MAX_PIXELS.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"{name} is of type {type(image).__name__}: give a PIL image, such as PIL.Image.open reads")
    if not image.width * image.height:
        raise InputError(f"{name} has {image.width}x{image.height} px: give an image that has pixels")
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height} px"
        raise InputError(f"{name} has {size}: at most {MAX_PIXELS:,} pixels are read; reduce it first")
    try:
        image.load()
    except Exception as error:  # as above
        raise InputError(f"cannot read {name}: {one_line(error)}: give another image") from error
    return image


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any image as Pillow opens it -> RGB, upright (EXIF), 16 bits scaled to 8, transparent parts over `background`."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip to white
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("RGB")
    image.info.pop("icc_profile", None)  # it was one for other channels
    return image


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
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InputError(
            f"images are {given}: give floating-point tensors, as var.models.aim.val_transforms or "
            "var.utils.images.resize_and_center_crop makes them of images"
        )
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
