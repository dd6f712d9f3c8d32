"""Dropped scales: train the transformer on token pyramids without some of the scales, so that it can draw without them.

The scales that are kept encode all of the image: their tokens are quantized anew, each the residual of those before it.
B batch, L tokens of the scales that are kept, C latent channels, H side of the last scale.
"""

import torch
from torch import Tensor

from tokenizer.quantizer import Quantizer, resize_down
from var.training.rng import StepRNG

RESOLUTION = 2**24  # of the draws


def draw_kept(num_scales: int, rate: float, rng: StepRNG) -> list[int]:
    """Draw the scales that a step keeps, the same for all of its samples: the first, the last, others at 1 - rate."""
    draws = rng.integers("scale drop", RESOLUTION, max(num_scales - 2, 0))
    between = [k for k, draw in enumerate(draws, 1) if draw >= rate * RESOLUTION]
    return sorted({0, *between, num_scales - 1})


def quantize_kept(quantizer: Quantizer, features: Tensor, kept: list[int]) -> tuple[Tensor, Tensor]:
    """Quantize features over some of the scales.

    Args:
        features: (B, C, H, H).
        kept: the scales, in ascending order, 0 among them.

    Returns:
        The teacher-forcing input, (B, L - 1, C) float32, and the tokens, (B, L) int64.
    """
    rest = features.float()
    f_hat = torch.zeros_like(rest)
    inputs, tokens = [], []
    for k in kept:
        if k > 0:
            inputs.append(quantizer.next_input(f_hat, k))
        tokens.append(quantizer.nearest(resize_down(rest, quantizer.scales.sides[k])))  # (B, side * side)
        h = quantizer.scale_update(quantizer.codebook(tokens[-1]), k)  # (B, C, H, H)
        f_hat, rest = f_hat + h, rest - h
    return torch.cat(inputs, dim=1), torch.cat(tokens, dim=1)
