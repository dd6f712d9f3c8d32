"""DiffAugment (arXiv 2006.10738): differentiable augmentation of the discriminator's input, real and fake.

Brightness, saturation, contrast, translation and cutout with the paper's strengths. The randomness is an argument, a
row of numbers an image, so that an image's augmentation does not depend on its batch or process.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE = 8  # random numbers an image: whether at all, three for color, two for translation, two for cutout
_TRANSLATION = 1 / 8  # the largest shift, as a share of the side
_CUTOUT = 1 / 2  # the side of the square that is cut out, as a share of the image's


def augment(images: Tensor, noise: Tensor, probability: float = 1.0) -> Tensor:
    """Augment each image by its row of noise; gradients reach the images.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        noise: (B, NOISE), uniform in [0, 1).
        probability: an image is augmented, by all operations, if the first number of its row is below this.

    Returns:
        (B, 3, H, W), by color possibly beyond [-1, 1]; pixels from outside the image and the cutout are 0, gray.
    """
    apply, brightness, saturation, contrast, down, right, row, column = noise.view(-1, NOISE, 1, 1, 1).unbind(dim=1)
    augmented = color(images, brightness, saturation, contrast)
    augmented = cutout(translate(augmented, down, right), row, column)
    return torch.where(apply < probability, augmented, images)


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add up to 0.5 either way; scale distances from gray by 0 to 2, then from the mean by 0.5 to 1.5.

    The numbers are (B, 1, 1, 1) in [0, 1); 0.5 changes nothing.
    """
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of the side either way, filling with 0.

    The numbers are (B, 1, 1, 1) in [0, 1); 0.5 changes nothing.
    """
    batch, channels, height, width = images.shape
    high, wide = (round(side * _TRANSLATION) for side in (height, width))
    # With a margin of zeros no index is clamped, so none is used twice and the gradient needs no sums.
    padded = F.pad(images, (wide, wide, high, high))
    rows = torch.arange(height, device=images.device).view(-1, 1) + 2 * high - _draw(down, 2 * high + 1)
    columns = torch.arange(width, device=images.device) + 2 * wide - _draw(right, 2 * wide + 1)
    shifted = padded.gather(2, rows.expand(batch, channels, height, width + 2 * wide))
    return shifted.gather(3, columns.expand(batch, channels, height, width))


def cutout(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Set a square of half the side to 0, centered on any pixel's corner, so that it may cross the border.

    The numbers are (B, 1, 1, 1) in [0, 1).
    """
    height, width = images.shape[-2:]
    rows = _band(height, row, images.device).unsqueeze(-1)  # (B, 1, H, 1)
    columns = _band(width, column, images.device).unsqueeze(-2)  # (B, 1, 1, W)
    return images.masked_fill(rows & columns, 0.0)


def _band(side: int, number: Tensor, device: torch.device) -> Tensor:
    """(B, 1, side) bool: true on _CUTOUT of the side around a center in 0 .. side."""
    length = round(side * _CUTOUT)
    first = _draw(number, side + 1) - length // 2  # (B, 1, 1, 1)
    index = torch.arange(side, device=device)
    return ((index >= first) & (index < first + length)).squeeze(2)


def _draw(number: Tensor, count: int) -> Tensor:
    """Map a number in [0, 1) to one of 0 .. count - 1, int64."""
    return (number * count).long().clamp(max=count - 1)  # the product may round up to count
