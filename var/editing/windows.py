"""Windows: the squares of an image that the model sees, which may reach over its edges. Pure functions.

Sizes are (width, height) in pixels; a mask is a boolean array (height, width), True where the image is inpainted.
"""

from collections.abc import Iterable, Iterator
from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenizer.errors import InputError, check_whole_number
from var.editing.image_masks import Mask
from var.utils.images import MAX_PIXELS

MAX_WINDOWS = 400  # that an image's extension may take, each as long to draw as an image
METHODS = ("auto", "shrink", "slide")  # of outpainting
BLURRED = 2  # times that what is drawn may be enlarged before it looks blurred
MAX_GROWTH = 8  # an extended image is at most that many times as wide and as high


class Window(NamedTuple):
    """A square of pixels; left and top may be negative."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as PIL crops."""
        return self.left, self.top, self.left + self.side, self.top + self.side

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image that it shows."""
        return slice(max(self.top, 0), self.top + self.side), slice(max(self.left, 0), self.left + self.side)


def bounding_square(size: tuple[int, int]) -> Window:
    """The smallest square with all of the image in its middle."""
    side = max(size)
    return Window((size[0] - side) // 2, (size[1] - side) // 2, side)


def window_around(mask: Mask, context: float | None = None) -> Window:
    """The square through which a mask is filled, with the mask as near to its middle as the image's edges allow.

    Args:
        mask: of the image; without any, the square is that in the image's middle.
        context: side of the square over the longer side of the mask, at least 1; None: as much as fits the image. It
            never reaches over the image's edges unless the mask is longer than the image's shorter side.

    Raises:
        InputError: a context that is no number from 1 on; a square of more than MAX_PIXELS.
    """
    if context is not None and not (isinstance(context, Real) and 1 <= context < float("inf")):
        raise InputError(f"context={context!r} must be 1 (the mask alone) or more times the mask's longer side")
    height, width = mask.shape
    box = Image.fromarray(mask).getbbox()
    left, top, right, bottom = box or (0, 0, width, height)
    extent = max(bottom - top, right - left) if box else 0
    side = max(min(width, height), extent)
    if context is not None and extent:
        side = min(side, max(round(context * extent), 1))
    _check_area(side, "reduce the image first")

    def start(low: int, high: int, length: int) -> int:
        middle = (low + high - side) // 2
        return min(max(middle, 0), length - side) if side <= length else (length - side) // 2

    return Window(start(left, right, width), start(top, bottom, height), side)


def _check_area(side: int, remedy: str) -> None:
    """Raise InputError unless a window, all of which is drawn, has at most MAX_PIXELS."""
    if side * side > MAX_PIXELS:
        raise InputError(f"a square of {side}x{side} px would be drawn, at most {MAX_PIXELS:,} pixels are: {remedy}")


def outpaint_windows(size: tuple[int, int], mask: Mask, method: str) -> list[Window]:
    """The windows that fill the room around an image.

    Args:
        size: of the image that is extended.
        mask: of the extended image.
        method: `shrink`, a window with all of it; `slide`: `slide_windows`; `auto`, shrink until the extended image is
            twice as long as the given one's shorter side or too large for one window, or where sliding would take too
            many steps.

    Raises:
        InputError: another method; more than MAX_WINDOWS to slide through; a window of more than MAX_PIXELS.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown: take {', '.join(METHODS)}")
    side, extended_size = min(size), mask.shape[::-1]
    steps = len(_grid(mask, side))
    if method == "slide" and steps > MAX_WINDOWS:
        raise InputError(f"windows of {side} px take {steps} steps, at most {MAX_WINDOWS}: use the method shrink")
    far = max(extended_size) > 2 * side or max(extended_size) ** 2 > MAX_PIXELS
    slides = method == "slide" or (method == "auto" and far and steps <= MAX_WINDOWS)
    if slides:
        return list(slide_windows(mask, side))
    _check_area(max(extended_size), "reduce the image first, or use the method slide")
    return [bounding_square(extended_size)]


