"""Stage 1: the multi-scale VQVAE, images <-> token pyramid (VAR paper, section 3.2).

B batch, C latent channels, K scales, L tokens of all scales, H W sides of the image, h w of its latent map.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, abbreviate, check_types
from tokenizer.layers import Decoder, Encoder
from tokenizer.quantizer import Quantizer
from tokenizer.scales import SCALES_256, Scales

MOST_LEVELS = 10  # 512 px to one token
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

    @property
    def downsample(self) -> int:
        """Pixels of the image's side to one token of the last scale."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def image_side(self) -> int:
        """Side of the square images, in pixels."""
        return self.scales[-1] * self.downsample

    def to_dict(self) -> dict[str, object]:
        """Return all sizes, without a phi_ratio that is the released one, as files from before it have none."""
        sizes = asdict(self)
        if self.phi_ratio == TokenizerConfig.phi_ratio:
            del sizes["phi_ratio"]
        return sizes


class VQVAEOutput(NamedTuple):
    """Output of the training pass."""

    reconstruction: Tensor  # (B, 3, H, W), not clamped
    tokens: Tensor  # (B, L) int64
    vq_loss: Tensor  # scalar
    features: Tensor  # (B, C, h, w), before quantization


class VQVAE(nn.Module):
    """Images in [-1, 1] <-> (B, L) tokens. The network runs in float32 or bfloat16, the quantizer in float32.

    Without gradients (`torch.no_grad`, `torch.inference_mode`) a large batch passes through the network in parts, so
    that its activations take no more memory than those of PIXELS_AT_ONCE.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales(config.scales)
        sizes = (config.multipliers, config.blocks, config.latent_dim, config.norm_groups, config.dropout)
        self.encoder = Encoder(config.base_width, *sizes)
        self.quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 3, padding=1)
        self.quantizer = Quantizer(
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
        self.quantizer.float()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in."""
        return self.quant_conv.weight.dtype

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w), the latents before quantization.

        Raises:
            InputError: the images are not RGB or not of the model's side.
        """
        self._check_images(images)
        return self._in_parts(lambda part: self.quant_conv(self.encoder(part.to(self.dtype))), images)

    def pixels(self, f_hat: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32, about [-1, 1] but not clamped."""
        return self._in_parts(lambda part: self.decoder(self.post_quant_conv(part.to(self.dtype))).float(), f_hat)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, L) int64 tokens.

        Raises:
            InputError: the images are not RGB or not of the model's side.
        """
        self._check_images(images)
        return self._in_parts(lambda part: self.quantizer.encode(self.features(part)), images)

    def decode(self, tokens: Tensor, num_scales: int | None = None) -> Tensor:
        """(B, L) int64 -> (B, 3, H, W) float32 in [-1, 1]; num_scales: stop after that many scales (None: all).

        Raises:
            InputError: a wrong number of tokens, a token outside the codebook, num_scales outside 1..K.
        """
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.config.vocab_size):
            raise InputError(f"tokens must be in 0..{self.config.vocab_size - 1}, the codebook's indices")
        return self.pixels(self.quantizer.decode(tokens, num_scales)).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> K images (B, 3, H, W) float32 in [-1, 1]: of scale 0, 0..1, ..., all."""
        f_hats = self.quantizer.accumulate(self.encode(images))
        return [self.pixels(f_hat).clamp(-1, 1) for f_hat in f_hats]

    def forward(self, images: Tensor, num_scales: Tensor | None = None) -> VQVAEOutput:
        """The training pass, with straight-through gradients.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            num_scales: (B,) int64, decode each image from so many scales (quantizer dropout); None: from all.
        """
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
