"""The order of SemAIM (arXiv 2312.10457): an image's patches from the most to the least semantic.

B batch, N patches, D width, H heads.
"""

import torch
from einops import rearrange
from torch import Tensor

from var.models.aim import Encoder
from var.models.transformer import run_blocks


@torch.no_grad()
def semantic_order(encoder: Encoder, images: Tensor, smoothing: float) -> Tensor:
    """Sort the patches of each image by the attention that the image as a whole pays to them, the largest first.

    Args:
        encoder: with attention between all patches, in its current state.
        images: (B, 3, S, S), normalized.
        smoothing: see `smooth`.

    Returns:
        (B, N) int64, indices of the patches; those with equal attention in the order of the image.

    Raises InputError: images of another size.
    """
    attention = rearrange(mean_query_attention(encoder, images), "b (h w) -> b h w", h=encoder.config.side)
    # PyTorch 2.6 would use the weights that autocast has cast here again in the pass that is trained. They were cast
    # without gradients, so that none would reach the weights: forget them.
    torch.clear_autocast_cache()
    return smooth(attention, smoothing).flatten(1).argsort(dim=1, descending=True, stable=True)


def mean_query_attention(encoder: Encoder, images: Tensor) -> Tensor:
    """Attention of the mean query to each patch in the last block, the mean over its heads: (B, N) float32, sum 1.

    The mean of the patches' queries takes the part of a class token, which the encoder does not have. Images are
    (B, 3, S, S), normalized.
    """
    x = run_blocks(encoder.blocks[:-1], encoder.embed(images))  # (B, N, D)
    last = encoder.blocks[-1]
    q, k, _ = last.attention.project(last.norm_attention(x))  # (B, N, H, D / H)
    query = q.float().mean(dim=1, keepdim=True)  # (B, 1, H, D / H)
    # A sum of products, which autocast leaves in float32: rounded scores would make equals of unlike patches.
    scores = (query * k.float()).sum(dim=-1) * last.attention.softmax_scale  # (B, N, H)
    return scores.softmax(dim=1).mean(dim=-1)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps by a Gaussian of that standard deviation in patches, 0 or more; 0 leaves them as they are.

    (B, side, side) float32 -> the same.

    At the edge the weights of what is inside the map are raised to a sum of 1.
    """
    if sigma == 0:
        return maps
    index = torch.arange(maps.shape[-1], dtype=torch.float32, device=maps.device)
    weights = (-((index[:, None] - index) ** 2) / (2 * sigma**2)).softmax(dim=1)  # of the columns around each row
    with torch.autocast(maps.device.type, enabled=False):
        return weights @ maps @ weights.T