def slide_windows(mask: Mask, side: int) -> Iterator[Window]:
    """Windows that fill a large mask step by step, each overlapping what is known by then.

    They stand on a grid of half their side that is tied to the known part; of those that still have something to fill
    the one that knows most comes next.

    Args:
        mask: of the image, with a part that is known.
        side: of the windows, at most that of the image.
    """
    left = mask.copy()

    def known(window: Window) -> float:
        return 1 - float(left[window.slices].mean())

    shares = {window: known(window) for window in _grid(mask, side)}
    while shares:
        best = max(shares, key=lambda window: (shares[window], window))
        yield best
        left[best.slices] = False
        near = [w for w in shares if max(abs(w.left - best.left), abs(w.top - best.top)) < side]
        shares |= {window: known(window) for window in near}
        shares = {window: share for window, share in shares.items() if share < 1}


def _grid(mask: Mask, side: int) -> list[Window]:
    """Return the windows of the grid that show something of the mask."""
    left, top, right, bottom = Image.fromarray(~mask).getbbox() or (0, 0, 0, 0)
    tops, lefts = _stops(top, bottom, mask.shape[0], side), _stops(left, right, mask.shape[1], side)
    windows = [Window(x, y, side) for y in tops for x in lefts]
    return [window for window in windows if mask[window.slices].any()]


def _stops(low: int, high: int, length: int, side: int) -> list[int]:
    """Return the starts of windows along one axis: over the known part, then outwards by half a side to the edges."""
    step = max(side // 2, 1)
    over = range(low, max(high - side, low) + 1, step)
    before = range(low, -step, -step)
    after = range(high - side, length - side + step, step)
    return sorted({min(max(start, 0), length - side) for start in (*before, *over, *after)})


def warn_if_blurred(mask: Mask, windows: Iterable[Window], side: int) -> str | None:
    """Return a sentence if what a model draws is enlarged more than BLURRED times; None: it is not.

    Args:
        mask: of the image.
        windows: through which it is filled.
        side: of the model's images.
    """
    largest = max(windows, key=lambda window: window.side)
    box, factor = Image.fromarray(crop_mask(mask, largest)).getbbox(), largest.side / side
    if box is None or factor <= BLURRED:
        return None
    width, height = (max(round((end - start) / factor), 1) for start, end in zip(box[:2], box[2:], strict=True))
    return (
        f"the part that is filled has {width}x{height} of the model's {side}x{side} pixels and is enlarged "
        f"{factor:.1f} times, so it will look blurred: a smaller image, a model of larger images or, when in-painting, "
        "a smaller context makes it sharper"
    )


def pad_canvas(image: Image.Image, left: int, right: int, top: int, bottom: int) -> tuple[Image.Image, Mask]:
    """An image with room on its sides, in pixels, and that room as a mask.

    Raises:
        InputError: no room at all, room below 0, an image that would be too large.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, room in sides.items():
        check_whole_number(name, room, 0)
    if not any(sides.values()):
        raise InputError("no extension given: left, right, top and bottom are all 0 pixels")
    width, height = image.width + left + right, image.height + top + bottom
    if width > MAX_GROWTH * image.width or height > MAX_GROWTH * image.height or width * height > MAX_PIXELS:
        raise InputError(
            f"an extension of {image.width}x{image.height} px to {width}x{height} px is too large: at most "
            f"{MAX_GROWTH} times the width and the height, and {MAX_PIXELS:,} pixels"
        )
    canvas = Image.new("RGB", (width, height), "gray")
    canvas.paste(image, (left, top))
    canvas.info = image.info  # with its color profile
    mask = np.ones((height, width), dtype=bool)
    mask[top : top + image.height, left : left + image.width] = False
    return canvas, mask


def crop_mask(pixels: Mask, window: Window) -> Mask:
    """A boolean array of an image as a window shows it: (side, side), False outside the image."""
    return np.asarray(Image.fromarray(pixels).crop(window.box))


def remove_window(mask: Mask, window: Window) -> Mask:
    """Return a copy of a mask without the part inside a window."""
    left = mask.copy()
    left[window.slices] = False
    return left


def paste(image: Image.Image, square: Image.Image, opacity: NDArray[np.float32], window: Window) -> Image.Image:
    """The image with a square of the window's side laid over it where the window is.

    Args:
        opacity: (side, side) in [0, 1]; where it is 0 the image stays as it is, bit for bit.
    """
    result = image.copy()
    result.paste(square, window.box[:2], Image.fromarray((opacity * 255).round().astype(np.uint8)))
    return result
