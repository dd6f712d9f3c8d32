"""Multi-scale residual quantizer: one shared codebook, partly shared phi convolutions (VAR paper, algorithms 1, 2).

B batch, C latent channels, K scales, L tokens of all scales, V codebook size, H side of the last scale.
All of it computes in float32, whatever the precision of the rest of the network.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.scales import Scales

SOFTNESS = 0.1  # temperature of the choice in `entropy_loss`, over the mean distance to the nearest codeword


def resize_down(features: Tensor, side: int) -> Tensor:
    """(B, C, H, H) -> (B, C, side, side), each cell the mean over its area."""
    return features if features.shape[-1] == side else F.interpolate(features, size=(side, side), mode="area")


def resize_up(codes: Tensor, side: int) -> Tensor:
    """(B, C, h, h) -> (B, C, side, side), bicubic."""
    return codes if codes.shape[-1] == side else F.interpolate(codes, size=(side, side), mode="bicubic")


def phi_of_scale(num_phi: int, num_scales: int) -> list[int]:
    """Choose the phi convolution of each scale k: the one whose tick is nearest to k / (K - 1)."""
    # As in the released code: the sharing of the released weights depends on it.
    margin = 1 / (3 * num_phi) if num_phi == 4 else 1 / (2 * num_phi)
    ticks = np.linspace(margin, 1 - margin, num_phi)
    positions = np.arange(num_scales) / max(num_scales - 1, 1)
    nearest: list[int] = np.abs(positions[:, None] - ticks).argmin(axis=1).tolist()
    return nearest


class ScaleStep(NamedTuple):
    """One step of the residual pyramid."""

    tokens: Tensor  # (B, side * side) int64
    f_hat: Tensor  # (B, C, H, H), the sum of this and all coarser scales


class Quantized(NamedTuple):
    """Output of the training pass."""

    straight_through: Tensor  # (B, C, H, H), the value of f_hat with the gradient of f
    tokens: Tensor  # (B, L) int64
    loss: Tensor  # scalar, the VQ loss


class Quantizer(nn.Module):
    """Features <-> token pyramid.

    Args:
        scales: the scale schedule; its last side is that of the latent map.
        vocab_size: V, number of codewords.
        latent_dim: C.
        num_phi: how many phi convolutions the K scales share (released: 4; 1: one for all; K: one per scale).
        beta: weight of the commitment term of the VQ loss.
        cosine: nearest codeword by angle in place of distance.
        phi_ratio: r of phi(h) = (1 - r) h + r conv(h); 0 makes phi the identity, without convolutions.
    """

    def __init__(
        self,
        scales: Scales,
        vocab_size: int,
        latent_dim: int,
        num_phi: int = 4,
        beta: float = 0.25,
        cosine: bool = False,
        phi_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.scales = scales
        self.beta = beta
        self.cosine = cosine
        self.codebook = nn.Embedding(vocab_size, latent_dim)
        self.phi_ratio = phi_ratio
        num_convolutions = num_phi if phi_ratio else 0
        self.phi = nn.ModuleList(nn.Conv2d(latent_dim, latent_dim, 3, padding=1) for _ in range(num_convolutions))
        self.phi_index = phi_of_scale(num_phi, len(scales))
        # How often each scale used each codeword per step, a recent mean; training writes it, nothing here reads it.
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(len(scales), vocab_size))
        nn.init.uniform_(self.codebook.weight, -1 / vocab_size, 1 / vocab_size)

    def nearest(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h * w) int64, the index of the nearest codeword for every position."""
        z, codebook = self._prepare_lookup(z)  # (B, h * w, C), (V, C)
        with torch.autocast(z.device.type, enabled=False):
            # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every codeword.
            return (codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)).argmin(dim=-1)

    def _prepare_lookup(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, h * w, C) of (B, C, h, w) and the codebook (V, C), both normalized if `cosine`."""
        z, codebook = rearrange(z, "b c h w -> b (h w) c"), self.codebook.weight
        return (F.normalize(z, dim=-1), F.normalize(codebook, dim=-1)) if self.cosine else (z, codebook)

    def scale_update(self, codes: Tensor, k: int) -> Tensor:
        """Scale k's part of f_hat: its codewords (B, side * side, C) -> (B, C, H, H)."""
        h = rearrange(codes, "b (h w) c -> b c h w", h=self.scales.sides[k])  # (B, C, side, side)
        h = resize_up(h, self.scales.sides[-1])  # (B, C, H, H)
        if not self.phi_ratio:
            return h
        phi = self.phi[self.phi_index[k]]
        with torch.autocast(h.device.type, enabled=False):
            return (1 - self.phi_ratio) * h + self.phi_ratio * phi(h)

    def residual_pyramid(self, features: Tensor) -> Iterator[ScaleStep]:
        """Quantize (B, C, H, H) scale by scale, coarse to fine: each scale encodes the residual of the coarser ones.

        Gradients reach the codebook and phi through f_hat; the features enter without any.
        """
        rest = features.detach().float()
        f_hat = torch.zeros_like(rest)  # (B, C, H, H)
        for k, side in enumerate(self.scales.sides):
            tokens = self.nearest(resize_down(rest, side))  # (B, side * side)
            h = self.scale_update(self.codebook(tokens), k)  # (B, C, H, H)
            f_hat = f_hat + h
            rest = rest - h.detach()
            yield ScaleStep(tokens, f_hat)

    def accumulate(self, tokens: Tensor) -> Iterator[Tensor]:
        """(B, L) int64 -> f_hat after each of the K scales, (B, C, H, H) float32 each."""
        f_hat: Tensor | None = None
        for k, part in enumerate(self.scales.split(tokens)):
            h = self.scale_update(self.codebook(part), k)  # (B, C, H, H)
            f_hat = h if f_hat is None else f_hat + h
            yield f_hat

    def entropy_loss(self, features: Tensor) -> Tensor:
        """Loss that spreads each scale's usage over the codebook: negative entropy, 0-dimensional.

        Each position chooses codewords softly, by its distance to them; the loss is the mean over scales of the
        negative entropy of the batch's mean choice, over log V (as in arXiv 2310.05737, equation 5). It is a statistic
        of the batch: that of a large batch is not the mean over its parts.

        Args:
            features: (B, C, H, H); gradients reach them and the codebook.
        """
        features = features.float()
        with torch.no_grad():
            coarser = [torch.zeros_like(features), *(step.f_hat for step in self.residual_pyramid(features))]
        terms = []
        for side, f_hat in zip(self.scales.sides, coarser, strict=False):
            z, codebook = self._prepare_lookup(resize_down(features - f_hat, side))  # (B, side * side, C), (V, C)
            with torch.autocast(z.device.type, enabled=False):
                distance = z.square().sum(dim=-1, keepdim=True) - 2 * (z @ codebook.T) + codebook.square().sum(dim=-1)
            softness = SOFTNESS * distance.detach().amin(dim=-1).mean().clamp(min=1e-6)
            choice = F.softmax(-distance / softness, dim=-1).mean(dim=(0, 1))  # (V,)
            terms.append((choice * (choice + 1e-9).log()).sum())  # 1e-9: finite if a choice underflows
        return torch.stack(terms).mean() / math.log(self.codebook.num_embeddings)

    def encode(self, features: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, L) int64."""
        return self.scales.join([step.tokens for step in self.residual_pyramid(features)])

    def decode(self, tokens: Tensor, num_scales: int | None = None) -> Tensor:
        """(B, L) int64 -> f_hat (B, C, H, H) float32 of the first num_scales scales (None: all)."""
        stop = len(self.scales) if num_scales is None else num_scales
        if not 1 <= stop <= len(self.scales):
            raise InputError(f"num_scales={num_scales} must be in 1..{len(self.scales)}")
        f_hats = self.accumulate(tokens)
        for _ in range(stop - 1):
            next(f_hats)
        return next(f_hats)

    def next_input(self, f_hat: Tensor, k: int) -> Tensor:
        """The transformer's input for scale k: the coarser f_hat (B, C, H, H) -> (B, side * side, C)."""
        return rearrange(resize_down(f_hat, self.scales.sides[k]), "b c h w -> b (h w) c")

    def teacher_forcing_input(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L - 1, C) float32, the transformer's inputs for all scales but the first (one token)."""
        f_hats = zip(range(1, len(self.scales)), self.accumulate(tokens), strict=False)
        inputs = [self.next_input(f_hat, k) for k, f_hat in f_hats]  # (B, side * side, C) each
        return torch.cat(inputs, dim=1)  # (B, L - 1, C)

    def forward(self, features: Tensor, num_scales: Tensor | None = None) -> Quantized:
        """Quantize for training, with the VQ loss (VAR paper, appendix; VQ-VAE arXiv 1711.00937, equation 3).

        The loss is the mean over scales of beta * |sg(f_hat_k) - f|^2 + |f_hat_k - sg(f)|^2, with f_hat_k cumulative.

        Args:
            features: (B, C, H, H).
            num_scales: (B,) int64 in 1..K, number of scales in each sample's output (quantizer dropout,
                arXiv 2107.03312, section III-C); None: all. The loss uses all scales in either case.
        """
        f = features.float()  # (B, C, H, H)
        steps = list(self.residual_pyramid(f))
        terms = [self.beta * F.mse_loss(step.f_hat.detach(), f) + F.mse_loss(step.f_hat, f.detach()) for step in steps]
        f_hat = steps[-1].f_hat
        if num_scales is not None:
            samples = torch.arange(len(f), device=f.device)
            f_hat = torch.stack([step.f_hat.detach() for step in steps])[num_scales - 1, samples]  # (B, C, H, H)
        straight_through = f + (f_hat - f).detach()  # (B, C, H, H)
        tokens = self.scales.join([step.tokens for step in steps])  # (B, L)
        return Quantized(straight_through, tokens, torch.stack(terms).mean())
