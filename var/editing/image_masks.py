"""Image masks: which pixels and which tokens are inpainted (zero-shot editing, VAR paper, section 4.4).

H W sides of an image in pixels, K scales, L tokens of all scales. A mask is a boolean array (H, W), True where the
image is inpainted. Pure functions; arguments are never written to.
"""

import reprlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from var.editing.params import check_dilate
from var.utils.images import has_transparency, load_image, to_rgb

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are the first ones outside

MaskLike = Image.Image | Mask | Box | Sequence[Box]

SMOOTHINGS = 4  # at each size of the image, when a mask is filled smoothly

MASKS = "must be an image, a boolean array, or boxes of four whole numbers left,top,right,bottom"

BLACK_OR_WHITE = 64  # so far from black or white a channel of a mask may be
FLAT_COLORS = 16  # a drawing has at most so many others
GRAY = 24  # so much may a gray pixel's channels differ, as after JPEG

FORCED_WHOLE = 3  # scales of at most that many tokens are forced whole where anything of the image is kept


def read_mask(given: MaskLike, size: tuple[int, int]) -> Mask:
    """The mask of an image of (width, height).

    Args:
        given: an image, white in the mask; a boolean array (height, width), True in the mask; a box; or several.

    Raises:
        InputError: a mask of another size, a box without area or not inside the image, something else.
    """
    if isinstance(given, Image.Image):
        return mask_from_image(given, size)
    if isinstance(given, np.ndarray):
        if given.dtype != bool or given.shape != size[::-1]:
            raise InputError(
                f"a mask array of {given.dtype} and shape {given.shape} given: "
                f"a boolean one of shape {size[::-1]} needed"
            )
        return given.copy()
    if not isinstance(given, list | tuple):
        raise InputError(f"a mask of type {type(given).__name__} given: it {MASKS}")
    boxes = [given] if len(given) == 4 and not isinstance(given[0], list | tuple) else given
    try:
        corners = np.array(boxes) if boxes else np.empty((0, 4), dtype=int)
    except ValueError:  # lists of several lengths
        corners = np.empty(0)
    if corners.dtype.kind != "i" or corners.ndim != 2 or corners.shape[1] != 4:
        raise InputError(f"mask {reprlib.repr(given)} {MASKS}")
    return mask_from_boxes(corners.tolist(), size)


