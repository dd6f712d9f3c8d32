"""Self-correction: train the transformer on pyramids with wrong tokens (Infinity, arXiv 2412.04431, section 3.4).

In sampling, each scale builds on the mistakes of the coarser ones; plain training has none. Here a share of the tokens
is replaced by near ones, and the finer scales' targets become the residual that remains after the wrong tokens.
B batch, L tokens of all scales, V codebook size, C latent channels, H side of the last scale.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor

from tokenizer.quantizer import Quantizer, resize_down
from var.data.config import Count, Section


class SelfCorrectionConfig(Section):
    """Wrong tokens in training (Infinity, arXiv 2412.04431, section 3.4)."""

    share: Annotated[float, Field(gt=0, le=1)]  # largest share of a sample's tokens replaced, drawn uniformly from 0 on
    neighbors: Count = 100  # nearest codewords that a token's replacement is drawn from


def nearest_codewords(quantizer: Quantizer, count: int) -> Tensor:
    """Find each codeword's nearest other ones, (V, count) int64, the nearest first; fewer where V is smaller."""
    codebook = quantizer.codebook.weight.detach()
    codebook = F.normalize(codebook, dim=-1) if quantizer.cosine else codebook
    distances = torch.cdist(codebook, codebook)
    distances.fill_diagonal_(torch.inf)
    return distances.topk(min(count, len(codebook) - 1), largest=False).indices


def perturb(
    quantizer: Quantizer, tokens: Tensor, neighbors: Tensor, share: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace tokens by neighbors, and quantize anew the residuals that the finer scales then have to encode.

    A target is the codeword nearest to the right token's vector plus the error of the coarser scales there: without
    replacements in coarser scales it is the token itself.

    Args:
        tokens: (B, L) int64.
        neighbors: (V, N) int64, see `nearest_codewords`.
        share: (B,) in [0, 1], the probability that a token of the sample is replaced.
        noise: (B, L, 2) uniform in [0, 1): which tokens are replaced, and by which neighbors.

    Returns:
        The teacher-forcing input of the wrong tokens, (B, L - 1, C) float32, and the targets, (B, L) int64.
    """
    scales, codebook = quantizer.scales, quantizer.codebook
    replaced = noise[..., 0] < share[:, None]
    ranks = (noise[..., 1] * neighbors.shape[1]).long()
    targets, inputs = [], []
    right = wrong = torch.zeros((), device=tokens.device)  # f_hat of the coarser scales, (B, C, H, H) each
    for k, (given, swapped, rank) in enumerate(
        zip(scales.split(tokens), scales.split(replaced), scales.split(ranks), strict=True)
    ):
        codes = codebook(given)  # (B, side * side, C)
        target = given
        if k > 0:
            inputs.append(quantizer.next_input(wrong, k))
            lacking = resize_down(right - wrong, scales.sides[k])
            target = quantizer.nearest(rearrange(codes, "b (h w) c -> b c h w", h=scales.sides[k]) + lacking)
        targets.append(target)
        shown = torch.where(swapped, neighbors[target, rank], target)
        right = right + quantizer.scale_update(codes, k)
        wrong = wrong + quantizer.scale_update(codebook(shown), k)
    return torch.cat(inputs, dim=1), scales.join(targets)
