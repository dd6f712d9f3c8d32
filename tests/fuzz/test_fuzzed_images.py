"""Images that are damaged, of unusual kinds, or no images at all."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_fuzz import Findings, damaged, mistakes

from var.evaluation.samples.image_sets import open_image_set
from var.utils.images import open_image, resize_and_center_crop, to_rgb

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV")
EXIF = 0x0112  # orientation


def samples() -> list[tuple[str, bytes]]:
    """Small files of all formats and modes that Pillow writes, with metadata."""
    found = []
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for mode in MODES:
        image = Image.new(mode, pixels.size) if mode == "I;16" else _convert(pixels, mode)
        for suffix in ("png", "jpeg", "tiff", "webp", "gif", "bmp", "ppm"):
            exif = Image.Exif()
            exif[EXIF] = 6
            exif[0x010E] = "a description"
            file = BytesIO()
            try:
                image.save(file, format=suffix, **({"exif": exif} if suffix in ("png", "jpeg", "tiff", "webp") else {}))
            except (OSError, ValueError, KeyError, SystemError):  # that format has no such mode
                continue
            found.append((suffix, file.getvalue()))
    return found


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("LAB", "PA", "HSV"):
        return Image.new(mode, image.size)
    return image.convert(mode)


def test_images(tmp_path: Path) -> None:
    rng, findings, files = random.Random(1), Findings(), samples()
    assert len(files) > 40
    for number in range(400):
        suffix, content = files[number % len(files)]
        if number >= len(files):
            content = damaged(content, rng)
            if b"Exif" in content[:200] and number % 2:  # in its metadata
                at = content.index(b"Exif") + rng.randrange(6, 60)
                content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        file = tmp_path / f"a.{suffix}"
        file.write_bytes(content)
        findings.attempt((suffix, content), lambda file=file: resize_and_center_crop(open_image(file), 8))
        findings.attempt((suffix, content), lambda file=file: to_rgb(open_image(file)))
        if number % 4 == 0:
            findings.attempt((suffix, content), lambda: list(open_image_set(tmp_path).batches(2)))
        file.unlink()
    findings.check()


def test_names_of_images() -> None:
    findings, texts = Findings(), mistakes(8)
    for _ in range(300):
        name = next(texts)
        findings.attempt(name, lambda name=name: open_image(name))
    findings.check()
