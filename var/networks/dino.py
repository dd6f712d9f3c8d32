"""The self-supervised ViT-S/16 of DINO (arXiv 2104.14294), in torchvision's VisionTransformer.

B batch, D width.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.networks.frozen import IMAGENET, Backbone, IntermediateLayers, read_or_download
from var.utils.torchvision_compat import import_torchvision
from var.utils.weights import StateDict, on_meta

URL = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"
WIDTH = 384
TAPS = (2, 5, 8, 11)  # blocks, counted from 0

_NAMES = (  # pattern of DINO's names, torchvision's
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


class IntermediateBlocks(nn.Module):
    """torchvision's VisionTransformer, and the outputs of some blocks as maps of the patches.

    The learned positions are resized (bicubic) to the number of an image's patches.
    """

    def __init__(self, vit: Any, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.vit = vit
        self.blocks = IntermediateLayers(vit.encoder.layers, taps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one map (B, D, h, w) for each block in `taps`."""
        vit = self.vit
        patches = vit.conv_proj(images)  # (B, D, h, w)
        height, width = patches.shape[-2:]
        tokens = rearrange(patches, "b d h w -> b (h w) d")
        tokens = torch.cat([vit.class_token.expand(len(tokens), -1, -1), tokens], dim=1)  # (B, 1 + h w, D)
        outputs = self.blocks(tokens + self._pos_embed(height, width))
        return [rearrange(x[:, 1:], "b (h w) d -> b d h w", h=height) for x in outputs]

    def _pos_embed(self, height: int, width: int) -> Tensor:
        """(1, 1 + h w, D): the class token's, and the grid's."""
        learned = self.vit.encoder.pos_embedding
        side = int((learned.shape[1] - 1) ** 0.5)
        if (height, width) == (side, side):
            return learned
        grid = rearrange(learned[:, 1:], "1 (h w) d -> 1 d h w", h=side)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([learned[:, :1], rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)


def build(name: str) -> nn.Module:
    """Build the network without weights on the meta device."""
    models = import_torchvision().models
    with on_meta():
        vit: nn.Module = models.VisionTransformer(
            image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=WIDTH, mlp_dim=4 * WIDTH
        )
    vit.heads = nn.Identity()
    return vit


def read(name: str, weights: Path | None) -> StateDict:
    """Read the tensors by torchvision's names; None: DINO's file."""
    state = read_or_download(weights, URL)
    for pattern, replacement in _NAMES:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


def extract_maps(name: str, vit: nn.Module) -> Backbone:
    """Wrap the network in the Backbone that gives its maps."""
    return Backbone(IntermediateBlocks(vit, TAPS), (WIDTH,) * len(TAPS), IMAGENET, 16)
