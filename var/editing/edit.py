"""Zero-shot editing: known tokens stay, the model draws the rest (VAR paper, section 4.4).

A picture is seen through square windows. What is known of a window becomes tokens, without a look into the hole; the
model draws the others to go with them; the result is laid over the picture, which stays as it was outside the hole.

B results, L tokens of all scales, S side of the model's pictures, m side of a small one.
"""

from collections.abc import Iterable
from itertools import cycle
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.editing.image_masks import Hole, feathered_alpha, mask_at_scales, masked_downscale, pull_push_fill, token_mask
from var.editing.windows import Window, bounding_square, crop_mask, paste, remove_window
from var.models.var import VAR
from var.sampling.generate import Known, SamplingOptions, check_batch_size, generate_batches
from var.sampling.logits import derive_seed
from var.utils.images import to_pil, to_tensor

BACK_PROJECTIONS = 10


class DrawOptions(SamplingOptions, total=False):
    """What can be asked of every edit: how tokens are drawn, and how many results at once."""

    batch_size: int


class InpaintOptions(DrawOptions, total=False):
    """What can be asked of an edit with a hole: the arguments of these names of `inpaint_windows`."""

    dilate: int
    hide: bool
    composite: bool
    match: bool
    feather: float | None


def inpaint_windows(
    model: VAR,
    vqvae: VQVAE,
    picture: Image.Image,
    hole: Hole,
    windows: Iterable[Window],
    labels: list[int],
    dilate: int = 1,
    hide: bool = True,
    composite: bool = True,
    match: bool = True,
    feather: float | None = None,
    **options: Unpack[DrawOptions],
) -> list[Image.Image]:
    """Draw a picture's hole anew, one result a label.

    Args:
        picture: RGB, of any size.
        hole: of the picture.
        windows: looked through one after the other; each fills what is left of the hole in it.
        labels: B labels; model.config.num_classes for no class.
        dilate: so many more tokens around the hole are drawn anew: the encoder looks beyond a token's pixels, so those
            beside the hole describe it too.
        hide: the hole's pixels are hidden before encoding, by a smooth continuation of those around it.
        composite: the result is the picture itself outside the hole; without it, the model's drawing of all it saw.
        match: shift the drawing's colors smoothly so that they meet those around the hole. Goes with composite.
        feather: over so many pixels outside the hole the drawing fades into the picture; None: half a token.
        options: as `generate_batches` takes them.

    Returns:
        B pictures of the same size.

    Raises:
        InputError: an option out of range.
    """
    if feather is not None and not 0 <= feather < float("inf"):
        raise InputError(f"feather={feather} must be 0 (a hard edge) or more pixels")
    if composite and not hole.any():
        return [picture.copy() for _ in labels]
    pictures, seed = [picture], options.get("seed", 0)
    for n, window in enumerate(windows):
        square_hole, outside = ~crop_mask(~hole, window), ~crop_mask(np.ones_like(hole), window)
        hidden = square_hole if hide else outside
        seen = torch.stack([encoder_view(p.crop(window.box), hidden, vqvae.config.image_side) for p in pictures])
        keep = mask_at_scales(token_mask(square_hole, vqvae.scales.sides[-1]), vqvae.scales, dilate)
        options["seed"] = derive_seed(seed, n)
        drawn = generate_masked(model, vqvae, seen, keep, labels, **options)
        if composite and match:
            drawn = match_colors(drawn, seen, square_hole)
        half_token = window.side / vqvae.scales.sides[-1] / 2
        laid_over = crop_mask(hole, window) if composite else np.ones_like(square_hole)
        alpha = feathered_alpha(laid_over, half_token if feather is None else feather)
        squares = [square.resize((window.side,) * 2, Image.Resampling.LANCZOS) for square in to_pil(drawn)]
        pictures = [paste(p, square, alpha, window) for p, square in zip(cycle(pictures), squares, strict=False)]
        hole = remove_window(hole, window)
    return pictures


