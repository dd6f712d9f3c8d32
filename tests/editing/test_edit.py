"""Zero-shot editing: what stays, what is drawn, and that nothing of a mask leaks into the result."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, SIDES, largest_difference, mask_of, noise, normal, refused, small_var, small_vqvae
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import var.editing.edit
from tokenizer.vqvae import VQVAE
from var.editing.edit import back_project, encoder_view, generate_masked, inpaint_windows, match_colors, upscale
from var.editing.image_masks import Mask, mask_at_scales, pull_push_fill
from var.editing.params import BlendParams
from var.editing.windows import Window, bounding_square, crop_mask, slide_windows, window_around
from var.models.var import VAR
from var.sampling.generate import ForcedTokens, Generated, generate, generate_batches
from var.sampling.params import FOR_METRICS, SamplingParams, apply_options
from var.sampling.steps import OnStep
from var.utils.images import to_pil, to_tensor

MODEL, TOKENIZER = small_var(seed=1), small_vqvae(seed=2)
SIDE = TOKENIZER.config.image_side
LENGTH = TOKENIZER.scales.total

Draws = list[tuple[ForcedTokens, Generated]]  # what the loop over scales was told, and what it drew


def filled(
    image: Image.Image,
    mask: Mask,
    windows: Iterable[Window] | None = None,
    labels: Iterable[int] = (1,),
    **options: Any,
) -> list[np.ndarray]:
    windows = [window_around(mask)] if windows is None else windows
    rest = {name: options.pop(name) for name in ("seed", "batch_size") if name in options}
    params = apply_options(FOR_METRICS, options), apply_options(BlendParams(), options)
    images = inpaint_windows(MODEL, TOKENIZER, image, mask, windows, list(labels), *params, **({"seed": 3} | rest))
    assert {(result.mode, result.size) for result in images} == {("RGB", image.size)}
    return [np.asarray(result) for result in images]


def changed(image: Image.Image, result: np.ndarray) -> Mask:
    return (np.asarray(image) != result).any(axis=-1)


def distance_from(mask: Mask) -> np.ndarray:
    """Of every pixel to the nearest one of the mask."""
    places = np.argwhere(mask)
    grid = np.moveaxis(np.indices(mask.shape), 0, -1)
    return np.sqrt(((grid[:, :, None] - places) ** 2).sum(axis=-1)).min(axis=-1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """What the loop over scales is told and draws from now on."""
    seen: Draws = []

    def recorded(
        model: VAR,
        vqvae: VQVAE,
        labels: list[int],
        n: int,
        sampling: SamplingParams,
        seed: int,
        known: ForcedTokens,
        on_step: OnStep | None,
    ) -> Any:
        for part in generate_batches(model, vqvae, labels, n, sampling, seed, known, on_step=on_step):
            seen.append((known, part))
            yield part

    monkeypatch.setattr(var.editing.edit, "generate_batches", recorded)
    return seen


# --- the mask hides what is in it


@st.composite
def images_with_masks(draw: st.DrawFn) -> tuple[Image.Image, Mask]:
    """Of any shape; some box and some speckles are hidden, and something is known."""
    width, height, seed = draw(st.integers(3, 24)), draw(st.integers(3, 24)), draw(st.integers(0, 10**6))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    mask = mask_of(width, height, (left, top, right, bottom))
    mask |= np.random.default_rng(seed).random((height, width)) < draw(st.sampled_from([0.0, 0.0, 0.1]))
    assume(not mask.all())
    return noise(width, height, seed), mask


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dilate": st.integers(0, 2),
        "composite": st.booleans(),
        "color_match": st.booleans(),
        "feather": st.sampled_from([0.0, 1.0, 5.0]),
        "smooth": st.booleans(),
        "cfg": st.sampled_from([0.0, 3.0]),
    },
)


any_windows = st.sampled_from(["around", "close", "whole", "sliding"])


def some_windows(mask: Mask, kind: str) -> Iterable[Window]:
    height, width = mask.shape
    ways: dict[str, Callable[[], Iterable[Window]]] = {
        "around": lambda: [window_around(mask)],
        "close": lambda: [window_around(mask, context=1.5)],
        "whole": lambda: [bounding_square((width, height))],
        "sliding": lambda: slide_windows(mask, min(width, height)),
    }
    return ways[kind]()


@given(images_with_masks(), any_windows, OPTIONS, st.sampled_from([1, CLASSES]))
@settings(max_examples=40, deadline=None)
def test_what_is_in_the_mask_changes_nothing(
    given_image: tuple[Image.Image, Mask], kind: str, options: dict[str, Any], label: int
) -> None:
    image, mask = given_image
    pixels = np.asarray(image).copy()
    pixels[mask] = np.random.default_rng(1).integers(0, 256, (mask.sum(), 3))
    (one,) = filled(image, mask, some_windows(mask, kind), [label], **options)
    (other,) = filled(Image.fromarray(pixels), mask, some_windows(mask, kind), [label], **options)
    assert np.array_equal(one, other)


def test_a_mask_that_is_not_hidden_leaks() -> None:
    """So the test above can fail."""
    image, mask = noise(SIDE, SIDE), mask_of(SIDE, SIDE, (2, 2, 6, 6))
    pixels = np.asarray(image).copy()
    pixels[mask] = 255 - pixels[mask]
    for dilate in (0, 1):
        one, other = (filled(p, mask, hide_masked=False, dilate=dilate)[0] for p in (image, Image.fromarray(pixels)))
        assert not np.array_equal(one[mask], other[mask])


def test_what_is_around_the_mask_does_matter() -> None:
    mask = mask_of(SIDE, SIDE, (2, 2, 6, 6))
    one, other = (filled(noise(SIDE, SIDE, seed), mask)[0] for seed in (0, 1))
    assert not np.array_equal(one[mask], other[mask])


def test_pixels_are_hidden_before_the_image_is_resized() -> None:
    image, hidden = noise(20, 20), mask_of(20, 20, (3, 4, 11, 9))
    whiter = image.copy()
    whiter.paste("white", (3, 4, 11, 9))
    for side in (8, 20, 33):
        seen = encoder_view(image, hidden, side)
        assert seen.shape == (3, side, side)
        assert torch.equal(seen, encoder_view(whiter, hidden, side))
    as_it_is = encoder_view(image, hidden, 20)
    assert torch.equal(as_it_is[:, ~torch.from_numpy(hidden)], to_tensor(image)[:, ~torch.from_numpy(hidden)])
    expected = pull_push_fill(to_tensor(image)[None], torch.from_numpy(hidden))[0]
    assert largest_difference(as_it_is, expected) <= 0.51 / 127.5
    nothing = np.zeros_like(hidden)
    assert torch.equal(encoder_view(image, nothing, 20), to_tensor(image))
    assert torch.equal(encoder_view(image, nothing, 8), to_tensor(image.resize((8, 8), Image.Resampling.LANCZOS)))


# --- what is known stays


@given(images_with_masks(), any_windows, st.sampled_from([None, 0.0, 1.0, 4.5]))
@settings(max_examples=40, deadline=None)
def test_outside_mask_and_feather_the_image_stays_bit_for_bit(
    given_image: tuple[Image.Image, Mask], kind: str, feather: float | None
) -> None:
    image, mask = given_image
    before, mask_before = image.tobytes(), mask.copy()
    windows = list(some_windows(mask, kind))
    (result,) = filled(image, mask, windows, feather=feather)
    width = max(window.side for window in windows) / SIDES[-1] / 2 if feather is None else feather
    assert not changed(image, result)[distance_from(mask) >= width + 1].any()
    assert image.tobytes() == before
    assert np.array_equal(mask, mask_before)


def test_a_hard_edge_and_a_soft_one() -> None:
    image, mask = noise(16, 16), mask_of(16, 16, (5, 5, 11, 11))
    hard, soft = (changed(image, filled(image, mask, feather=feather)[0]) for feather in (0.0, 3.0))
    assert not (hard & ~mask).any()
    assert hard[mask].mean() > 0.9
    assert (soft & ~mask).any()
    (default,) = filled(image, mask)
    assert np.array_equal(default, filled(image, mask, feather=2.0)[0])  # 16 px show 4 tokens: half of one


def test_the_images_own_edges_are_no_mask() -> None:
    """A window that reaches over them draws what lies beyond; the feather is for the mask."""
    image, mask = noise(9, 24), mask_of(9, 24, (0, 0, 9, 4))
    (result,) = filled(image, mask, [bounding_square(image.size)], feather=3.0)
    assert not changed(image, result)[8:].any()


def test_without_a_mask_the_image_is_the_result() -> None:
    image = noise(19, 11)
    for result in filled(image, mask_of(19, 11), labels=[1, 2, CLASSES]):
        assert np.array_equal(result, np.asarray(image))


def test_without_composite_it_is_the_models_drawing_of_all_that_it_saw(drawn: Draws) -> None:
    image, mask = noise(24, 16), mask_of(24, 16, (9, 5, 13, 8))
    window = window_around(mask)
    assert window == Window(3, 0, 16)
    (result,) = filled(image, mask, composite=False)
    (square,) = to_pil(drawn[-1][1].images)
    assert np.array_equal(result[:, 3:19], np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS)))
    beside = np.ones((16, 24), dtype=bool)
    beside[:, 3:19] = False
    assert not changed(image, result)[beside].any()


def test_without_a_mask_and_without_composite_it_is_the_reconstruction() -> None:
    image = noise(SIDE, SIDE)
    (result,) = filled(image, mask_of(SIDE, SIDE), composite=False)
    with torch.no_grad():
        expected = to_pil(TOKENIZER.decode(TOKENIZER.encode(to_tensor(image)[None])))[0]
    assert np.abs(result.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("label", [3, CLASSES])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_mask_all_over_is_plain_generation(label: int, smooth: bool) -> None:
    sampling = SamplingParams(cfg=2.0, smooth=smooth)
    for size, match in (((SIDE, SIDE), True), ((SIDE, SIDE), False), ((13, 20), True)):
        mask = mask_of(*size, (0, 0, *size))
        results = filled(noise(*size), mask, labels=[label] * 2, color_match=match, seed=7, **sampling.to_dict())
        window = window_around(mask)
        for result, square in zip(
            results, to_pil(generate(MODEL, TOKENIZER, [label] * 2, sampling, seed=7).images), strict=True
        ):
            laid = Image.new("RGB", size)
            laid.paste(square.resize((window.side,) * 2, Image.Resampling.LANCZOS), window.box[:2])
            assert np.array_equal(result, np.asarray(laid))


@pytest.mark.parametrize(("dilate", "band"), [(0, 0), (1, 1), (2, 2)])
def test_kept_tokens_are_those_of_the_encoded_image(drawn: Draws, dilate: int, band: int) -> None:
    vqvae, model = small_vqvae(scales=(1, 2, 4, 8)), small_var(scales=(1, 2, 4, 8))
    image, mask = noise(16, 16), mask_of(16, 16, (6, 8, 8, 10))  # one token of the last scale
    inpaint_windows(model, vqvae, image, mask, [window_around(mask)], [1, 2], blend=BlendParams(dilate), seed=1)
    ((known, out),) = drawn
    encoded = vqvae.encode(encoder_view(image, mask, 16)[None]).expand(2, -1)
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[4, 3] = False
    kept = mask_at_scales(keep, vqvae.scales, dilate)
    assert (~kept[-64:]).sum() == (2 * band + 1) ** 2
    assert torch.equal(known.forced, kept.expand(2, -1))
    assert torch.equal(out.tokens[:, kept], encoded[:, kept])
    assert not torch.equal(out.tokens[:, ~kept], encoded[:, ~kept])


def test_complete_encodes_one_image_for_all_or_one_each() -> None:
    keep = torch.zeros(LENGTH, dtype=torch.bool)
    keep[5:15] = True
    images = normal(3, 3, SIDE, SIDE).clamp(-1, 1)
    each = generate_masked(MODEL, TOKENIZER, images, keep, [1, 1, 2], FOR_METRICS, batch_size=2, seed=4)
    assert each.shape == (3, 3, SIDE, SIDE)
    assert each.abs().max() <= 1
    one = generate_masked(MODEL, TOKENIZER, images[:1], keep, [1, 1, 2], FOR_METRICS, seed=4)
    assert largest_difference(one[:1], each[:1]) < 1e-4
    assert largest_difference(one[1:], each[1:]) > 0.01


# --- one after the other


def test_sliding_windows_see_what_was_drawn_before(drawn: Draws) -> None:
    image, mask = noise(16, 8), mask_of(16, 8, (8, 0, 16, 8))
    windows = list(slide_windows(mask, 8))
    assert windows == [Window(4, 0, 8), Window(8, 0, 8)]
    results = filled(image, mask, windows, [2, 2], feather=0.0)
    (_, first), (known, second) = drawn
    assert first.tokens.shape == second.tokens.shape == (2, LENGTH)
    # The second step starts from two images, each drawn on as the first step left it.
    after_first = filled(image, mask, windows[:1], [2, 2], feather=0.0)
    rest = mask_of(16, 8, (12, 0, 16, 8))
    for row, (start, result) in enumerate(zip(after_first, results, strict=True)):
        assert np.array_equal(start[:, :12], result[:, :12])
        seen = encoder_view(Image.fromarray(start).crop(windows[1].box), rest[:, 8:], SIDE)
        with torch.no_grad():
            encoded = TOKENIZER.encode(seen[None])[0]
        assert known.forced[row, -16:].reshape(4, 4).sum(dim=0).tolist() == [4, 0, 0, 0]  # half of it, less the band
        assert torch.equal(known.tokens[row], encoded)
        assert torch.equal(second.tokens[row][known.forced[row]], encoded[known.forced[row]])
    assert not np.array_equal(results[0], results[1])


def test_every_window_draws_other_random_numbers() -> None:
    """With one seed for all, two windows that see the same would show the same."""
    mask = mask_of(24, 8, (8, 0, 24, 8))
    gray = Image.new("RGB", (24, 8), "gray")
    (result,) = filled(gray, mask, [Window(8, 0, 8), Window(16, 0, 8)], feather=0.0, top_k=0, top_p=0.0, cfg=0.0)
    assert not np.array_equal(result[:, 8:16], result[:, 16:24])


# --- colors that meet


def test_matched_keeps_what_is_seen_and_moves_the_mask_along() -> None:
    mask = mask_of(16, 16, (4, 5, 12, 10))
    outside = ~torch.from_numpy(mask)
    seen, drawing = normal(1, 3, 16, 16), normal(2, 3, 16, 16, seed=1)
    result = match_colors(drawing, seen, mask)
    assert result.shape == (2, 3, 16, 16)
    assert largest_difference(result[..., outside], seen.expand(2, -1, -1, -1)[..., outside]) < 1e-5
    # A drawing that is off by one color all over comes out right, in the mask too.
    off = torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    assert largest_difference(match_colors(seen + off, seen, mask), seen) < 1e-5
    others = torch.where(outside, seen, 9.0)
    assert torch.equal(match_colors(drawing, others, mask), result)


def test_matched_with_nothing_or_all_known() -> None:
    seen, drawing = normal(1, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
    assert torch.equal(match_colors(drawing, seen, mask_of(8, 8, (0, 0, 8, 8))), drawing)
    assert largest_difference(match_colors(drawing, seen, mask_of(8, 8)), seen.expand(2, -1, -1, -1)) < 1e-5


def test_matched_takes_a_mask_of_another_resolution() -> None:
    seen, drawing = normal(1, 3, 8, 8), normal(1, 3, 8, 8, seed=1)
    for fine in (mask_of(32, 32, (9, 8, 16, 16)), mask_of(4, 4, (1, 1, 2, 2))):
        coarse = mask_of(8, 8, (2, 2, 4, 4))
        assert torch.equal(match_colors(drawing, seen, fine), match_colors(drawing, seen, coarse))


def test_match_changes_the_mask_alone() -> None:
    image, mask = noise(16, 16), mask_of(16, 16, (5, 5, 11, 11))
    one, other = (filled(image, mask, feather=0.0, color_match=match)[0] for match in (True, False))
    assert not np.array_equal(one[mask], other[mask])
    assert np.array_equal(one[~mask], other[~mask])


# --- results


def test_every_result_is_its_own_and_does_not_depend_on_how_many_there_are() -> None:
    image, mask = noise(20, 14), mask_of(20, 14, (5, 3, 15, 11))
    results = filled(image, mask, labels=[1] * 5, top_k=0, top_p=0.0)
    assert len({result.tobytes() for result in results}) == 5
    for count, batch_size in ((2, 16), (5, 2), (5, 1)):
        again = filled(image, mask, labels=[1] * count, batch_size=batch_size, top_k=0, top_p=0.0)
        assert len(again) == count
        for one, other in zip(again, results, strict=False):
            assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize("change", [{"seed": 4}, {"labels": [2]}, {"labels": [CLASSES]}, {"cfg": 0.0}, {"top_k": 1}])
def test_options_reach_the_draws(change: dict[str, Any]) -> None:
    image, mask = noise(SIDE, SIDE), mask_of(SIDE, SIDE, (1, 1, 7, 7))
    options: dict[str, Any] = {"labels": [1], "top_k": 0, "top_p": 0.0, "cfg": 6.0}
    (one,), (same,), (other,) = (filled(image, mask, **(options | more)) for more in ({}, {}, change))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("feather", [-0.1, float("nan"), float("inf")])
def test_a_feather_out_of_range_is_refused(feather: float) -> None:
    with refused(f"feather={feather}", "0 (a hard edge)"):
        filled(noise(9, 9), mask_of(9, 9, (2, 2, 4, 4)), feather=feather)


@pytest.mark.parametrize("option", [{"dilate": -1}, {"batch_size": 0}, {"batch_size": -2}, {"cfg": -1.0}, {"seed": -1}])
def test_other_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with refused(f"{name}={option[name]}"):
        filled(noise(9, 9), mask_of(9, 9, (2, 2, 4, 4)), **option)


# --- super-resolution


def enlarged(image: Image.Image, **options: Any) -> list[Image.Image]:
    rest = {name: options.pop(name) for name in ("num_scales", "consistent", "seed") if name in options}
    sampling = apply_options(FOR_METRICS, options)
    return upscale(MODEL, TOKENIZER, image, [1, 1], sampling=sampling, **({"seed": 3} | rest))


@pytest.mark.parametrize(
    ("side", "num_scales", "kept"),
    [(1, None, 1), (2, None, 1), (3, None, 1), (4, None, 2), (7, None, 2), (4, 1, 1), (4, 3, 3), (7, 2, 2)],
)
def test_the_coarse_tokens_are_those_of_the_enlarged_image(
    drawn: Draws, side: int, num_scales: int | None, kept: int
) -> None:
    """8 px are 4 tokens, so those of 4 px are 2, and 2 px are one."""
    small = noise(side, side)
    enlarged(small, num_scales=num_scales, top_k=0, top_p=0.0)
    ((_, out),) = drawn
    with torch.no_grad():
        tokens = TOKENIZER.encode(to_tensor(small.resize((SIDE, SIDE), Image.Resampling.LANCZOS))[None])
    coarse = TOKENIZER.scales.levels() < kept
    assert torch.equal(out.tokens[:, coarse], tokens.expand(2, -1)[:, coarse])
    if kept < len(SIDES):
        assert not torch.equal(out.tokens[:, ~coarse], tokens.expand(2, -1)[:, ~coarse])
        assert not torch.equal(out.tokens[0], out.tokens[1])


@pytest.mark.parametrize("size", [(7, 3), (2, 4), (6, 1)])
def test_an_image_that_is_not_square_keeps_all_tokens_of_its_scales(drawn: Draws, size: tuple[int, int]) -> None:
    """Those beside it too, where it is continued."""
    small = noise(*size)
    enlarged(small, num_scales=2)
    ((known, out),) = drawn
    coarse = TOKENIZER.scales.levels() < 2
    assert torch.equal(known.forced, coarse.expand(2, -1))
    assert torch.equal(out.tokens[:, coarse], known.tokens[:, coarse])
    window = bounding_square(size)
    outside = ~crop_mask(np.ones(size[::-1], dtype=bool), window)
    with torch.no_grad():
        tokens = TOKENIZER.encode(encoder_view(small.crop(window.box), outside, SIDE)[None])
    assert torch.equal(known.tokens[:1], tokens)


def test_results_keep_the_color_profile() -> None:
    small = noise(4, 4)
    small.info["icc_profile"] = b"wide"
    assert {image.info["icc_profile"] for image in enlarged(small)} == {b"wide"}


def test_a_large_square_is_shown_as_if_it_were_resized_at_once() -> None:
    """A smooth image: reduced first or not, the encoder sees the same, and nothing of the mask."""
    side = 8 * SIDE + 5
    ramp = np.linspace(20, 230, side).round().astype(np.uint8)
    pixels = np.stack([np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side))] * 2, axis=-1)
    image, mask = Image.fromarray(np.ascontiguousarray(pixels[..., :3])), mask_of(side, side, (20, 20, 45, 50))
    direct = to_tensor(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    seen = encoder_view(image, mask, SIDE)
    far = torch.from_numpy(distance_from(mask_of(SIDE, SIDE, (2, 2, 6, 6))) > 1)
    assert largest_difference(seen[:, far], direct[:, far]) < 0.05
    scribbled = np.asarray(image).copy()
    scribbled[mask] = 255 - scribbled[mask]
    assert torch.equal(encoder_view(Image.fromarray(scribbled), mask, SIDE), seen)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4, 4), (8, 8)),
        ((1, 1), (8, 8)),
        ((7, 3), (8, 3)),
        ((3, 7), (3, 8)),
        ((6, 3), (8, 4)),
        ((2, 4), (4, 8)),
        ((7, 1), (8, 1)),
    ],
)
def test_the_longer_side_becomes_the_models(size: tuple[int, int], expected: tuple[int, int]) -> None:
    for image in enlarged(noise(*size)):
        assert (image.mode, image.size) == ("RGB", expected)


def reduced(image: Image.Image, size: tuple[int, int]) -> Tensor:
    return F.interpolate(to_tensor(image)[None], size=size[::-1], mode="bicubic", antialias=True)[0]


@pytest.mark.parametrize("side", [2, 4, 5])
def test_a_consistent_result_reduced_is_the_small_image(side: int) -> None:
    small = Image.blend(noise(side, side), Image.new("RGB", (side, side), "gray"), 0.5)  # white and black leave no room
    for image, free in zip(enlarged(small), enlarged(small, consistent=False), strict=True):
        off, without = (
            (reduced(result, small.size) - to_tensor(small)).abs().mean().item() for result in (image, free)
        )
        assert off < 0.03
        assert off < without / 5


@pytest.mark.parametrize("size", [(6, 3), (2, 4)])
def test_a_consistent_result_that_is_not_square(size: tuple[int, int]) -> None:
    small = Image.blend(noise(*size), Image.new("RGB", size, "gray"), 0.5)
    image, free = (enlarged(small, consistent=consistent)[0] for consistent in (True, False))
    off, without = ((reduced(result, size) - to_tensor(small)).abs().mean().item() for result in (image, free))
    assert off < without / 2


def test_projection() -> None:
    drawing, small = normal(2, 3, 16, 16).clamp(-1, 1) * 0.5, normal(1, 3, 4, 4, seed=1).clamp(-1, 1) * 0.5
    before = drawing.clone()
    result = back_project(drawing, small)
    assert torch.equal(drawing, before)
    assert result.shape == drawing.shape
    assert result.abs().max() <= 1
    back = F.interpolate(result, size=(4, 4), mode="bicubic", antialias=True)
    assert largest_difference(back, small.expand(2, -1, -1, -1)) < 1e-2
    # What agrees already stays as it is.
    agreeing = F.interpolate(result, size=(4, 4), mode="bicubic", antialias=True)[:1]
    assert largest_difference(back_project(result[:1], agreeing), result[:1]) < 1e-5


def test_results_of_upscaling_are_their_own() -> None:
    one, other = enlarged(noise(4, 4), top_k=0, top_p=0.0)
    assert one.tobytes() != other.tobytes()
    again = enlarged(noise(4, 4), top_k=0, top_p=0.0)
    assert [image.tobytes() for image in again] == [one.tobytes(), other.tobytes()]
    assert enlarged(noise(4, 4), top_k=0, top_p=0.0, seed=9)[0].tobytes() != one.tobytes()


@pytest.mark.parametrize("size", [(8, 8), (8, 2), (2, 8), (100, 100)])
def test_images_that_are_not_smaller_are_refused(size: tuple[int, int]) -> None:
    with refused(f"{size[0]}x{size[1]} px", "smaller", "8x8 px"):
        enlarged(noise(*size))


@pytest.mark.parametrize("num_scales", [-1, 0, 4])
def test_scales_that_there_are_not_are_refused(num_scales: int) -> None:
    with refused(f"num_scales={num_scales}", "1..3"):
        enlarged(noise(4, 4), num_scales=num_scales)
