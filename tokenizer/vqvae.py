"""Stage 1: the multi-scale VQVAE, images <-> token pyramid (VAR paper, section 3.2).

In place of a quantizer it may have the KL term of an autoencoder of latent diffusion (LDM, arXiv 2112.10752, section
3.1): then its tokens are vectors of the last map, not indices.

B batch, C latent channels, K scales, L tokens of all scales, H W sides of the image, h w of its latent map.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, abbreviate, check_types
from tokenizer.layers import Decoder, Encoder
from tokenizer.posterior import Posterior
from tokenizer.quantizer import Quantizer
from tokenizer.scales import SCALES_256, Scales

MOST_LEVELS = 10  # 512 px to one token
Regularization = Literal["vq", "kl"]
PIXELS_AT_ONCE = 2**19  # of images in the network together, where no gradients are recorded: eight of 256 px


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of the tokenizer; the defaults are those of the released one.

    Attributes:
        scales: sides of the token maps, coarse to fine.
        vocab_size: V, number of codewords.
        latent_dim: C, channels of a codeword.
        base_width: channels of the first level; level i has base_width * multipliers[i].
        multipliers: one per level; each level after the first halves the side.
        blocks: residual blocks per level in the encoder (the decoder has one more).
        norm_groups: groups of the GroupNorms; every level's width is a multiple of it.
        num_phi: phi convolutions shared by the scales.
        beta: weight of the commitment term.
        cosine: nearest codeword by angle.
        dropout: inside residual blocks.
        decoder_width: base_width of the decoder; 0 for the encoder's.
        phi_ratio: r of phi(h) = (1 - r) h + r conv(h); 0 makes phi the identity, whatever num_phi is.
        regularization: of the latents. vq: they are quantized, and tokens are indices. kl: they are Gaussian, and
            tokens are continuous, vectors of C numbers of a single map; what is the quantizer's has no effect.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    scales: tuple[int, ...] = SCALES_256.sides
    vocab_size: int = 4096
    latent_dim: int = 32
    base_width: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    norm_groups: int = 32
    num_phi: int = 4
    beta: float = 0.25
    cosine: bool = False
    dropout: float = 0.0
    decoder_width: int = 0
    phi_ratio: float = 0.5
    regularization: Regularization = "vq"

    def __post_init__(self) -> None:
        check_types(
            self,
            at_least_one=("vocab_size", "latent_dim", "base_width", "blocks", "norm_groups", "num_phi"),
            at_most={"latent_dim": 2**16, "base_width": 2**16, "decoder_width": 2**16, "multipliers": 2**10}
            | dict.fromkeys(("blocks", "num_phi"), DEEPEST),
        )
        object.__setattr__(self, "scales", Scales(tuple(self.scales)).sides)
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        if not 1 <= len(self.multipliers) <= MOST_LEVELS or min(self.multipliers) < 1:
            given = abbreviate(list(self.multipliers))
            raise InputError(f"multipliers={given} must be positive numbers, one per level, at most {MOST_LEVELS}")
        if self.decoder_width < 0:
            raise InputError(f"decoder_width={self.decoder_width} must not be negative; 0 takes base_width")
        for name, width in (("base_width", self.base_width), ("decoder_width", self.decoder_width)):
            for multiplier in self.multipliers:
                if (width * multiplier) % self.norm_groups:
                    raise InputError(
                        f"a level of {width * multiplier} channels ({name} {width} x {multiplier}) "
                        f"does not divide into norm_groups={self.norm_groups}: change one of them"
                    )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be in [0, 1)")
        if self.beta < 0:
            raise InputError(f"beta={self.beta} must not be negative")
        if self.phi_ratio < 0:
            raise InputError(f"phi_ratio={self.phi_ratio} must not be negative")
        if self.regularization == "kl" and len(self.scales) != 1:
            raise InputError(
                f"scales {list(self.scales)} are {len(self.scales)} token maps, and regularization=kl has a single "
                f"one: set scales=[{self.scales[-1]}]"
            )

    @property
    def downsample(self) -> int:
        """Pixels of the image's side to one token of the last scale."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def image_side(self) -> int:
        """Side of the square images, in pixels."""
        return self.scales[-1] * self.downsample

    def to_dict(self) -> dict[str, object]:
        """Return all sizes, without what files from before have not, where it is as in the released tokenizer."""
        newer = ("phi_ratio", "regularization")
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in newer or value != getattr(TokenizerConfig, name)
        }