def mask_from_boxes(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> Mask:
    """Boxes in an image of (width, height) -> (H, W).

    Raises:
        InputError: a box without area, or one that reaches outside the image.
    """
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InputError(
                f"box {left},{top},{right},{bottom} must be left,top,right,bottom with left < right and top < bottom "
                f"inside the image of {width}x{height} px"
            )
        mask[top:bottom, left:right] = True
    return mask


def mask_from_image(image: Image.Image, size: tuple[int, int]) -> Mask:
    """A mask, white where an image of (width, height) is inpainted -> (H, W).

    Brighter than half of white is white; transparent parts are kept.

    Raises:
        InputError: the mask cannot be read, is of another size, or marks something, but too dark; a photo, opaque or
            with transparent parts, of which the transparent ones may be meant.
    """
    opaque = to_rgb(load_image(image, "the mask"), background="black")
    gray = np.asarray(opaque.convert("L"))
    _refuse_erased_photo(image)
    _refuse_photo(opaque)
    if gray.shape != size[::-1]:
        raise InputError(
            f"the mask has {gray.shape[1]}x{gray.shape[0]} px and the image {size[0]}x{size[1]} px: give a mask of "
            "the image's size"
        )
    mask: Mask = gray > 127
    if not mask.any() and image.mode in ("L", "I", "F", "I;16") and np.asarray(image).any():
        brightest = np.asarray(image).max()
        raise InputError(f"the mask's brightest pixel is {brightest:g}: white, more than half of the full scale, marks")
    return mask


def _refuse_erased_photo(image: Image.Image) -> None:
    """Raise InputError if an image has transparent parts and its visible ones are not a drawing but a photo.

    Of a photo with an erased hole the hole is meant, the opposite of what its brightness gives.
    """
    if not has_transparency(image) or image.mode.startswith("I"):
        return
    pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    visible = pixels[pixels[:, 3] > 127, :3]
    if len(visible) == len(pixels):
        return
    visible = visible[:: len(visible) // 10_000 + 1]
    black, white = (visible < BLACK_OR_WHITE).all(axis=-1), (visible > 255 - BLACK_OR_WHITE).all(axis=-1)
    soft = visible[~(black | white)]
    if len(soft) > 0.1 * len(visible) and len(np.unique(soft, axis=0)) > FLAT_COLORS:
        raise InputError(
            "the mask is a photo with transparent parts, of which either may be meant: draw white where the image is "
            "to be filled, on black or on transparent"
        )


def _refuse_photo(image: Image.Image) -> None:
    """Raise InputError if an RGB image is no drawing in grays or a few colors but a photo.

    Grays may be many, as of a soft brush. Colors are counted in steps of 32, and those of a few pixels do not count:
    JPEG makes such where two colors meet.
    """
    pixels = np.asarray(image).reshape(-1, 3)
    colored = pixels[pixels.max(axis=-1) - pixels.min(axis=-1) > GRAY]  # no difference is below 0
    found = np.bincount((colored // 32).astype(int) @ (64, 8, 1), minlength=8**3)
    if len(colored) > 0.1 * len(pixels) and (found > 0.001 * len(pixels)).sum() > FLAT_COLORS:
        raise InputError(
            "the mask is a photo, whose brightness marks nothing: draw white where the image is to be filled, on black "
            "or on transparent"
        )


def token_mask(mask: Mask, grid_size: int) -> Tensor:
    """Of a square (H, H), the last scale's tokens with nothing of the mask: (grid_size, grid_size) bool."""
    return F.adaptive_max_pool2d(torch.from_numpy(mask)[None, None].float(), grid_size)[0, 0] == 0


def mask_at_scales(forced: Tensor, scales: Scales, dilate: int = 0) -> Tensor:
    """Forced tokens of each scale: those of the last one, resized bilinearly; more than half is True.

    Scales of at most three tokens are forced whole, unless nothing at all is forced.

    Tokens beside the mask describe some of it too, since the encoder looks beyond a token's own pixels. So the mask can
    be dilated, at the scales whose tokens are narrower than twice the band that this adds: with a wider token, mostly
    outside the mask, more would be lost than gained.

    Args:
        forced: (side, side) bool of the last scale, True where the token is kept.
        scales: K scales.
        dilate: width of the band around the mask that is generated too, in tokens of the last scale.

    Returns:
        (L,) bool.

    Raises:
        InputError: dilate below 0.
    """
    check_dilate(dilate)
    dilate = min(dilate, scales.sides[-1])  # more than all of the map changes nothing
    near = F.max_pool2d((~forced)[None, None].float(), 2 * dilate + 1, stride=1, padding=dilate)
    parts = []
    for side, length in zip(scales.sides, scales.lengths, strict=True):
        wide = scales.sides[-1] >= 2 * dilate * side
        mask_k = forced[None, None].float() if wide else 1 - near
        resized = F.interpolate(mask_k, size=(side, side), mode="bilinear").flatten() > 0.5
        parts.append(forced.any().expand(length) if length <= FORCED_WHOLE else resized)
    return torch.cat(parts)


def pull_push_fill(pixels: Tensor, mask: Tensor) -> Tensor:
    """Fill a mask smoothly from the known pixels around it, nearly as a membrane fixed at the mask's edge would.

    The image is halved until the mask is gone, known pixels alone counting; on the way back the mask takes what the
    half-size image has there (pull-push, Gortler et al., The Lumigraph, 1996, section 3.4.2), smoothed at each size.

    Args:
        pixels: (B, C, H, W) float; finite in the mask, and otherwise without influence there.
        mask: (H, W) bool.

    Returns:
        (B, C, H, W): the pixels themselves outside the mask; 0 where nothing is known at all.
    """
    if not mask.any():
        return pixels
    known = (~mask).to(pixels)[None, None]
    if mask.numel() == 1:
        return pixels * known
    share = F.avg_pool2d(known, 4, stride=2, padding=1, ceil_mode=True)
    half = F.avg_pool2d(pixels * known, 4, stride=2, padding=1, ceil_mode=True) / share.clamp(min=1 / 16)
    filled = F.interpolate(pull_push_fill(half, share[0, 0] == 0), size=mask.shape, mode="bilinear")
    for _ in range(SMOOTHINGS):
        filled = torch.where(mask, filled, pixels)
        filled = F.avg_pool2d(F.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.where(mask, filled, pixels)


def masked_downscale(pixels: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """An image (B, C, H, W) and its mask (H, W) by a whole factor: a cell with any known pixel is the mean of those."""
    known = (~mask).to(pixels)[None, None]
    share = F.avg_pool2d(known, factor, ceil_mode=True)
    sums = F.avg_pool2d(pixels * known, factor, ceil_mode=True)
    return sums / share.clamp(min=1 / (2 * factor**2)), share[0, 0] == 0


def feathered_alpha(mask: Mask, feather: float) -> NDArray[np.float32]:
    """Return the opacity of the new image, (H, W): 1 in the mask, falling until `feather` pixels outside it, then 0."""
    from scipy import ndimage  # slow, and sampling imports this file too

    alpha = np.zeros(mask.shape, dtype=np.float32)
    box = Image.fromarray(mask).getbbox()
    if box is None:
        return alpha
    left, top, right, bottom = box
    margin = int(feather) + 1  # distances take their time, and all else is farther away
    near = slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)
    distance = ndimage.distance_transform_edt(~mask[near])
    alpha[near] = np.where(distance <= feather, 1 - distance / (feather + 1), 0)
    return alpha


def overlay(image: Image.Image, mask: Mask) -> Image.Image:
    """The image with its mask in red, half transparent."""
    red = Image.blend(image, Image.new("RGB", image.size, (255, 0, 0)), 0.5)
    return Image.composite(red, image, Image.fromarray(mask))
