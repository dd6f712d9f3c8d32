"""Holes: which pixels and which tokens of a picture are drawn anew (zero-shot editing, VAR paper, section 4.4).

H W sides of a picture in pixels, K scales, L tokens of all scales. A hole is a boolean array (H, W), True where the
picture is drawn anew. Pure functions; arguments are never written to.
"""

import reprlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from var.utils.images import load_image, to_rgb

Hole = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are the first ones outside

Mask = Image.Image | Hole | Box | Sequence[Box]  # what tells where a hole is

SMOOTHINGS = 4  # at each size of the image, when a hole is filled smoothly

MASKS = "must be a picture, a boolean array, or boxes of four whole numbers left,top,right,bottom"

KEPT_WHOLE = 3  # scales of at most that many tokens are kept whole where anything of the picture is kept


def read_hole(mask: Mask, size: tuple[int, int]) -> Hole:
    """The hole of a picture of (width, height).

    Args:
        mask: a picture, white in the hole; a boolean array (height, width), True in the hole; a box; or several.

    Raises:
        InputError: a mask of another size, a box without area or not inside the picture, something else.
    """
    if isinstance(mask, Image.Image):
        return mask_hole(mask, size)
    if isinstance(mask, np.ndarray):
        if mask.dtype != bool or mask.shape != size[::-1]:
            raise InputError(
                f"a mask array of {mask.dtype} and shape {mask.shape} given: a boolean one of shape {size[::-1]} needed"
            )
        return mask.copy()
    if not isinstance(mask, list | tuple):
        raise InputError(f"a mask of type {type(mask).__name__} given: it {MASKS}")
    boxes = [mask] if len(mask) == 4 and not isinstance(mask[0], list | tuple) else mask
    try:
        corners = np.array(boxes) if boxes else np.empty((0, 4), dtype=int)
    except ValueError:  # lists of several lengths
        corners = np.empty(0)
    if corners.dtype.kind != "i" or corners.ndim != 2 or corners.shape[1] != 4:
        raise InputError(f"mask {reprlib.repr(mask)} {MASKS}")
    return box_hole(corners.tolist(), size)