class VQVAEOutput(NamedTuple):
    """Output of the training pass."""

    reconstruction: Tensor  # (B, 3, H, W), not clamped
    tokens: Tensor  # (B, L) int64; continuous ones (B, L, C) float32
    regularization: Tensor  # scalar, the VQ loss or the KL divergence
    features: Tensor  # (B, C, h, w), before quantization, or the means


class VQVAE(nn.Module):
    """Images in [-1, 1] <-> tokens. The network runs in float32 or bfloat16, the quantizer in float32.

    Tokens are (B, L) int64, indices of the codebook. With regularization kl they are continuous, (B, L, C) float32: the
    means of the latents, row by row, brought to mean 0 and variance 1 by what training measured.

    Without gradients (`torch.no_grad`, `torch.inference_mode`) a large batch passes through the network in parts, so
    that its activations take no more memory than those of PIXELS_AT_ONCE.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales(config.scales)
        sizes = (config.multipliers, config.blocks, config.latent_dim, config.norm_groups, config.dropout)
        self.encoder = Encoder(config.base_width, *sizes)
        self.is_continuous = config.regularization == "kl"
        moments = (1 + self.is_continuous) * config.latent_dim  # means, then logarithms of variances
        self.quant_conv = nn.Conv2d(config.latent_dim, moments, 3, padding=1)
        if self.is_continuous:
            self.latent_mean: Tensor  # (C,), of the latents of training images
            self.latent_std: Tensor
            self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
            self.register_buffer("latent_std", torch.ones(config.latent_dim))
        else:
            self._modules["quantizer"] = Quantizer(
                self.scales,
                config.vocab_size,
                config.latent_dim,
                config.num_phi,
                config.beta,
                config.cosine,
                config.phi_ratio,
            )
        self.post_quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 3, padding=1)
        self.decoder = Decoder(config.decoder_width or config.base_width, *sizes)

    def cast(self, dtype: torch.dtype) -> Self:
        """Hold the weights of the network in dtype, those of the quantizer in float32."""
        for part in (self.encoder, self.quant_conv, self.post_quant_conv, self.decoder):
            part.to(dtype)
        if not self.is_continuous:
            self.quantizer.float()
        return self

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer, a submodule. Raises InputError: there is none, with regularization kl."""
        quantizer = self._modules.get("quantizer")
        if not isinstance(quantizer, Quantizer):
            raise InputError(
                "the tokenizer has regularization=kl, and so no codebook, which is needed here: give one that was "
                "trained with regularization=vq"
            )
        return quantizer

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in."""
        return self.quant_conv.weight.dtype

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of an image's tokens: (L,), or (L, C) of continuous ones."""
        length = self.scales.total
        return (length, self.config.latent_dim) if self.is_continuous else (length,)

    @property
    def token_dtype(self) -> torch.dtype:
        """Type of the tokens: int64, or float32 of continuous ones."""
        return torch.float32 if self.is_continuous else torch.int64

    @property
    def token_weights(self) -> list[Tensor]:
        """The weights that say what tokens mean: codebook and phi, or the mean and deviation of the latents."""
        if self.is_continuous:
            return [self.latent_mean, self.latent_std]
        return [self.quantizer.codebook.weight, *self.quantizer.phi.parameters()]

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w), the latents before quantization, or their means.

        Raises:
            InputError: the images are not RGB or not of the model's side.
        """
        return self._moments(images)[:, : self.config.latent_dim]

    def _moments(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> what the encoder gives, (B, C, h, w), or (B, 2C, h, w) of continuous tokens."""
        self._check_images(images)
        return self._in_parts(lambda part: self.quant_conv(self.encoder(part.to(self.dtype))), images)

    def pixels(self, f_hat: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32, about [-1, 1] but not clamped."""
        return self._in_parts(lambda part: self.decoder(self.post_quant_conv(part.to(self.dtype))).float(), f_hat)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> tokens, (B, L) int64 or continuous (B, L, C) float32.

        Raises:
            InputError: the images are not RGB or not of the model's side.
        """
        self._check_images(images)
        return self._in_parts(lambda part: self._to_tokens(self.features(part)), images)

    def _to_tokens(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> tokens."""
        if not self.is_continuous:
            return self.quantizer.encode(features)
        return (rearrange(features.float(), "b c h w -> b (h w) c") - self.latent_mean) / self.latent_std

    def latents(self, tokens: Tensor, num_scales: int | None = None) -> Tensor:
        """Tokens -> what the decoder takes, (B, C, h, w) float32, of the first num_scales scales (None: all).

        Raises:
            InputError: tokens of another shape or kind, a token outside the codebook, num_scales outside 1..K.
        """
        if not self.is_continuous:
            if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.config.vocab_size):
                raise InputError(f"tokens must be in 0..{self.config.vocab_size - 1}, the codebook's indices")
            return self.quantizer.decode(tokens, num_scales)
        if tokens.shape[1:] != self.token_shape or not tokens.is_floating_point():
            given = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            raise InputError(
                f"tokens {given} given: continuous ones of shape (B, L, C) needed, (L, C) = {self.token_shape}"
            )
        if num_scales not in (None, 1):
            raise InputError(f"num_scales={num_scales} must be 1: the tokens are a single map")
        f_hat = tokens.float() * self.latent_std + self.latent_mean
        return rearrange(f_hat, "b (h w) c -> b c h w", h=self.scales.sides[-1])

    def decode(self, tokens: Tensor, num_scales: int | None = None) -> Tensor:
        """Tokens -> (B, 3, H, W) float32 in [-1, 1]; num_scales: stop after that many scales (None: all).

        Raises:
            InputError: as `latents`.
        """
        return self.pixels(self.latents(tokens, num_scales)).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> K images (B, 3, H, W) float32 in [-1, 1]: of scale 0, 0..1, ..., all."""
        tokens = self.encode(images)
        f_hats = [self.latents(tokens)] if self.is_continuous else self.quantizer.accumulate(tokens)
        return [self.pixels(f_hat).clamp(-1, 1) for f_hat in f_hats]

    def forward(self, images: Tensor, num_scales: Tensor | None = None, noise: Tensor | None = None) -> VQVAEOutput:
        """The training pass; of indices with straight-through gradients.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            num_scales: (B,) int64, decode each image from so many scales (quantizer dropout); None: from all.
            noise: (B, C, h, w), standard normal: decode latents drawn from their Gaussians with it, with regularization
                kl; None: decode their means.
        """
        if self.is_continuous:
            posterior = Posterior(*self._moments(images).float().chunk(2, dim=1))
            reconstruction = self.pixels(posterior.mean if noise is None else posterior.sample(noise))
            divergence = posterior.divergence().mean() / images[0].numel()
            return VQVAEOutput(reconstruction, self._to_tokens(posterior.mean), divergence, posterior.mean)
        features = self.features(images)  # (B, C, h, w)
        quantized = self.quantizer(features, num_scales)
        reconstruction = self.pixels(quantized.straight_through)  # (B, 3, H, W)
        return VQVAEOutput(reconstruction, quantized.tokens, quantized.loss, features)

    def _check_images(self, images: Tensor) -> None:
        side = self.config.image_side
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise InputError(
                f"images of shape {tuple(images.shape)} given, this tokenizer takes (B, 3, {side}, {side})"
            )

    def _in_parts(self, compute: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Compute what depends on each image alone: PIXELS_AT_ONCE at a time, or all if gradients are recorded."""
        size = max(PIXELS_AT_ONCE // self.config.image_side**2, 1)
        if len(batch) <= size or torch.is_grad_enabled():
            return compute(batch)
        return torch.cat([compute(part) for part in batch.split(size)])
