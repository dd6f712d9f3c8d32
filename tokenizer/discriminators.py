"""Discriminators of the tokenizer's training: PatchGAN on pixels, and heads on the features of a frozen network.

Their forward pass changes no state and takes no statistics over the batch: the logits of an image do not depend on the
rest of its batch, and gradients accumulated over micro-batches are those of the whole batch. That is why the norms are
GroupNorm where the papers use BatchNorm, and why spectral norms are advanced by a call of their own.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.errors import InputError

_SLOPE = 0.2  # of LeakyReLU
_FIRST_ITERATIONS = 15  # of a new layer's spectral norm, so that its first forward is well scaled


class SpectralConv2d(nn.Conv2d):
    """Convolution whose weight, as a matrix, is divided by its largest singular value (arXiv 1802.05957).

    The value is that of a power iteration, whose vector u is a buffer. A forward pass only reads it.
    """

    u: Tensor

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(width_in, width_out, kernel, stride, padding)
        self.register_buffer("u", F.normalize(torch.randn(width_out), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.advance()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.norm(), self.bias, self.stride, self.padding)

    def norm(self) -> Tensor:
        """Largest singular value, 0-dimensional: |Wᵀu|, whose gradient to W is u vᵀ with v = Wᵀu / |Wᵀu|."""
        return torch.linalg.vector_norm(self._times_u()).clamp(min=1e-12)

    @torch.no_grad()
    def advance(self) -> None:
        """Do one power iteration: u = W Wᵀ u, normalized."""
        self.u.copy_(F.normalize((self.weight.flatten(1) * self._times_u()).sum(dim=1), dim=0))

    def _times_u(self) -> Tensor:
        # A product and a sum, not a matrix product, which autocast would round to 16 bits.
        return (self.weight.flatten(1) * self.u[:, None]).sum(dim=0)  # Wᵀu


def advance_spectral_norms(module: nn.Module) -> None:
    """Do one power iteration in each spectral norm of the module; to be called once a training step."""
    for layer in module.modules():
        if isinstance(layer, SpectralConv2d):
            layer.advance()


class PatchGAN(nn.Module):
    """Discriminator of patches (pix2pix, arXiv 1611.07004; VQGAN, arXiv 2012.09841): LeakyReLU, 4x4 convolutions.

    Args:
        side: of the images.
        width: channels after the first convolution, doubled by each of the next ones up to eight times this.
        layers: convolutions that halve the side.
        spectral_norm: normalize the weights instead of the activations.

    Raises InputError: images of this side are too small for so many layers.
    """

    def __init__(self, side: int, width: int = 64, layers: int = 3, spectral_norm: bool = False) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise InputError(f"PatchGAN of width {width} and {layers} layers: both must be at least 1")
        if side >> layers < 3:  # the two last convolutions take a pixel each
            most = max((side // 3).bit_length() - 1, 0)
            raise InputError(
                f"PatchGAN with layers={layers} leaves nothing of images of {side} px: "
                f"use at most {most} layers, or images of at least {3 << layers} px"
            )
        conv = SpectralConv2d if spectral_norm else nn.Conv2d
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        body: list[nn.Module] = [conv(3, width, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            norm = nn.Identity() if spectral_norm else _group_norm(widths[i + 1])
            body += [conv(widths[i], widths[i + 1], 4, stride, 1), norm, nn.LeakyReLU(_SLOPE)]
        self.body = nn.Sequential(*body)
        self.to_logits = conv(widths[-1], 1, 4, 1, 1)
        _initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> one map of logits (B, 1, h, w), with h = H / 2**layers - 2."""
        return [self.to_logits(self.body(images))]


class FeatureHeads(nn.Module):
    """One small discriminator for each feature map of a frozen network (StyleGAN-T, arXiv 2301.09515).

    The network is not part of this module: `heads(network(images))` discriminates images, and only the heads' weights
    are trained and saved.

    Args:
        channels: of the maps, one number each.
        spectral_norm: normalize the weights, besides the activations.
    """

    def __init__(self, channels: Sequence[int], spectral_norm: bool = True) -> None:
        super().__init__()
        self.heads = nn.ModuleList(FeatureHead(width, spectral_norm) for width in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (B, C, h, w) map a layer -> one map of logits (B, 1, h, w) each."""
        return [head(maps) for head, maps in zip(self.heads, features, strict=True)]


class FeatureHead(nn.Module):
    """1x1, then a residual 3x3 (nine weights, as the paper's kernel of nine), then 1x1 to a logit at every position."""

    def __init__(self, width: int, spectral_norm: bool) -> None:
        super().__init__()
        conv = SpectralConv2d if spectral_norm else nn.Conv2d
        self.inwards = nn.Sequential(conv(width, width, 1, 1, 0), _group_norm(width), nn.LeakyReLU(_SLOPE))
        self.residual = nn.Sequential(conv(width, width, 3, 1, 1), _group_norm(width), nn.LeakyReLU(_SLOPE))
        self.to_logits = conv(width, 1, 1, 1, 0)
        _initialize(self)

    def forward(self, features: Tensor) -> Tensor:
        x = self.inwards(features)
        x = (x + self.residual(x)) * math.sqrt(0.5)  # the sum of two keeps the variance of one
        return self.to_logits(x)


def _group_norm(width: int) -> nn.GroupNorm:
    """Build GroupNorm of at most 32 groups of at least four channels: smaller ones would make a 1x1 map constant."""
    return nn.GroupNorm(math.gcd(width, 128) // 4 or 1, width)


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    """Draw weights N(0, 0.02), biases 0, as in pix2pix; those with a spectral norm have no scale and keep torch's."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if not isinstance(layer, SpectralConv2d):
                layer.weight.normal_(std=0.02)
            if layer.bias is not None:
                layer.bias.zero_()
