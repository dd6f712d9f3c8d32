"""Windows: the squares of a picture that the model sees, which may reach over its edges. Pure functions.

Sizes are (width, height) in pixels; a hole is a boolean array (height, width), True where the picture is drawn anew.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenizer.errors import InputError
from var.editing.image_masks import Hole
from var.utils.images import MAX_PIXELS

MAX_WINDOWS = 400  # that a picture's extension may take, each as long to draw as a picture
METHODS = ("auto", "shrink", "slide")  # of out-painting
MAX_GROWTH = 8  # an extended picture is at most that many times as wide and as high


class Window(NamedTuple):
    """A square of pixels; left and top may be negative."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.side, self.top + self.side


def bounding_square(size: tuple[int, int]) -> Window:
    """The smallest square with all of the picture in its middle."""
    side = max(size)
    return Window((size[0] - side) // 2, (size[1] - side) // 2, side)


def window_around(hole: Hole, context: float | None = None) -> Window:
    """The square through which a hole is filled, with the hole as near to its middle as the picture's edges allow.

    Args:
        hole: of the picture; without any, the square is that in the picture's middle.
        context: side of the square over the longer side of the hole, at least 1; None: as much as fits the picture. It
            never reaches over the picture's edges unless the hole is longer than the picture's shorter side.

    Raises:
        InputError: a context below 1.
    """
    if context is not None and not 1 <= context < float("inf"):
        raise InputError(f"context={context} must be 1 (the hole alone) or more times the hole's longer side")
    height, width = hole.shape
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    top, bottom = (rows[0], rows[-1] + 1) if rows.size else (0, height)
    left, right = (columns[0], columns[-1] + 1) if columns.size else (0, width)
    extent = int(max(bottom - top, right - left)) if rows.size else 0
    side = max(min(width, height), extent)
    if context is not None and extent:
        side = min(side, max(round(context * extent), 1))

    def place(low: int, high: int, length: int) -> int:
        middle = (int(low) + int(high) - side) // 2
        return min(max(middle, 0), length - side) if side <= length else (length - side) // 2

    return Window(place(left, right, width), place(top, bottom, height), side)


def outpaint_windows(size: tuple[int, int], hole: Hole, method: str) -> list[Window]:
    """The windows that fill the room around a picture.

    Args:
        size: of the picture that is extended.
        hole: of the extended picture.
        method: `shrink`, one window with all of it; `slide`, as `sliding`; `auto`, shrink until the extended picture is
            twice as long as the given one's shorter side, or where sliding would take too many steps.

    Raises:
        InputError: another method; more than MAX_WINDOWS to slide through.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown: take {', '.join(METHODS)}")
    side, extended_size = min(size), hole.shape[::-1]
    steps = len(_grid(hole, side))
    if method == "slide" and steps > MAX_WINDOWS:
        raise InputError(f"windows of {side} px take {steps} steps, at most {MAX_WINDOWS}: use the method shrink")
    far = max(extended_size) > 2 * side and steps <= MAX_WINDOWS
    return (
        list(sliding(hole, side))
        if method == "slide" or (method == "auto" and far)
        else [bounding_square(extended_size)]
    )


def sliding(hole: Hole, side: int) -> Iterator[Window]:
    """Windows that fill a large hole step by step, each overlapping what is known by then.

    They stand on a grid of half their side that is tied to the known part; of those that still have something to fill
    the one that knows most comes next.

    Args:
        hole: of the picture, with a part that is known.
        side: of the windows, at most that of the picture.
    """
    left = hole.copy()

    def known(window: Window) -> float:
        return 1 - float(left[window.top : window.top + side, window.left : window.left + side].mean())

    shares = {window: known(window) for window in _grid(hole, side)}
    while shares:
        best = max(shares, key=lambda window: (shares[window], window))
        yield best
        left[best.top : best.top + side, best.left : best.left + side] = False
        near = [w for w in shares if max(abs(w.left - best.left), abs(w.top - best.top)) < side]
        shares |= {window: known(window) for window in near}
        shares = {window: share for window, share in shares.items() if share < 1}


def _grid(hole: Hole, side: int) -> list[Window]:
    """Where windows stand that show something of the hole."""
    known = ~hole
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    tops = _stops(int(rows[0]), int(rows[-1]) + 1, hole.shape[0], side)
    lefts = _stops(int(columns[0]), int(columns[-1]) + 1, hole.shape[1], side)
    places = [Window(left, top, side) for top in tops for left in lefts]
    return [w for w in places if hole[w.top : w.top + side, w.left : w.left + side].any()]


def _stops(low: int, high: int, length: int, side: int) -> list[int]:
    """Where windows along one axis begin: over the known part, then outwards by half a side up to the edges."""
    step = max(side // 2, 1)
    over = range(low, max(high - side, low) + 1, step)
    before = range(low, -step, -step)
    after = range(high - side, length - side + step, step)
    return sorted({min(max(start, 0), length - side) for start in (*before, *over, *after)})


def pad_canvas(picture: Image.Image, left: int, right: int, top: int, bottom: int) -> tuple[Image.Image, Hole]:
    """A picture with room on its sides, in pixels, and that room as a hole.

    Raises:
        InputError: no room at all, room below 0, a picture that would be too large.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, room in sides.items():
        if room < 0:
            raise InputError(f"{name}={room} must be 0 or more pixels")
    if not any(sides.values()):
        raise InputError("no extension given: left, right, top and bottom are all 0 pixels")
    width, height = picture.width + left + right, picture.height + top + bottom
    if width > MAX_GROWTH * picture.width or height > MAX_GROWTH * picture.height or width * height > MAX_PIXELS:
        raise InputError(
            f"an extension of {picture.width}x{picture.height} px to {width}x{height} px is too large: at most "
            f"{MAX_GROWTH} times the width and the height, and {MAX_PIXELS:,} pixels"
        )
    canvas = Image.new("RGB", (width, height), "grey")
    canvas.paste(picture, (left, top))
    canvas.info = picture.info  # with its color profile
    hole = np.ones((height, width), dtype=bool)
    hole[top : top + picture.height, left : left + picture.width] = False
    return canvas, hole


def crop_mask(pixels: Hole, window: Window) -> Hole:
    """A boolean array of a picture as a window shows it: (side, side), False outside the picture."""
    return np.asarray(Image.fromarray(pixels).crop(window.box))


def remove_window(hole: Hole, window: Window) -> Hole:
    """What is left of a hole when it has been filled through a window."""
    left = hole.copy()
    left[max(window.top, 0) : window.top + window.side, max(window.left, 0) : window.left + window.side] = False
    return left


def paste(picture: Image.Image, square: Image.Image, opacity: NDArray[np.float32], window: Window) -> Image.Image:
    """The picture with a square of the window's side laid over it where the window is.

    Args:
        opacity: (side, side) in [0, 1]; where it is 0 the picture stays as it is, bit for bit.
    """
    result = picture.copy()
    result.paste(square, window.box[:2], Image.fromarray((opacity * 255).round().astype(np.uint8)))
    return result
