"""AIM: an image encoder that is pre-trained to predict the next patch from those before it (arXiv 2401.08541).

B batch, N patches, P side of a patch in pixels, D width, H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Generic, NamedTuple, Self, TypeVar

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, abbreviate, check_types
from var.models.transformer import NORM_EPS, Block, BlockConfig, attend, check_mlp_ratio, hidden_states, run_blocks
from var.utils.images import check_images, normalize, resize_and_center_crop

MOST_PATCHES = 2**17  # of an image

Array = TypeVar("Array")


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder; defaults are AIM-600M. Raises InputError: a value that cannot work, with the remedy."""

    image_size: int = 224  # side of the images in pixels, a multiple of patch_size
    patch_size: int = 14  # P
    width: int = 1536  # D, a multiple of 4 and of heads
    depth: int = 24  # number of blocks
    heads: int = 12  # H
    mlp_ratio: float = 4.0  # hidden width of the MLP over D

    def __post_init__(self) -> None:
        check_types(
            self,
            at_least_one=("image_size", "patch_size", "width", "depth", "heads", "num_classes"),
            at_most={"image_size": 2**14, "width": 2**16, "depth": DEEPEST},
        )
        if self.image_size % self.patch_size:
            raise InputError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.width % self.heads or self.width % 4:
            raise InputError(f"width={self.width} must be a multiple of heads={self.heads} and of 4")
        check_mlp_ratio(self.mlp_ratio)
        if self.patches > MOST_PATCHES:
            sizes = f"image_size={self.image_size} and patch_size={self.patch_size}"
            raise InputError(f"{sizes} make {self.patches} patches: at most {MOST_PATCHES}, raise patch_size")

    @property
    def side(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """N."""
        return self.side**2

    @property
    def block(self) -> BlockConfig:
        """Sizes of its blocks."""
        return BlockConfig(self.width, self.heads, self.mlp_ratio, qk_norm=False, bias=False, gelu="none")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class AIMConfig(EncoderConfig):
    """An encoder with its probe."""

    probe_layers: tuple[int, ...] = (18, 19, 20, 21, 22, 23)  # counted from 0; the probe reads their outputs' mean
    num_classes: int = 1000  # of the probe

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "probe_layers", tuple(self.probe_layers))
        check_layers(self.probe_layers, self.depth)

    @property
    def encoder(self) -> EncoderConfig:
        """Without the probe."""
        return EncoderConfig(**{field.name: getattr(self, field.name) for field in fields(EncoderConfig)})


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise InputError unless the layers are a list of blocks of a model of that depth, each named once."""
    if not isinstance(layers, list | tuple | range) or not all(type(layer) is int for layer in layers):
        raise InputError(f"layers={abbreviate(layers)} must be a list of blocks, such as [0, 1], in 0..{depth - 1}")
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < depth for layer in layers):
        raise InputError(f"layers {abbreviate(list(layers))} must be different blocks in 0..{depth - 1}, at least one")


def sincos_2d_pos_embed(side: int, width: int) -> Tensor:
    """Positions of side x side patches, row by row: (N, D) float32 on the CPU.

    The first half of the channels comes from the column, the second from the row. Each half holds the sines of the
    coordinate at D / 4 frequencies from 1 down to nearly 1 / 10000, then the cosines.
    """
    frequencies = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (side, D / 2)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1)


class Encoder(nn.Module):
    """Images -> features of their patches: a pre-norm ViT without class token and biases."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patchify = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.patch_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]  # a ModuleList names no type
            Block(config.block) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)  # after the last block; the probe reads before it
        self.position: Tensor
        self.register_buffer("position", sincos_2d_pos_embed(config.side, config.width), persistent=False)
        initialize(self)

    def embed_patches(self, images: Tensor) -> Tensor:
        """(B, 3, S, S), normalized, on any device -> patches without their positions (B, N, D), row by row.

        Raises InputError: the images are no floating-point numbers, not RGB or not of the model's size.
        """
        check_images(images, self.config.image_size)
        weight = self.patchify.weight
        x = self.patchify(images.to(weight.device, weight.dtype))  # (B, D, S / P, S / P)
        return self.patch_norm(rearrange(x, "b d h w -> b (h w) d"))

    def embed(self, images: Tensor) -> Tensor:
        """`embed_patches` with the positions."""
        return self.add_position(self.embed_patches(images))

    def add_position(self, x: Tensor) -> Tensor:
        """Add their positions to all patches, (B, N, D), row by row."""
        return x + self.position.to(x.dtype)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patches with their positions, any of them in any order, (B, n, D) -> (B, n, D), after the last norm."""
        return self.norm(run_blocks(self.blocks, x, mask=mask))

    def extract_features(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return outputs of some blocks, with attention between all patches; blocks after the last of them are not run.

        Args:
            images: (B, 3, S, S), as `val_transforms` makes them, on any device.
            layers: blocks, counted from 0, in any order; None: all. Each gives (B, N, D).

        Raises InputError: images of another size or no floating-point numbers, layers that are no list of blocks.
        """
        wanted = range(self.config.depth) if layers is None else layers
        check_layers(wanted, self.config.depth)
        return hidden_states(self.blocks, self.embed(images), wanted)

    def forward(self, images: Tensor, mask: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """What the heads of pre-training read: (B, 3, S, S) -> (B, n, D), after the last norm.

        Args:
            images: normalized.
            mask: see `prefix_causal`; None: attention between all patches.
            order: int64, indices of the patches in the order of the sequence: (n,), or (B, n) for each image its own.
                Those that are left out are not seen. None: all N, row by row.
        """
        x = self.embed(images)  # (B, N, D)
        return self.encode(x if order is None else select_patches(x, order), mask)


def select_patches(x: Tensor, indices: Tensor) -> Tensor:
    """What belongs to some patches, in their order: (B, N, C) and int64 (n,), or (B, n), -> (B, n, C)."""
    if indices.dim() == 1:
        return x[:, indices]
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


class AttentiveProbe(nn.Module):
    """Attention of one learned query over the patches, then a linear classifier."""

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.classify = nn.Linear(width, num_classes, bias=False)
        for weight in (self.query, self.key.weight, self.value.weight, self.classify.weight):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) -> logits (B, classes)."""
        x = self.norm(features.transpose(1, 2)).transpose(1, 2)  # (B, N, D)
        k, v = (rearrange(part(x), "b n (h d) -> b n h d", h=self.heads) for part in (self.key, self.value))
        q = rearrange(self.query, "1 1 (h d) -> 1 1 h d", h=self.heads).expand(len(x), -1, -1, -1).to(k.dtype)
        gathered = attend(q, k, v, None, 1 / math.sqrt(k.shape[-1]))  # (B, 1, D)
        return self.classify(gathered[:, 0])


@dataclass(frozen=True)
class ProbeConfig:
    """Sizes of an attentive probe that is saved without its encoder. Raises InputError: a value that cannot work."""

    width: int  # D of the features
    heads: int  # number of attention heads
    num_classes: int
    layers: tuple[int, ...]  # blocks, counted from 0, the mean of whose outputs it reads

    def __post_init__(self) -> None:
        check_types(self, at_least_one=("width", "heads", "num_classes"))
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or min(self.layers) < 0 or len(set(self.layers)) < len(self.layers):
            raise InputError(
                f"layers={abbreviate(list(self.layers))} must be different blocks, counted from 0, at least one"
            )
        if self.width % self.heads:
            raise InputError(f"heads={self.heads} must divide the width of the features, {self.width}")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Probe(AttentiveProbe):
    """An attentive probe without its encoder."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config.width, config.heads, config.num_classes)
        self.config = config