def upscale(
    model: VAR,
    vqvae: VQVAE,
    picture: Image.Image,
    labels: list[int],
    num_scales: int | None = None,
    consistent: bool = True,
    **options: Unpack[DrawOptions],
) -> list[Image.Image]:
    """Draw the fine scales of a small picture, one result a label.

    The picture is enlarged to the model's side (Lanczos) and encoded as any other. Averaged over large cells, the
    features of an enlarged picture are close to those of the sharp one, as both show the same at that size. So the
    tokens of coarse maps are kept; the finer ones would describe the picture's blur and are drawn.
    Encoded at its own size, it would show the encoder objects smaller and sharper than those it was trained on.

    Args:
        picture: RGB, smaller than the model's side; its longer side becomes the model's.
        labels: B labels; model.config.num_classes for no class.
        num_scales: scales that are kept; None: those whose cells are at least as large as when the picture is in
            full size and its last token map is used.
        consistent: the result, reduced to the small picture's size, is the small picture.
        options: as `generate_batches` takes them.

    Returns:
        B pictures.

    Raises:
        InputError: the picture is not smaller than the model's, num_scales not in 1..K, an option out of range.
    """
    side, sides = vqvae.config.image_side, vqvae.scales.sides
    window = bounding_square(picture.size)
    if window.side >= side:
        raise InputError(
            f"the picture has {picture.width}x{picture.height} px: upscale takes pictures smaller than the model's, "
            f"{side}x{side} px"
        )
    if num_scales is not None and not 1 <= num_scales <= len(sides):
        raise InputError(f"num_scales={num_scales} must be in 1..{len(sides)}")
    kept = num_scales or max(sum(s * side <= sides[-1] * window.side for s in sides), 1)
    outside = ~crop_mask(np.ones(picture.size[::-1], dtype=bool), window)
    square = picture.crop(window.box)
    keep = vqvae.scales.levels() < kept  # beside the picture too: its continuation there is cropped away in the end
    drawn = generate_masked(model, vqvae, encoder_view(square, outside, side)[None], keep, labels, **options)
    if consistent:
        drawn = back_project(drawn, encoder_view(square, outside, window.side)[None])
    left, top = (round(-edge * side / window.side) for edge in (window.left, window.top))
    width, height = (max(round(length * side / window.side), 1) for length in picture.size)
    results = [result.crop((left, top, left + width, top + height)) for result in to_pil(drawn)]
    for result in results:
        result.info = picture.info  # with its color profile
    return results


def encoder_view(square: Image.Image, hidden: Hole, side: int) -> Tensor:
    """What the encoder is shown of a square: (3, side, side) in [-1, 1], hidden pixels continued from the others.

    They are hidden before the square is resized, which would mix them with their neighbors. A square four times as
    large or more is first reduced by a whole factor, to twice the side or more, a cell the mean of its known pixels.
    """
    factor = 1
    if hidden.any():
        pixels, hole = to_tensor(square)[None], torch.from_numpy(hidden)
        if square.width >= 4 * side:
            factor = square.width // (2 * side)
            pixels, hole = masked_downscale(pixels, hole, factor)
        square = to_pil(pull_push_fill(pixels, hole))[0]
    length = hidden.shape[0] / factor  # the last cells may reach over the edge
    return to_tensor(square.resize((side, side), Image.Resampling.LANCZOS, box=(0, 0, length, length)))


@torch.inference_mode()
def generate_masked(
    model: VAR,
    vqvae: VQVAE,
    seen: Tensor,
    keep: Tensor,
    labels: list[int],
    batch_size: int = 16,
    **sampling: Unpack[SamplingOptions],
) -> Tensor:
    """Encode what is seen, keep what is to be kept, draw the rest.

    Args:
        seen: (B, 3, S, S) in [-1, 1], or (1, 3, S, S) for all.
        keep: (L,) bool.
        labels: B labels.

    Returns:
        (B, 3, S, S) in [-1, 1], on the CPU.
    """
    check_batch_size(batch_size)
    device = model.position.device
    tokens = torch.cat([vqvae.encode(part.to(device)) for part in seen.split(batch_size)])
    known = Known(tokens.expand(len(labels), -1), keep.to(device).expand(len(labels), -1))
    return torch.cat(
        [part.images.cpu() for part in generate_batches(model, vqvae, labels, batch_size, known, **sampling)]
    )


def match_colors(drawn: Tensor, seen: Tensor, hole: Hole) -> Tensor:
    """Shift the colors of what was drawn in a hole so that they meet the known ones around it.

    The difference between what is known and what was drawn there is continued smoothly into the hole and added, as
    Poisson image editing does it by a membrane (Perez et al., 2003, equation 5).

    Args:
        drawn: (B, 3, S, S).
        seen: (B, 3, S, S) or (1, 3, S, S); without influence in the hole.
        hole: (m, m), of the same square at any resolution.

    Returns:
        (B, 3, S, S): what is seen outside the hole.
    """
    touched = F.adaptive_max_pool2d(torch.from_numpy(hole)[None, None].float(), drawn.shape[-1])[0, 0] > 0
    return drawn + pull_push_fill(seen - drawn, touched)


def back_project(drawn: Tensor, small: Tensor) -> Tensor:
    """Change pictures (B, 3, S, S) so that they become the small one (1, 3, m, m) when they are reduced.

    What is missing after reduction is enlarged and added, again and again (Irani and Peleg, 1991).
    """
    for _ in range(BACK_PROJECTIONS):
        reduced = F.interpolate(drawn, size=small.shape[-2:], mode="bicubic", antialias=True)
        drawn = (drawn + F.interpolate(small - reduced, size=drawn.shape[-2:], mode="bicubic")).clamp(-1, 1)
    return drawn
