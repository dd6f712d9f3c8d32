"""Convolutional encoder and decoder of VQGAN (arXiv 2012.09841), as the VAR tokenizer uses them.

B batch, C channels, H W height and width. All tensors are (B, C, H, W).
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Build the GroupNorm of all layers, for `channels` in `groups`."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, dropout, 3x3; a 1x1 shortcut where the width changes."""

    def __init__(self, width_in: int, width_out: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = group_norm(width_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of the map, residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(width, groups)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H * W, C)
        return x + self.proj(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve the side: one zero column right and one zero row below, then a 3x3 convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: nearest neighbor, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Sequential):
    """Residual blocks of one resolution; at the lowest one, each is followed by attention."""

    def __init__(
        self, width_in: int, width_out: int, blocks: int, attention: bool, groups: int, dropout: float
    ) -> None:
        layers: list[nn.Module] = []
        for i in range(blocks):
            layers.append(ResidualBlock(width_in if i == 0 else width_out, width_out, groups, dropout))
            if attention:
                layers.append(SpatialAttention(width_out, groups))
        super().__init__(*layers)


class Middle(nn.Sequential):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, width: int, groups: int, dropout: float) -> None:
        super().__init__(
            ResidualBlock(width, width, groups, dropout),
            SpatialAttention(width, groups),
            ResidualBlock(width, width, groups, dropout),
        )


class Encoder(nn.Module):
    """(B, 3, H, W) images -> (B, C, H / f, W / f) features with f = 2 ** (number of levels - 1)."""

    def __init__(
        self, base_width: int, multipliers: tuple[int, ...], blocks: int, latent_dim: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [base_width * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, base_width, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(width_in, width, blocks, i == last, groups, dropout)
            for i, (width_in, width) in enumerate(zip([base_width, *widths], widths, strict=False))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = Middle(widths[-1], groups, dropout)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], latent_dim, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)  # (B, base_width, H, W)
        for i, level in enumerate(self.levels):
            x = level(x)  # (B, width of level i, H / 2**i, W / 2**i)
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """(B, C, h, w) features -> (B, 3, h * f, w * f) images; mirrors the encoder with one more block a level."""

    def __init__(
        self, base_width: int, multipliers: tuple[int, ...], blocks: int, latent_dim: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [base_width * m for m in reversed(multipliers)]  # coarse to fine
        self.conv_in = nn.Conv2d(latent_dim, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], groups, dropout)
        self.levels = nn.ModuleList(
            Level(width_in, width, blocks + 1, i == 0, groups, dropout)
            for i, (width_in, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.middle(self.conv_in(features))  # (B, width of the coarsest level, h, w)
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.upsamples):
                x = self.upsamples[i](x)
        return self.conv_out(F.silu(self.norm_out(x)))
