"""What the objectives that pre-train an encoder share: patches of pixels as targets, and errors of their predictions.

B batch, N patches, P side of a patch in pixels, D width of the encoder, C numbers that describe a patch, V
codebook size, W width of a decoder.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, check_types
from var.models.aim import Encoder, EncoderConfig
from var.models.transformer import check_mlp_ratio

VARIANCE_EPS = 1e-6  # of a patch, when targets are normalized


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder, which is discarded after pre-training. Raises InputError: a value that cannot work."""

    most_blocks: ClassVar[int] = DEEPEST
    widths: ClassVar[tuple[int, int]] = (4, 2**16)  # the smallest and the largest

    depth: int = 8  # number of blocks
    width: int = 512  # W, a multiple of 4 and of heads
    heads: int = 8
    mlp_ratio: float = 4.0  # hidden width of a block's MLP over W

    def __post_init__(self) -> None:
        smallest, largest = self.widths
        at_most = {"depth": self.most_blocks, "width": largest}
        check_types(self, at_least_one=("depth", "heads"), at_most=at_most)
        if self.width < smallest:
            raise InputError(f"width={self.width} must be in {smallest}..{largest}")
        if self.width % self.heads or self.width % 4:
            raise InputError(f"width={self.width} must be a multiple of heads={self.heads} and of 4")
        check_mlp_ratio(self.mlp_ratio)


class Pretrainer(nn.Module):
    """An encoder with what is trained beside it and discarded afterwards."""

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)


def patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, S, S), S a multiple of P -> the pixels of each patch, row by row: (B, N, P * P * 3), colors last."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patches`: (B, N, P * P * 3), N a square number -> (B, 3, S, S)."""
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each patch (..., C), and the root of its (unbiased) variance plus VARIANCE_EPS, (..., 1) each."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + VARIANCE_EPS).sqrt()


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch (..., C) without its mean, over its standard deviation: the targets of AIM and MAE, (..., C)."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def denormalize_patches(normalized: Tensor, patches: Tensor) -> Tensor:
    """The inverse of `normalize_patches`, with the mean and deviation of `patches`; (..., C) each."""
    mean, deviation = patch_statistics(patches)
    return normalized * deviation + mean


def pixel_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each patch: predictions and targets (B, N, C) -> (B, N) float32."""
    return (predictions.float() - targets).square().mean(dim=-1)


def absolute_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    """Absolute error of each patch: predictions and targets (B, N, C) -> (B, N) float32."""
    return (predictions.float() - targets).abs().mean(dim=-1)


def token_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each patch's token: logits (B, N, V), tokens (B, N) int64 -> (B, N) float32."""
    return F.cross_entropy(predictions.float().transpose(1, 2), targets, reduction="none")
