"""Between tensors and pictures."""

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> B RGB pictures; values are rounded to the nearest of 256."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(np.ascontiguousarray(image)) for image in rearrange(pixels, "b c h w -> b h w c").cpu().numpy()]


def from_pil(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return rearrange(pixels, "h w c -> c h w").float() / 127.5 - 1


def sheet(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> one (3, rows * (H + gap) - gap, columns * (W + gap) - gap) in [0, 1], white between."""
    images = (images.float().clamp(-1, 1) + 1) / 2
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    padded = torch.nn.functional.pad(images, (0, gap, 0, gap), value=1.0)
    joined = rearrange(padded, "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)
    return joined[:, : joined.shape[1] - gap, : joined.shape[2] - gap]
