"""Which pixels and which tokens are drawn anew: against slow loops."""

from fractions import Fraction
from io import BytesIO
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import largest_difference, normal, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from tokenizer.scales import SCALES_256, SCALES_512, Scales
from var.editing.image_masks import (
    FORCED_WHOLE,
    Mask,
    MaskLike,
    feathered_alpha,
    mask_at_scales,
    masked_downscale,
    overlay,
    pull_push_fill,
    read_mask,
    token_mask,
)

MASK = np.array([[0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=bool)
SIZE = (6, 3)


def random_mask(height: int, width: int, share: float, seed: int) -> Mask:
    return np.random.default_rng(seed).random((height, width)) < share


# --- what tells where a mask is


def gray(values: Mask | np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def palette(mask: Mask) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 0, 255, 255])  # dark red, bright cyan
    return image


def with_alpha(mask: Mask, mode: str) -> Image.Image:
    """White all over; transparent, so kept, outside the mask."""
    image = Image.new("L", SIZE, "white").convert(mode)
    image.putalpha(gray(mask * 255))
    return image


MASKS: dict[str, Image.Image] = {
    "1": Image.fromarray(MASK),
    "L": gray(np.where(MASK, 128, 127)),  # brighter than half
    "P": palette(MASK),
    "RGB": gray(MASK * 255).convert("RGB"),
    "RGBA": with_alpha(MASK, "RGBA"),
    "LA": with_alpha(MASK, "LA"),
    "CMYK": gray(MASK * 255).convert("CMYK"),
    "I;16": Image.fromarray(np.where(MASK, 40000, 20000).astype(np.uint16)),
}


@pytest.mark.parametrize("mode", MASKS)
def test_masks_of_any_mode(mode: str) -> None:
    assert MASKS[mode].mode == mode
    before = MASKS[mode].tobytes()
    mask = read_mask(MASKS[mode], SIZE)
    assert mask.dtype == bool
    assert np.array_equal(mask, MASK)
    assert MASKS[mode].tobytes() == before


def test_a_palettes_transparent_entry_is_kept() -> None:
    mask = palette(MASK)
    mask.info["transparency"] = 1
    assert not read_mask(mask, SIZE).any()


def test_black_that_is_half_transparent_is_kept() -> None:
    assert not read_mask(Image.new("RGBA", SIZE, (0, 0, 0, 128)), SIZE).any()


def test_a_mask_is_turned_upright_as_its_image_is() -> None:
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    gray(MASK * 255).save(file, "PNG", exif=exif)
    assert np.array_equal(read_mask(Image.open(file), SIZE[::-1]), np.rot90(MASK, -1))


@pytest.mark.parametrize(
    "mask",
    [MASK, [(1, 0, 3, 2), (5, 2, 6, 3)], ((1, 0, 3, 2), (5, 2, 6, 3)), [(1, 0, 2, 2), (1, 0, 3, 2), (5, 2, 6, 3)]],
)
def test_arrays_and_lists_of_boxes(mask: MaskLike) -> None:
    assert np.array_equal(read_mask(mask, SIZE), MASK)


def test_one_box() -> None:
    mask = read_mask((1, 0, 3, 2), SIZE)
    assert mask.sum() == 4
    assert mask[0:2, 1:3].all()
    assert read_mask((0, 0, 6, 3), SIZE).all()


def test_no_mask_is_one_too() -> None:
    for empty in ([], np.zeros((3, 6), dtype=bool), Image.new("1", SIZE)):
        mask = read_mask(empty, SIZE)
        assert mask.shape == (3, 6)
        assert not mask.any()


@pytest.mark.parametrize("size", [(3, 6), (6, 4), (5, 3), (12, 6)])
def test_masks_of_another_size_are_refused(size: tuple[int, int]) -> None:
    with refused(f"{size[0]}x{size[1]} px", "6x3 px", "image's size"):
        read_mask(Image.new("L", size), SIZE)
    with refused(str(size[::-1]), "(3, 6) needed"):
        read_mask(np.zeros(size[::-1], dtype=bool), SIZE)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_arrays_of_other_numbers_are_refused(dtype: type) -> None:
    with refused(np.dtype(dtype).name, "boolean"):
        read_mask(MASK.astype(dtype), SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 3, 2), (0, -1, 3, 2), (0, 0, 7, 2), (0, 0, 3, 4), (2, 0, 2, 2), (3, 0, 2, 2), (0, 2, 3, 2), (0, 2, 3, 1)],
)
def test_boxes_without_area_or_outside_are_refused(box: tuple[int, int, int, int]) -> None:
    for mask in (box, [(0, 0, 1, 1), box]):
        with refused(",".join(map(str, box)), "6x3 px", "left < right"):
            read_mask(mask, SIZE)