class AIMOutput(NamedTuple, Generic[Array]):
    """Logits and features of images, in arrays of PyTorch, or of another framework that AIM runs in."""

    logits: Array  # (B, classes)
    features: Array  # (B, N, D), the mean over the probe layers


class AIM(nn.Module):
    """The frozen encoder with an attentive probe; `var.AIM` is the same, and loads by name."""

    def __init__(self, config: AIMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.probe = AttentiveProbe(config.width, config.heads, config.num_classes)

    def cast(self, dtype: torch.dtype) -> Self:
        """Hold the weights in dtype; the statistics of the probe's norm stay in float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    def forward(self, images: Tensor) -> AIMOutput[Tensor]:
        """(B, 3, S, S), as `val_transforms` makes them, on any device -> logits and features.

        Raises InputError: the images are no floating-point numbers, not RGB or not of the model's size.
        """
        features = torch.stack(self.extract_features(images, self.config.probe_layers)).mean(dim=0)
        return AIMOutput(self.probe(features), features)

    def extract_features(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """See Encoder.extract_features."""
        return self.encoder.extract_features(images, layers)


def initialize(encoder: nn.Module) -> None:
    """Draw the initial weights of linear maps: truncated normal, std 0.02, biases 0 (ViT's usual)."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class ValTransforms:
    """Preprocessing of images for the encoder: `torch.stack([transform(image) for image in images])`.

    The short side becomes 256 / 224 of the size, the center square is kept, and pixels in [0, 1] lose ImageNet's mean
    and are divided by its standard deviation, which gives values between -2.12 and 2.64. Resizing is Lanczos; the
    paper does not state its filter.

    Attributes:
        size: side of the model's images in pixels.

    Raises InputError: a size that is no whole number of at least 1; when called, an image that cannot be read.
    """

    size: int = 224

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise InputError(f"size={self.size!r} must be a whole number, at least 1")

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any size and mode -> (3, size, size) float32, standardized."""
        return normalize(resize_and_center_crop(image, self.size))


val_transforms = ValTransforms  # the name in the paper's code
