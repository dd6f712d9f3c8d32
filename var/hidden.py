"""Features of images from models as they are, which attentive probes are trained on: AIM's, VAR's, and bare pixels.

B batch, N patches (of a VAR the tokens of all scales), D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.aim import AIM, Encoder, EncoderConfig, check_layers
from var.checkpoint import load_encoder
from var.images import standardised
from var.masks import fastest
from var.model import VAR
from var.pipeline import TRANSFORMER, VARPipeline
from var.presets import AIM_RELEASED, RELEASED, SHIPPED
from var.pretraining import patches

UNTRAINED, PIXELS = "untrained", "pixels"
BASELINES = (UNTRAINED, PIXELS)  # in place of a model's name: what its features are compared with


class FeatureSource(Protocol):
    """What gives features, always without gradients."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """What it computes with, in evaluation mode, each network under its part."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def patches(self) -> int:
        """N."""

    @property
    def depth(self) -> int:
        """Blocks, each of which has an output."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def heads(self) -> int:
        """Of the attention, and so of a probe."""

    def features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of some blocks.

        Args:
            images: (B, 3, S, S) float32 in [-1, 1], on the networks' device.
            layers: blocks, counted from 0, in any order.

        Returns:
            (B, N, D) for each layer asked for.

        Raises:
            InputError: images of another size, a block that there is not.
        """


@dataclass(frozen=True)
class EncoderFeatures:
    """Every patch sees every other, and outputs are taken before the last norm, as AIM's probe reads them."""

    encoder: Encoder

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.encoder}

    @property
    def image_size(self) -> int:
        return self.encoder.config.image_size

    @property
    def patches(self) -> int:
        return self.encoder.config.patches

    @property
    def depth(self) -> int:
        return self.encoder.config.depth

    @property
    def width(self) -> int:
        return self.encoder.config.width

    @property
    def heads(self) -> int:
        return self.encoder.config.heads

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return self.encoder.extract_features(standardised(images), layers)


@dataclass(frozen=True)
class VARFeatures:
    """Hidden states of VAR's transformer, which reads the image's own tokens under the null class, as in training.

    A token of scale k sees the image up to scale k - 1 and its own place: what the model makes of it to predict it.
    """

    model: VAR
    vqvae: VQVAE

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.model, "tokenizer": self.vqvae}

    @property
    def image_size(self) -> int:
        return self.vqvae.config.image_side

    @property
    def patches(self) -> int:
        return self.model.scales.total

    @property
    def depth(self) -> int:
        return self.model.config.depth

    @property
    def width(self) -> int:
        return self.model.config.width

    @property
    def heads(self) -> int:
        return self.model.config.heads

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):  # the tokens that the transformer was trained on
            tokens = self.vqvae.encode(images)
        null = tokens.new_full((len(tokens),), self.model.config.num_classes)
        return hidden_states(self.model, null, self.vqvae.quantizer.teacher_forcing_input(tokens), layers)


@dataclass(frozen=True)
class PixelFeatures:
    """The pixels of each patch, standardised: one layer, which knows nothing and has no positions.

    Args:
        config: image_size, patch_size and heads are read.
    """

    config: EncoderConfig

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {}

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def patches(self) -> int:
        return self.config.patches

    @property
    def depth(self) -> int:
        return 1

    @property
    def width(self) -> int:
        return 3 * self.config.patch_size**2

    @property
    def heads(self) -> int:
        return self.config.heads

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        check_layers(layers, self.depth)
        return [patches(standardised(images), self.config.patch_size)]


def hidden_states(model: VAR, labels: Tensor, teacher_forcing_input: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Outputs of some blocks of a VAR under teacher forcing; blocks after the last one asked for are not run.

    Args:
        labels: (B,) int64, num_classes for the null class.
        teacher_forcing_input: (B, L - 1, C), as VAR.forward takes it.
        layers: blocks, counted from 0, in any order.

    Returns:
        (B, L, D) for each layer asked for.

    Raises:
        InputError: a block that there is not.
    """
    check_layers(layers, model.config.depth)
    condition = model.condition(labels)
    x = model.embed(condition, teacher_forcing_input)
    mask = fastest(model.scales, model.mask)
    outputs = []
    for block, modulation in zip(model.blocks[: max(layers) + 1], condition.blocks, strict=False):
        x = block(x, modulation, mask)
        outputs.append(x)
    return [outputs[layer] for layer in layers]


def load_features(model: str, sizes: EncoderConfig | None = None) -> FeatureSource:
    """The model of a name, on the CPU, in float32 and evaluation mode.

    Args:
        model: the folder of an encoder, with or without its probe; a released AIM's name; the folder or the name of
            a VAR pipeline; `untrained`, an encoder with initial weights, drawn from torch's global random stream;
            `pixels`.
        sizes: needed for `untrained`, and for `pixels` (which ignores width, depth and mlp_ratio); those that the
            encoder is expected to have otherwise; None: any.

    Raises:
        InputError: an unknown name, sizes that are missing or not the model's, weights that are missing, damaged or of
            something else.
    """
    if model in BASELINES:
        return baseline(model, sizes)
    source = _trained(model)
    if sizes is not None:
        check_sizes(model, source, sizes)
    return source


def baseline(name: str, sizes: EncoderConfig | None) -> FeatureSource:
    """`untrained` or `pixels`: see load_features."""
    if sizes is None:
        raise InputError(f"model={name} needs sizes: give them, such as sizes.image_size=224 sizes.patch_size=14")
    return PixelFeatures(sizes) if name == PIXELS else EncoderFeatures(Encoder(sizes).eval().requires_grad_(False))


def check_sizes(model: str, source: FeatureSource, sizes: EncoderConfig) -> None:
    """Raise InputError unless the source is an encoder of these sizes."""
    if not isinstance(source, EncoderFeatures):
        raise InputError(f"sizes are an encoder's, and model={model!r} is a VAR: set sizes=null")
    theirs, ours = source.encoder.config.to_dict(), sizes.to_dict()
    if changed := [name for name in ours if ours[name] != theirs[name]]:
        name = changed[0]
        raise InputError(
            f"model={model!r} has {name}={theirs[name]}, not sizes.{name}={ours[name]}: correct it, or set sizes=null"
        )


def _trained(model: str) -> FeatureSource:
    folder = Path(model).expanduser()
    if model in RELEASED or model in SHIPPED or (folder / TRANSFORMER).is_dir():
        pipe = VARPipeline.from_pretrained(model, device="cpu", dtype="float32")
        return VARFeatures(pipe.model.requires_grad_(False), pipe.vqvae.requires_grad_(False))
    if folder.is_dir():
        return EncoderFeatures(load_encoder(folder).requires_grad_(False))
    if model in AIM_RELEASED:
        aim = AIM.from_pretrained(model, device="cpu", dtype="float32")
        return EncoderFeatures(aim.encoder.requires_grad_(False))
    known = ", ".join([*AIM_RELEASED, *SHIPPED, *RELEASED, *BASELINES])
    raise InputError(f"model={model!r} is neither a folder nor a known name: give a model folder, or one of {known}")
