"""Contact sheets: many images on one, enlarged to be seen, with captions in notebooks."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from var.utils.images import enlarge, image_grid

COLUMNS = 8  # at most
MOST_TILES = 64
SMALLEST_TILE = 128  # smaller images are enlarged, to be seen on a screen
LARGEST_TILE = 512  # larger images are reduced
CAPTION = 16  # height in pixels of a line below a tile


def tile(image: Image.Image) -> Image.Image:
    """Return an image at the size of a sheet's tiles: small ones enlarged, large ones reduced."""
    seen = enlarge(image, SMALLEST_TILE) if max(image.size) < SMALLEST_TILE else image.copy()
    seen.thumbnail((LARGEST_TILE, LARGEST_TILE))
    return seen


def choose_tiles(labels: Sequence[int]) -> tuple[list[int], int]:
    """Choose the images for a sheet, by their places among all, and its number of columns.

    At most MOST_TILES: all, or as many of each class, or one of each of so many classes. A row shows one class, or
    several whole ones where there are more than eight.

    Args:
        labels: of all images.
    """
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    classes = list(places)
    each = max(map(len, places.values()))
    if len(labels) > MOST_TILES:
        classes = classes[:: max(-(-len(classes) // MOST_TILES), 1)]
        each = MOST_TILES // len(classes)
        each = each // COLUMNS * COLUMNS or each
    chosen = sorted(place for label in classes for place in places[label][:each])
    in_row = min(each, COLUMNS)
    return chosen, in_row if len(classes) <= COLUMNS and each > 1 else COLUMNS // in_row * in_row


def caption_tile(image: Image.Image, text: str) -> Image.Image:
    """Return the image with a line of text below it, cut to its width."""
    font = ImageFont.load_default(CAPTION * 0.7)
    text = text.replace(" ", "  ", 1)  # between label and name: a single one of this font is hardly seen after a digit
    while text and font.getlength(text) > image.width - 4:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    result = Image.new("RGB", (image.width, image.height + CAPTION), "white")
    result.paste(image)
    ImageDraw.Draw(result).text((2, image.height + 1), text, fill="black", font=font)
    return result


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG file's bytes, as notebooks take it."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def sheet(images: Sequence[Image.Image], columns: int = COLUMNS, captions: Sequence[str] = ()) -> Image.Image:
    """Return images of one size side by side, with or without captions."""
    if captions:
        images = list(map(caption_tile, images, captions))
    return image_grid(images, columns)
