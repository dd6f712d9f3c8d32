"""The squares of an image that the model sees."""

from itertools import pairwise

import numpy as np
import pytest
from helpers import mask_of, noise, refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from var.editing.image_masks import Mask
from var.editing.windows import (
    MAX_GROWTH,
    Window,
    bounding_square,
    crop_mask,
    outpaint_windows,
    pad_canvas,
    paste,
    remove_window,
    slide_windows,
    window_around,
)
from var.utils.images import MAX_PIXELS

lengths = st.integers(1, 40)


@st.composite
def masks(draw: st.DrawFn, lengths: st.SearchStrategy[int] = lengths) -> Mask:
    """Two pixels of any image, or one."""
    width, height = draw(lengths), draw(lengths)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(2):
        mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return mask


def inside(window: Window, size: tuple[int, int]) -> bool:
    left, top, right, bottom = window.box
    return min(left, top) >= 0 and right <= size[0] and bottom <= size[1]


def extent(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# --- around


@given(masks(), st.one_of(st.none(), st.floats(1, 50)))
@settings(max_examples=200, deadline=None)
def test_the_window_holds_the_mask_and_stays_in_the_image(mask: Mask, context: float | None) -> None:
    window, (height, width) = window_around(mask, context), mask.shape
    left, top, right, bottom = extent(mask)
    assert window.left <= left
    assert window.top <= top
    assert right <= window.left + window.side
    assert bottom <= window.top + window.side
    longest = max(right - left, bottom - top)
    largest = max(min(width, height), longest)
    assert window.side == largest if context is None else window.side == min(largest, max(round(context * longest), 1))
    for low, high, length, start in ((left, right, width, window.left), (top, bottom, height, window.top)):
        if window.side <= length:
            assert 0 <= start <= length - window.side
            off = abs((low + high) - (2 * start + window.side))  # twice the distance of the two middles
            assert off <= 1 or start in (0, length - window.side)
        else:  # longer than the image: all of it, in the middle
            assert longest > min(width, height)
            assert start < 0 or window.side - length == 1
            assert abs(-start - (start + window.side - length)) <= 1
    if longest <= min(width, height):
        assert inside(window, (width, height))


@pytest.mark.parametrize(
    ("size", "box", "context", "expected"),
    [
        ((40, 20), (30, 5, 36, 9), None, Window(20, 0, 20)),  # as far right as the edge allows
        ((40, 20), (18, 5, 24, 9), None, Window(11, 0, 20)),
        ((40, 20), (18, 5, 24, 9), 2.0, Window(15, 1, 12)),
        ((40, 20), (18, 5, 24, 9), 1.0, Window(18, 4, 6)),
        ((40, 20), (0, 0, 6, 4), 2.0, Window(0, 0, 12)),
        ((40, 20), (5, 3, 35, 6), None, Window(5, -5, 30)),  # longer than the image is high
        ((40, 20), (5, 3, 35, 6), 3.0, Window(5, -5, 30)),
        ((20, 40), (3, 5, 6, 35), None, Window(-5, 5, 30)),
        ((40, 20), (0, 0, 40, 20), None, Window(0, -10, 40)),
        ((20, 20), (0, 0, 20, 20), 9.0, Window(0, 0, 20)),
    ],
)
def test_around_by_example(
    size: tuple[int, int], box: tuple[int, int, int, int], context: float | None, expected: Window
) -> None:
    assert window_around(mask_of(*size, box), context) == expected


@pytest.mark.parametrize("context", [None, 2.0])
def test_without_a_mask_it_is_the_square_in_the_middle(context: float | None) -> None:
    assert window_around(np.zeros((20, 40), dtype=bool), context) == Window(10, 0, 20)
    assert window_around(np.zeros((41, 20), dtype=bool), context) == Window(0, 10, 20)


@pytest.mark.parametrize("context", [0.0, 0.99, -3.0, float("nan"), float("inf")])
def test_a_context_below_1_is_refused(context: float) -> None:
    with refused(f"context={context}", "1 (the mask alone)"):
        window_around(mask_of(9, 9, (1, 1, 3, 3)), context)


# --- whole


@given(lengths, lengths)
@settings(max_examples=100, deadline=None)
def test_whole_is_the_smallest_square_with_all_of_the_image(width: int, height: int) -> None:
    window = bounding_square((width, height))
    assert window.side == max(width, height)
    for length, start in ((width, window.left), (height, window.top)):
        before, after = -start, start + window.side - length
        assert before >= 0
        assert after >= 0
        assert abs(before - after) <= 1


# --- sliding


@given(st.integers(3, 9), st.integers(3, 9), st.tuples(*[st.integers(0, 6)] * 4))
@settings(max_examples=20, deadline=None)
def test_sliding_windows_fill_an_extension_from_what_is_known(
    width: int, height: int, room: tuple[int, int, int, int]
) -> None:
    assume(any(room))
    left, right, top, bottom = room
    mask = np.ones((top + height + bottom, left + width + right), dtype=bool)
    mask[top : top + height, left : left + width] = False
    before, side, seen = mask.copy(), min(width, height), []
    left_over = mask
    for window in slide_windows(mask, side):
        seen.append(window)
        assert window.side == side
        assert inside(window, mask.shape[::-1])
        to_fill = crop_mask(left_over, window)
        assert to_fill.any()
        assert (~to_fill).sum() >= side * (side // 2)  # half of it is known
        left_over = remove_window(left_over, window)
        assert len(seen) <= mask.size
    assert not left_over.any()
    assert len(set(seen)) == len(seen)
    assert np.array_equal(mask, before)


@given(masks(st.integers(1, 12)), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_sliding_windows_fill_any_mask(known: Mask, side: int) -> None:
    """Also one with known pixels far from one another."""
    side = max(min(side, *known.shape), min(known.shape) // 2)
    left_over = ~known
    for window in slide_windows(~known, side):
        assert inside(window, known.shape[::-1])
        assert crop_mask(left_over, window).any()
        left_over = remove_window(left_over, window)
    assert not left_over.any()


def test_sliding_goes_outwards_by_halves() -> None:
    mask = np.ones((8, 30), dtype=bool)
    mask[:, 11:19] = False
    windows = list(slide_windows(mask, 8))
    assert sorted(window.left for window in windows) == [0, 3, 7, 15, 19, 22]
    assert {window.top for window in windows} == {0}
    for one_side in ([w.left for w in windows if w.left < 11], [-w.left for w in windows if w.left > 11]):
        assert all(near > far for near, far in pairwise(one_side))


def test_what_lies_beside_the_image_comes_before_the_corner() -> None:
    mask = np.ones((12, 12), dtype=bool)
    mask[:8, :8] = False
    first, *others = slide_windows(mask, 8)
    assert first in (Window(0, 4, 8), Window(4, 0, 8))
    assert sorted([first, *others]) == [Window(0, 4, 8), Window(4, 0, 8), Window(4, 4, 8)]


def test_nothing_to_fill_needs_no_window() -> None:
    assert list(slide_windows(np.zeros((5, 7), dtype=bool), 3)) == []


# --- extended


@pytest.mark.parametrize("room", [(3, 0, 0, 0), (0, 4, 0, 0), (0, 0, 5, 0), (0, 0, 0, 6), (1, 2, 3, 4)])
def test_an_extended_image_has_room_around_it(room: tuple[int, int, int, int]) -> None:
    image = noise(7, 5)
    before = image.tobytes()
    canvas, mask = pad_canvas(image, *room)
    left, right, top, bottom = room
    assert canvas.mode == "RGB"
    assert canvas.size == mask.shape[::-1] == (7 + left + right, 5 + top + bottom)
    assert canvas.crop((left, top, left + 7, top + 5)).tobytes() == before
    assert mask.sum() == mask.size - 35
    assert not mask[top : top + 5, left : left + 7].any()
    assert (np.asarray(canvas)[mask] == 128).all()
    assert image.tobytes() == before


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_room_below_0_is_refused(side: str) -> None:
    with refused(f"{side}=-1", "at least 0"):
        pad_canvas(noise(4, 4), **({"left": 0, "right": 0, "top": 0, "bottom": 3} | {side: -1}))


def test_no_room_at_all_is_refused() -> None:
    with refused("no extension", "left, right, top and bottom"):
        pad_canvas(noise(4, 4), 0, 0, 0, 0)


def test_absurd_sizes_are_refused() -> None:
    assert pad_canvas(noise(4, 3), 14, 14, 0, 0)[0].size == (MAX_GROWTH * 4, 3)
    assert pad_canvas(noise(4, 3), 0, 0, 20, 1)[0].size == (4, MAX_GROWTH * 3)
    with refused("4x3 px to 33x3 px", "8 times"):
        pad_canvas(noise(4, 3), 14, 15, 0, 0)
    with refused("4x3 px to 4x25 px"):
        pad_canvas(noise(4, 3), 0, 0, 0, 22)
    with refused("4x3 px to 1000000004x3 px"):
        pad_canvas(noise(4, 3), 10**9, 0, 0, 0)
    large = Image.new("RGB", (8192, 4096))
    with refused("8192x8193 px", f"{MAX_PIXELS:,} pixels"):
        pad_canvas(large, 0, 0, 4096, 1)


# --- through, without, lay


@st.composite
def windows_over(draw: st.DrawFn) -> tuple[int, int, Window]:
    """An image's width and height, and a window that may reach over its edges or lie beside it."""
    width, height, side = draw(lengths), draw(lengths), draw(st.integers(1, 50))
    return width, height, Window(draw(st.integers(-side, width)), draw(st.integers(-side, height)), side)


def cut(mask: NDArray[np.bool_], window: Window) -> NDArray[np.bool_]:
    """What a window shows, pixel by pixel."""
    shown = np.zeros((window.side, window.side), dtype=bool)
    for y in range(window.side):
        for x in range(window.side):
            row, column = window.top + y, window.left + x
            shown[y, x] = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and mask[row, column]
    return shown


@given(windows_over(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_what_a_window_shows_and_what_it_leaves(given_window: tuple[int, int, Window], seed: int) -> None:
    width, height, window = given_window
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    before = mask.copy()
    shown = crop_mask(mask, window)
    assert shown.dtype == bool
    assert np.array_equal(shown, cut(mask, window))
    left_over = remove_window(mask, window)
    assert not crop_mask(left_over, window).any()
    assert left_over.sum() == mask.sum() - shown.sum()
    assert (left_over <= mask).all()
    assert np.array_equal(mask, before)


@given(windows_over(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_square_is_laid_over_where_the_window_is(given_window: tuple[int, int, Window], seed: int) -> None:
    width, height, window = given_window
    image, square = noise(width, height, seed), noise(window.side, window.side, seed + 1)
    before = image.tobytes(), square.tobytes()
    alpha = np.random.default_rng(seed).choice([0, 0.25, 1], (window.side, window.side)).astype(np.float32)
    laid = np.asarray(paste(image, square, alpha, window)).astype(float)
    expected = np.asarray(image).astype(float)
    for y in range(height):
        for x in range(width):
            row, column = y - window.top, x - window.left
            if 0 <= row < window.side and 0 <= column < window.side:
                new = np.asarray(square.getpixel((column, row)))
                expected[y, x] += alpha[row, column] * (new - expected[y, x])
    difference = np.abs(laid - expected)
    assert difference.max() <= 1
    mixed = Image.new("1", image.size)
    mixed.paste(Image.fromarray(alpha == 0.25), window.box[:2])
    assert (difference[~np.asarray(mixed)] == 0).all()  # bit for bit elsewhere
    assert (image.tobytes(), square.tobytes()) == before


@pytest.mark.parametrize(
    ("size", "room", "slides"),
    [((10, 10), 5, False), ((10, 10), 6, True), ((20, 10), 3, True), ((3000, 4), 3, False), ((1, 1), 3, True)],
)
def test_auto_shrinks_until_the_image_has_grown_a_lot(size: tuple[int, int], room: int, slides: bool) -> None:
    """And where sliding would take too many steps: an image of 3000x4 px has 1,499 places along its side."""
    canvas, mask = pad_canvas(Image.new("RGB", size), room, room, 0, 0) if slides else (
        pad_canvas(Image.new("RGB", size), 0, 0, room, room)
    )  # fmt: skip
    assert outpaint_windows(size, mask, "shrink") == [bounding_square(canvas.size)]
    found = outpaint_windows(size, mask, "auto")
    assert (found != [bounding_square(canvas.size)]) == slides
    if slides:
        assert found == outpaint_windows(size, mask, "slide") == list(slide_windows(mask, min(size)))


def test_ways_that_cannot_work() -> None:
    _, mask = pad_canvas(Image.new("RGB", (3000, 4)), 0, 0, 4, 0)
    with refused("windows of 4 px", "2998 steps", "at most 400", "method shrink"):
        outpaint_windows((3000, 4), mask, "slide")
    with refused("method 'zoom'", "auto, shrink, slide"):
        outpaint_windows((3000, 4), mask, "zoom")


def test_squares_that_are_too_large_to_draw_are_refused() -> None:
    """Those of images that are long and thin, and not too large themselves."""
    _, mask = pad_canvas(Image.new("RGB", (10000, 1)), 0, 0, 1, 0)
    for method in ("auto", "shrink"):
        with refused("10000x10000 px", f"{MAX_PIXELS:,} pixels", "reduce the image"):
            outpaint_windows((10000, 1), mask, method)
    with refused("10000x10000 px", f"{MAX_PIXELS:,} pixels"):
        window_around(np.ones((1, 10000), dtype=bool))
    _, mask = pad_canvas(Image.new("RGB", (8200, 6000)), 0, 0, 8, 0)
    assert len(outpaint_windows((8200, 6000), mask, "auto")) > 1


def test_windows_that_have_nothing_to_fill_do_not_count() -> None:
    """A long image that is extended at one end slides there, whatever its length."""
    _, mask = pad_canvas(Image.new("RGB", (4000, 4)), 0, 8, 0, 0)
    assert len(outpaint_windows((4000, 4), mask, "slide")) <= 5


def test_an_extended_image_keeps_its_color_profile() -> None:
    image = noise(4, 4)
    image.info["icc_profile"] = b"wide"
    assert pad_canvas(image, 1, 0, 0, 0)[0].info["icc_profile"] == b"wide"