def box_hole(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> Hole:
    """Boxes in a picture of (width, height) -> (H, W).

    Raises:
        InputError: a box without area, or one that reaches outside the picture.
    """
    width, height = size
    hole = np.zeros((height, width), dtype=bool)
    for box in boxes:
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InputError(
                f"box {left},{top},{right},{bottom} must be left,top,right,bottom with left < right and top < bottom "
                f"inside the picture of {width}x{height} px"
            )
        hole[top:bottom, left:right] = True
    return hole


def mask_hole(mask: Image.Image, size: tuple[int, int]) -> Hole:
    """A mask, white where a picture of (width, height) is drawn anew -> (H, W).

    Brighter than half of white is white; transparent parts are kept.

    Raises:
        InputError: the mask cannot be read, is of another size, or marks something, but too dark.
    """
    gray = np.asarray(to_rgb(load_image(mask, "the mask"), background="black").convert("L"))
    if gray.shape != size[::-1]:
        raise InputError(
            f"the mask has {gray.shape[1]}x{gray.shape[0]} px and the picture {size[0]}x{size[1]} px: give a mask of "
            "the picture's size"
        )
    hole: Hole = gray > 127
    if not hole.any() and mask.mode in ("L", "I", "F", "I;16") and np.asarray(mask).any():
        brightest = np.asarray(mask).max()
        raise InputError(f"the mask's brightest pixel is {brightest:g}: white, more than half of the full scale, marks")
    return hole


def token_mask(hole: Hole, side: int) -> Tensor:
    """(H, H) of a square that the model sees -> (side, side) bool: the last scale's tokens with nothing of the hole."""
    return F.adaptive_max_pool2d(torch.from_numpy(hole)[None, None].float(), side)[0, 0] == 0


def mask_at_scales(keep: Tensor, scales: Scales, dilate: int = 0) -> Tensor:
    """What each scale keeps: the mask of the last one, resized bilinearly, more than half keeps.

    Scales of at most three tokens are kept whole, unless nothing at all is kept.

    Tokens beside the hole describe some of it too, since the encoder looks beyond a token's own pixels. So the hole can
    be dilated, at the scales whose tokens are narrower than twice the band that this adds: with a wider token, mostly
    outside the hole, more would be lost than gained.

    Args:
        keep: (side, side) bool of the last scale.
        scales: K scales.
        dilate: width of the band around the hole that is drawn anew too, in tokens of the last scale.

    Returns:
        (L,) bool.

    Raises:
        InputError: dilate below 0.
    """
    if dilate < 0:
        raise InputError(f"dilate={dilate} must be 0 or more tokens")
    dilate = min(dilate, scales.sides[-1])  # more than all of the map changes nothing
    near = F.max_pool2d((~keep)[None, None].float(), 2 * dilate + 1, stride=1, padding=dilate)
    parts = []
    for side, length in zip(scales.sides, scales.lengths, strict=True):
        wide = scales.sides[-1] >= 2 * dilate * side
        mask = keep[None, None].float() if wide else 1 - near
        resized = F.interpolate(mask, size=(side, side), mode="bilinear").flatten() > 0.5
        parts.append(keep.any().expand(length) if length <= KEPT_WHOLE else resized)
    return torch.cat(parts)


def pull_push_fill(pixels: Tensor, hole: Tensor) -> Tensor:
    """Fill a hole smoothly from the known pixels around it, nearly as a membrane fixed at the hole's edge would.

    The image is halved until the hole is gone, known pixels alone counting; on the way back the hole takes what the
    half-size image has there (pull-push, Gortler et al., The Lumigraph, 1996, section 3.4.2), smoothed at each size.

    Args:
        pixels: (B, C, H, W) float; finite in the hole, and otherwise without influence there.
        hole: (H, W) bool.

    Returns:
        (B, C, H, W): the pixels themselves outside the hole; 0 where nothing is known at all.
    """
    if not hole.any():
        return pixels
    known = (~hole).to(pixels)[None, None]
    if hole.numel() == 1:
        return pixels * known
    share = F.avg_pool2d(known, 4, stride=2, padding=1, ceil_mode=True)
    half = F.avg_pool2d(pixels * known, 4, stride=2, padding=1, ceil_mode=True) / share.clamp(min=1 / 16)
    filled = F.interpolate(pull_push_fill(half, share[0, 0] == 0), size=hole.shape, mode="bilinear")
    for _ in range(SMOOTHINGS):
        filled = torch.where(hole, filled, pixels)
        filled = F.avg_pool2d(F.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.where(hole, filled, pixels)


def masked_downscale(pixels: Tensor, hole: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """An image (B, C, H, W) and its hole (H, W) by a whole factor: a cell with any known pixel is the mean of those."""
    known = (~hole).to(pixels)[None, None]
    share = F.avg_pool2d(known, factor, ceil_mode=True)
    sums = F.avg_pool2d(pixels * known, factor, ceil_mode=True)
    return sums / share.clamp(min=1 / (2 * factor**2)), share[0, 0] == 0


def feathered_alpha(hole: Hole, feather: float) -> NDArray[np.float32]:
    """How much of the new picture is seen, (H, W): 1 in the hole, falling until `feather` pixels outside it, then 0."""
    if not hole.any():
        return np.zeros(hole.shape, dtype=np.float32)
    alpha = np.zeros(hole.shape, dtype=np.float32)
    margin = int(feather) + 1
    near = tuple(
        slice(max(int(places.min()) - margin, 0), int(places.max()) + margin + 1) for places in np.nonzero(hole)
    )  # distances take their time, and all else is farther away
    distance = ndimage.distance_transform_edt(~hole[near])
    alpha[near] = np.where(distance <= feather, 1 - distance / (feather + 1), 0)
    return alpha


def overlay(picture: Image.Image, hole: Hole) -> Image.Image:
    """The picture with its hole in red, half transparent."""
    red = Image.blend(picture, Image.new("RGB", picture.size, (255, 0, 0)), 0.5)
    return Image.composite(red, picture, Image.fromarray(hole))
