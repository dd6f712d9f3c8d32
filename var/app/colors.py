"""Colors for vectors and for numbers."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TILE = 128  # px of a map, at least
OUTLIERS = 0.02  # share of the values at either end that get the same color
GRADIENT = np.array([(28, 24, 72), (168, 52, 104), (240, 150, 70), (255, 246, 190)], dtype=np.float64)  # 0 to 1


def fit_colors(vectors: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what turns vectors (..., D) into colors (..., 3) uint8 by the first principal components of (N, D)."""
    vectors = vectors.double()
    mean = vectors.mean(dim=0)
    centered = vectors - mean
    basis = torch.linalg.eigh(centered.T @ centered).eigenvectors.flip(1)[:, :3]  # (D, up to 3)
    basis = basis * basis.sum(dim=0).sign().where(basis.sum(dim=0) != 0, 1)  # the sign is not the data's
    ends = torch.quantile((centered @ basis)[: 2**22], torch.tensor([OUTLIERS, 1 - OUTLIERS]).double(), dim=0)
    low, span = ends[0], (ends[1] - ends[0]).clamp(min=1e-12)

    def color(given: Tensor) -> Tensor:
        parts = (((given.double() - mean) @ basis - low) / span).clamp(0, 1)
        missing = parts.new_zeros(*parts.shape[:-1], 3 - parts.shape[-1])
        return (torch.cat([parts, missing], dim=-1) * 255).round().to(torch.uint8)

    return color


def heat(values: Tensor) -> Tensor:
    """Return colors (..., 3) uint8 of numbers (...): dark for 0, bright for 1."""
    places = np.linspace(0, 1, len(GRADIENT))
    channels = [np.interp(values.double().numpy(), places, GRADIENT[:, channel]) for channel in range(3)]
    return torch.from_numpy(np.stack(channels, axis=-1).round().astype(np.uint8))


def as_map(colors: Tensor) -> Image.Image:
    """Return the image of colors (side * side, 3) uint8 row by row, with squares for pixels."""
    side = round(len(colors) ** 0.5)
    small = Image.fromarray(colors.reshape(side, side, 3).numpy())
    return small.resize((max(TILE // side, 1) * side,) * 2, Image.Resampling.NEAREST)
