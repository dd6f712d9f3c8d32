"""Losses of the tokenizer's training. Images are (B, 3, H, W) in [-1, 1]."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class PixelLosses(NamedTuple):
    """Means over all pixels and channels."""

    l1: Tensor
    l2: Tensor


def pixel_losses(reconstruction: Tensor, images: Tensor) -> PixelLosses:
    """Mean absolute and mean squared difference, both 0-dimensional, with gradients to the reconstruction."""
    return PixelLosses(F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images))


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio of each image in dB, after clamping; the range of the pixels is 2."""
    error = (reconstruction.detach().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
    return -10 * (error.clamp(min=1e-10) / 4).log10()