@pytest.mark.parametrize(
    "mask",
    [None, "mask.png", 5, (1, 2, 3), (0, 0, 1, 1, 1), [(0, 0, 1, 1), (2, 2, 3)], {1, 2}, torch.zeros(3, 6).bool()],
)
def test_anything_else_is_refused(mask: object) -> None:
    with refused("must be an image, a boolean array, or boxes of four whole numbers"):
        read_mask(mask, SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("box", [(0.5, 0, 3, 2), (0, 0, 2**70, 2), (float("nan"), 0, 1, 1), (0, 0, float("inf"), 1)])
def test_boxes_of_numbers_that_are_no_pixels_are_refused(box: tuple[int, int, int, int]) -> None:
    with refused("box"):
        read_mask(box, SIZE)


def test_a_mask_that_cannot_be_read_is_refused() -> None:
    file = BytesIO()
    Image.effect_noise(SIZE, 80).save(file, "PNG")
    with refused("cannot read the mask"):
        read_mask(Image.open(BytesIO(file.getvalue()[:60])), SIZE)


# --- tokens


@given(st.integers(1, 13), st.integers(1, 7), st.floats(0, 0.3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_token_is_kept_if_no_pixel_of_it_is_in_the_mask(side: int, tokens: int, share: float, seed: int) -> None:
    mask = random_mask(side, side, share, seed)
    kept = token_mask(mask, tokens)
    assert kept.dtype == torch.bool
    expected = torch.ones(tokens, tokens, dtype=torch.bool)
    for (y, x), (i, j) in product(np.argwhere(mask).tolist(), product(range(tokens), repeat=2)):
        # Pixel and token share some area: [y, y + 1) of `side` pixels, [i, i + 1) of as many tokens.
        if all(p * tokens < (t + 1) * side and t * side < (p + 1) * tokens for p, t in ((y, i), (x, j))):
            expected[i, j] = False
    assert torch.equal(kept, expected)


def slow_resize(values: list[list[int]], side: int) -> list[Fraction]:
    """Bilinear, pixel centers aligned, the outermost values continued; row by row."""

    def taps(out: int) -> list[tuple[int, Fraction]]:
        place = max((Fraction(2 * out + 1, 2) * len(values)) / side - Fraction(1, 2), Fraction(0))
        low = place.numerator // place.denominator
        return [(low, 1 - (place - low)), (min(low + 1, len(values) - 1), place - low)]

    return [
        sum((values[r][c] * wr * wc for (r, wr), (c, wc) in product(taps(i), taps(j))), Fraction(0))
        for i, j in product(range(side), repeat=2)
    ]


@given(
    st.sampled_from([(1, 2, 4), (1, 2, 3, 5), (1, 3, 4, 6), (1, 2, 4, 7, 9), (2, 5), (1,)]),
    st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0]),
    st.integers(0, 3),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_every_scale_keeps_what_the_resized_mask_keeps(
    sides: tuple[int, ...], share: float, dilate: int, seed: int
) -> None:
    last = sides[-1]
    keep = torch.from_numpy(random_mask(last, last, share, seed))
    ours, start = mask_at_scales(keep, Scales(sides), dilate), 0
    assert ours.shape == (sum(side * side for side in sides),)
    assert ours.dtype == torch.bool
    lost = [(r, c) for r, c in product(range(last), repeat=2) if not keep[r, c]]
    far = [[int(all(max(abs(r - i), abs(c - j)) > dilate for r, c in lost)) for j in range(last)] for i in range(last)]
    for side in sides:
        part = ours[start : start + side * side].tolist()
        start += side * side
        if side * side <= FORCED_WHOLE:
            assert part == [len(lost) < last * last]
            continue
        narrow = Fraction(last, side) < 2 * dilate  # a token narrower than twice the band
        shares = slow_resize(far if narrow else keep.int().tolist(), side)
        for kept, resized in zip(part, shares, strict=True):
            assert kept == (resized > Fraction(1, 2)) or abs(float(resized) - 0.5) < 1e-6  # rounding may settle a tie


def test_half_is_not_more_than_half() -> None:
    keep = torch.tensor([[1, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    assert mask_at_scales(keep, Scales((1, 2, 4)))[1:5].tolist() == [False, True, True, False]


def test_the_last_scale_keeps_the_mask_itself_or_its_undilated_part() -> None:
    keep = torch.ones(7, 7, dtype=torch.bool)
    keep[3, 3] = False
    scales = Scales((1, 2, 4, 7))
    assert torch.equal(mask_at_scales(keep, scales)[-49:].reshape(7, 7), keep)
    around = torch.ones(7, 7, dtype=torch.bool)
    around[2:5, 2:5] = False
    assert torch.equal(mask_at_scales(keep, scales, dilate=1)[-49:].reshape(7, 7), around)
    assert mask_at_scales(keep, scales, dilate=1)[:5].all()  # two tokens a side: too wide for the band
    assert not mask_at_scales(keep, scales, dilate=9)[1:].any()


def test_a_token_as_wide_as_twice_the_band_is_not_dilated() -> None:
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[1, 1] = False
    assert mask_at_scales(keep, Scales((1, 2, 4)), dilate=1)[1:5].all()
    assert not mask_at_scales(keep, Scales((1, 3, 4)), dilate=1)[1:10].all()  # 4/3 tokens wide


@pytest.mark.parametrize("scales", [Scales((1, 2, 4)), SCALES_256, SCALES_512])
@pytest.mark.parametrize("dilate", [0, 1, 3])
def test_everything_and_nothing_kept(scales: Scales, dilate: int) -> None:
    everything = torch.ones(scales.sides[-1], scales.sides[-1], dtype=torch.bool)
    assert mask_at_scales(everything, scales, dilate).all()
    assert not mask_at_scales(~everything, scales, dilate).any()  # not the scales of few tokens either


def test_scales_of_few_tokens_are_kept_whole() -> None:
    keep = torch.zeros(16, 16, dtype=torch.bool)
    keep[0, 15] = True
    assert FORCED_WHOLE == 3
    kept = mask_at_scales(keep, SCALES_256, dilate=1)
    assert kept[0]
    assert not kept[1:].any()


def test_a_token_more_around_the_mask_never_keeps_more() -> None:
    keep = torch.from_numpy(~random_mask(16, 16, 0.05, seed=1))
    kept = [mask_at_scales(keep, SCALES_256, dilate) for dilate in range(4)]
    for less, more in pairwise(kept):
        assert (more <= less).all()
        assert more.sum() < less.sum()


def test_dilation_below_0_is_refused() -> None:
    with refused("dilate=-1", "0 or more"):
        mask_at_scales(torch.ones(4, 4, dtype=torch.bool), Scales((1, 2, 4)), -1)


# --- the smooth continuation


def ramp(height: int, width: int) -> Tensor:
    return torch.arange(width).float().expand(1, 1, height, width) / max(width - 1, 1)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_mask_is_filled_from_the_known_pixels_alone(height: int, width: int, share: float, seed: int) -> None:
    pixels, mask = normal(2, 3, height, width, seed=seed), torch.from_numpy(random_mask(height, width, share, seed))
    before = pixels.clone(), mask.clone()
    filled = pull_push_fill(pixels, mask)
    assert torch.equal(pixels, before[0])
    assert torch.equal(mask, before[1])
    assert filled.shape == pixels.shape
    assert torch.equal(filled[..., ~mask], pixels[..., ~mask])
    if mask.all():
        assert (filled == 0).all()
        return
    known = pixels[..., ~mask]
    assert (filled >= known.amin(dim=-1)[..., None, None] - 1e-5).all()
    assert (filled <= known.amax(dim=-1)[..., None, None] + 1e-5).all()
    others = torch.where(mask, 100 * normal(2, 3, height, width, seed=seed + 1), pixels)
    assert torch.equal(pull_push_fill(others, mask), filled)
    assert largest_difference(pull_push_fill(pixels[:1], mask), filled[:1]) < 1e-5  # no image knows of the others
    constant = torch.tensor([0.7, -0.3, 1.0])[:, None, None].expand(1, 3, height, width)
    assert largest_difference(pull_push_fill(constant, mask), constant) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 23), (64, 64), (31, 12)])
def test_a_ramp_is_continued(height: int, width: int) -> None:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 3 : -(height // 3), width // 3 : -(width // 3)] = True
    for field in (ramp(height, width), ramp(width, height).mT):
        filled = pull_push_fill(field, mask)
        assert largest_difference(filled, field) < 0.1
        mean = field[..., ~mask].mean()
        assert largest_difference(filled, field) < 0.5 * (field - mean)[..., mask].abs().max()  # no mean fill


def test_the_continuation_meets_the_pixels_beside_the_mask() -> None:
    """A step at the mask's edge would show as a seam."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    field = ramp(32, 32) + ramp(32, 32).mT
    filled = pull_push_fill(field, mask)[0, 0]
    for steps in (filled.diff(dim=0), filled.diff(dim=1)):
        assert steps.abs().max() < 4 / 31


def test_nothing_known_gives_0_and_no_mask_the_pixels() -> None:
    pixels = normal(1, 3, 5, 7)
    assert (pull_push_fill(pixels, torch.ones(5, 7, dtype=torch.bool)) == 0).all()
    assert torch.equal(pull_push_fill(pixels, torch.zeros(5, 7, dtype=torch.bool)), pixels)


# --- images


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 0.4), st.sampled_from([0.0, 0.5, 1.0, 2.7, 40.0]))
@settings(max_examples=60, deadline=None)
def test_opacity_falls_with_the_distance_from_the_mask(height: int, width: int, share: float, feather: float) -> None:
    mask = random_mask(height, width, share, seed=height + 10 * width)
    alpha = feathered_alpha(mask, feather)
    assert alpha.shape == mask.shape
    assert alpha.dtype == np.float32
    inside = np.argwhere(mask)
    for y, x in product(range(height), range(width)):
        distance = np.sqrt(((inside - (y, x)) ** 2).sum(axis=1)).min() if len(inside) else np.inf
        assert abs(alpha[y, x] - (1 - distance / (feather + 1) if distance <= feather else 0)) < 1e-6
        assert (alpha[y, x] == 1) == mask[y, x]
        assert (alpha[y, x] == 0) == (distance > feather)


def test_without_a_mask_nothing_is_laid_over() -> None:
    assert not feathered_alpha(np.zeros((3, 4), dtype=bool), 5).any()


def test_overlay_shows_the_mask_in_red() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 6, 3), dtype=np.uint8))
    before = image.tobytes()
    shown, pixels = np.asarray(overlay(image, MASK)), np.asarray(image)
    assert np.array_equal(shown[~MASK], pixels[~MASK])
    half_red = (pixels[MASK] + np.array([255.0, 0, 0])) / 2
    assert np.abs(shown[MASK] - half_red).max() <= 1
    assert image.tobytes() == before


def test_reduced_takes_the_mean_of_the_known_pixels_of_a_cell() -> None:
    pixels, mask = normal(2, 3, 7, 10), torch.from_numpy(random_mask(7, 10, 0.6, seed=2))
    pixels[:, :, mask] = 1e6  # what lies in the mask does not matter
    small, left = masked_downscale(pixels, mask, 3)
    assert small.shape == (2, 3, 3, 4)
    for y, x in product(range(3), range(4)):
        cell = slice(3 * y, 3 * y + 3), slice(3 * x, 3 * x + 3)
        known = ~mask[cell]
        assert left[y, x] == (not known.any())
        if known.any():
            expected = pixels[:, :, cell[0], cell[1]][:, :, known].mean(dim=-1)
            assert largest_difference(small[:, :, y, x], expected) < 1e-5


def test_boxes_that_are_not_in_a_list_of_their_own_are_refused() -> None:
    with refused("must be an image"):
        read_mask([0, 0, 1, 1, 2, 2, 3, 3], SIZE)  # type: ignore[arg-type, list-item]
    with refused("must be an image"):
        read_mask(np.zeros((50, 60), dtype=bool).tolist(), SIZE)
    assert np.array_equal(read_mask([0, 0, 2, 1], SIZE), read_mask((0, 0, 2, 1), SIZE))  # type: ignore[arg-type, list-item]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_that_marks_too_darkly_is_refused(dtype: type) -> None:
    values = np.zeros(SIZE[::-1], dtype)
    assert not read_mask(Image.fromarray(values), SIZE).any()
    values[1, 1] = 1
    with refused("brightest pixel is 1", "half of the full scale"):
        read_mask(Image.fromarray(values), SIZE)


def test_masks_of_other_depths_mark_by_their_white_or_are_refused() -> None:
    values = np.zeros(SIZE[::-1], np.float32)
    values[1, 1] = 1
    assert np.argwhere(read_mask(Image.fromarray(values), SIZE)).tolist() == [[1, 1]]
    with refused("32-bit integers", "save the image with 8 or 16 bits"):
        read_mask(Image.fromarray(values.astype(np.int32)), SIZE)


def test_a_photo_with_an_erased_hole_is_no_mask() -> None:
    """Its brightness would mark other parts than the hole."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)).convert("RGBA")
    photo.paste((0, 0, 0, 0), (2, 2, 6, 6))
    for image in (photo, photo.convert("LA"), photo.quantize()):
        with refused("a photo with transparent parts", "draw white"):
            read_mask(image, (12, 10))


def test_an_opaque_photo_is_no_mask_and_a_mask_kept_as_jpeg_is_one(tmp_path: Path) -> None:
    size = (96, 64)
    y, x = np.mgrid[0:64, 0:96]
    photo = np.stack([x * 2.5, y * 4, 255 - x - y], axis=-1).clip(0, 255).astype(np.uint8)
    for name in ("photo.png", "photo.jpg"):
        Image.fromarray(photo).save(tmp_path / name)
        with refused("the mask is a photo", "draw white"):
            read_mask(Image.open(tmp_path / name), size)
    for color, quality in (("white", 95), ("white", 10), ((255, 240, 200), 30)):
        drawn = Image.new("RGB", size, (10, 0, 30))
        ImageDraw.Draw(drawn).ellipse((20, 10, 60, 50), fill=color)
        drawn.save(tmp_path / "drawn.jpg", quality=quality)
        assert 1100 < read_mask(Image.open(tmp_path / "drawn.jpg"), size).sum() < 1500
    soft = Image.radial_gradient("L").resize(size)
    assert read_mask(soft.convert("RGB"), size).any()


def test_soft_strokes_on_transparent_and_opaque_gray_masks_are_read() -> None:
    strokes = Image.new("RGBA", (12, 10), (0, 0, 0, 0))
    strokes.paste("white", (2, 2, 9, 9))
    strokes.paste((255, 255, 255, 140), (9, 2, 10, 9))
    assert read_mask(strokes, (12, 10)).sum() == 8 * 7
    opaque = Image.linear_gradient("L").resize((12, 10)).convert("RGBA")
    assert 0 < read_mask(opaque, (12, 10)).sum() < 120
    assert not read_mask(Image.new("RGBA", (12, 10)), (12, 10)).any()
