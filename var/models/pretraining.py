"""What the objectives that pre-train an encoder share: patches of pixels as targets, and errors of their predictions.

B batch, N patches, P side of a patch in pixels, D width of the encoder, C numbers that describe a patch, V
codebook size.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.models.aim import Encoder, EncoderConfig

VARIANCE_EPS = 1e-6  # of a patch, when targets are normalized


class Pretrainer(nn.Module):
    """An encoder with what is trained beside it and discarded afterwards."""

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)


def patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, S, S) -> the pixels of each patch, row by row: (B, N, P * P * 3)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patches`."""
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each patch (..., C), and the root of its (unbiased) variance, (..., 1) each."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + VARIANCE_EPS).sqrt()


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch (..., C) without its mean, over its standard deviation: AIM's targets (section 3.2)."""
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
