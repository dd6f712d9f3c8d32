"""Frozen feature sources for probing: AIM, VAR and raw pixels.

B batch, N patches (of a VAR the tokens of all scales), D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.hub.checkpoint import TRANSFORMER, find_exported, load_encoder, load_probe, read_config
from var.hub.download import find_given, load_aim_by_name
from var.hub.load import find_folder
from var.hub.presets import (
    AIM_RELEASED,
    BASELINES,
    ENCODER_SIZES,
    PIXELS,
    RELEASED,
    SHIPPED,
    best_layers,
    check_name,
    choose_layers,
    own_name,
)
from var.models import transformer
from var.models.aim import AIM, AIMOutput, Encoder, EncoderConfig, Probe, ProbeConfig, check_layers
from var.models.masks import fastest
from var.models.pretraining import patches
from var.models.var import VAR, require_var
from var.pipeline import VARPipeline
from var.utils.device import choose_device, choose_dtype
from var.utils.images import check_images, normalize
from var.utils.paths import to_path


@dataclass
class FeatureSource(ABC):
    """A model that gives features, always without gradients."""

    networks: Mapping[str, Encoder | VAR | VQVAE]  # in evaluation mode, each under its part
    image_size: int  # side of the images in pixels
    patches: int  # N
    depth: int  # number of blocks, each of which has an output
    width: int  # D
    heads: int  # of the attention, and so of a probe
    best: tuple[int, ...] | None = None  # the blocks that a probe was found to read best, if they are known

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of some blocks.

        Args:
            images: (B, 3, S, S) in [-1, 1], on the networks' device.
            layers: blocks, counted from 0, in any order.

        Returns:
            (B, N, D) for each of the layers.

        Raises:
            InputError: images of another size or no floating-point numbers, layers that are no list of blocks.
        """
        check_images(images, self.image_size)
        check_layers(layers, self.depth)
        return self._outputs(images, layers)

    @abstractmethod
    def _outputs(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]: ...

    def choose(self, layers: str | Sequence[int] | None) -> tuple[int, ...]:
        """Blocks as `var.hub.presets.choose_layers` takes them; None: the best ones, or the last if none are known."""
        if layers is None:
            layers = "last" if self.best is None else "best"
        return choose_layers(layers, self.depth, self.best)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move the networks, and have the one that gives the features compute in dtype: a tokenizer stays as it is."""
        for network in self.networks.values():
            network.to(device)
            if isinstance(network, VAR):
                network.cast(dtype)
            elif isinstance(network, Encoder):
                network.to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self._first_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in."""
        return self._first_weight.dtype

    @property
    def _first_weight(self) -> Tensor:
        weights = (weight for network in self.networks.values() for weight in network.parameters())
        return next(weights, torch.empty(0))


class EncoderFeatures(FeatureSource):
    """Every patch sees every other, and outputs are taken before the last norm, as AIM's probe reads them."""

    def __init__(self, encoder: Encoder, best: tuple[int, ...] | None = None) -> None:
        sizes = encoder.config
        best = best_layers(sizes) if best is None else best
        super().__init__(
            {"encoder": encoder}, sizes.image_size, sizes.patches, sizes.depth, sizes.width, sizes.heads, best
        )
        self.encoder = encoder

    def _outputs(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return self.encoder.extract_features(normalize(images), layers)


class VARFeatures(FeatureSource):
    """Hidden states of VAR's transformer, which reads the image's own tokens under the null class, as in training.

    A token of scale k sees the image up to scale k - 1 and its own position: what the model makes of it to predict it.
    """

    def __init__(self, model: VAR, vqvae: VQVAE) -> None:
        sizes, side, tokens = model.config, vqvae.config.image_side, model.scales.total
        super().__init__(
            {"transformer": model, "tokenizer": vqvae}, side, tokens, sizes.depth, sizes.width, sizes.heads
        )
        self.model, self.vqvae = model, vqvae

    def _outputs(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):  # the tokens that the transformer was trained on
            tokens = self.vqvae.encode(images)
        null = tokens.new_full((len(tokens),), self.model.config.num_classes)
        return hidden_states(self.model, null, self.vqvae.quantizer.teacher_forcing_input(tokens), layers)


class PixelFeatures(FeatureSource):
    """The pixels of each patch, standardized: one layer, which knows nothing and has no positions.

    Args:
        sizes: image_size, patch_size and heads are read.
    """

    def __init__(self, sizes: EncoderConfig) -> None:
        super().__init__({}, sizes.image_size, sizes.patches, 1, 3 * sizes.patch_size**2, sizes.heads)
        self.patch_size = sizes.patch_size

    def _outputs(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return [patches(normalize(images), self.patch_size)]


@dataclass(frozen=True)
class ProbeClassifier:
    """A probe that was trained on features that are no AIM's, with what gives them."""

    source: FeatureSource
    probe: Probe

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> AIMOutput[Tensor]:
        """Logits, and as features the mean over the layers that the probe reads, (B, N, D) float32.

        Args:
            images: (B, 3, S, S) in [-1, 1], as `resize_and_center_crop` makes them, on any device.

        Raises:
            InputError: images of another size or no floating-point numbers.
        """
        check_images(images, self.source.image_size)
        outputs = self.source.features(images.to(self.source.device, torch.float32), self.probe.config.layers)
        features = torch.stack(outputs).float().mean(dim=0)
        return AIMOutput(self.probe(features), features)


def load_classifier(
    folder: str | Path, model: str | None = None, device: str = "auto", dtype: str = "auto"
) -> ProbeClassifier:
    """A probe alone, as the stage `probe` exports one on a VAR's hidden states or on pixels, and what it reads.

    Args:
        folder: of the probe, or the output of its training.
        model: what gave the features, where it is no longer where the folder says; as load_features takes it.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: of the features: auto (bfloat16 where the device is fast at it), float32 or bfloat16.

    Raises:
        InputError: missing, damaged or foreign files, a model whose features are not what the probe reads, an
            impossible device or dtype.
    """
    target, path = choose_device(device), find_exported(to_path(folder, "folder"))
    computed_in = choose_dtype(dtype, target)
    probe = load_probe(path)
    source = _load_probed(path, probe.config, model).to(target, computed_in)
    return ProbeClassifier(source, probe.requires_grad_(False).to(source.device))


def hidden_states(model: VAR, labels: Tensor, teacher_forcing_input: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Outputs of some blocks of a VAR under teacher forcing; blocks after the last of the layers are not run.

    Args:
        labels: (B,) int64, num_classes for the null class.
        teacher_forcing_input: (B, L - 1, C), as VAR.forward takes it.
        layers: blocks, counted from 0, in any order.

    Returns:
        (B, L, D) for each of the layers.

    Raises:
        InputError: a block that there is not.
    """
    check_layers(layers, model.config.depth)
    condition = model.condition(labels)
    x = model.embed(condition, teacher_forcing_input)
    mask = fastest(model.scales, model.mask)
    return transformer.hidden_states(model.blocks, x, layers, condition.modulations, mask)


def load_features(model: str, sizes: EncoderConfig | None = None) -> FeatureSource:
    """The model of a name, on the CPU, in float32 and evaluation mode.

    Args:
        model: the folder of an encoder, with or without its probe; a released AIM's name; the folder or the name of
            a VAR pipeline; a repository on the hub with one of these; the folder of a probe alone, for what it reads;
            the output of a training, for the model in it; `untrained`, an encoder with initial weights, drawn from
            torch's global random stream; `pixels`.
        sizes: needed for `untrained`, and for `pixels` (which ignores width, depth and mlp_ratio); those that the
            encoder is expected to have otherwise; None: any.

    Raises:
        InputError: an unknown name, sizes that are missing or not the model's, weights that are missing, damaged or of
            something else.
    """
    if model in BASELINES:
        return baseline(model, sizes)
    source = _load_trained(model)
    if sizes is not None:
        check_sizes(model, source, sizes)
    return source


def baseline(name: str, sizes: EncoderConfig | None) -> FeatureSource:
    """`untrained` or `pixels`: see load_features."""
    if not isinstance(sizes, EncoderConfig):
        raise InputError(f"model={name} needs sizes: give those of an encoder, such as aim-tiny")
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


def _load_trained(model: str) -> FeatureSource:
    folder = find_given(model)
    if folder is None and own_name(model) in ENCODER_SIZES:
        return _load_with_probe(model)
    if folder is None:
        folder = find_folder(check_name(model, [*AIM_RELEASED, *SHIPPED, *RELEASED, *BASELINES]))
    if (folder / TRANSFORMER).is_dir():
        pipe = VARPipeline.from_pretrained(folder, device="cpu", dtype="float32")
        return VARFeatures(
            require_var(pipe.model, "feature extraction").requires_grad_(False), pipe.vqvae.requires_grad_(False)
        )
    kind = read_config(folder).get("model")
    if kind == AIM.__name__:
        return _load_with_probe(folder)
    if kind == Probe.__name__:
        return _load_probed(folder, load_probe(folder).config)
    return EncoderFeatures(load_encoder(folder).requires_grad_(False))


def _load_with_probe(name: str | Path) -> FeatureSource:
    aim = load_aim_by_name(name)
    return EncoderFeatures(aim.encoder.requires_grad_(False), aim.config.probe_layers)


def _load_probed(folder: Path, probe: ProbeConfig, model: str | None = None) -> FeatureSource:
    """Load the source of the features that a probe reads: the one its folder names, or the model given."""
    stated: Any = read_config(folder).get("features_of")
    try:
        name = str(stated["model"]) if model is None else model
        sizes = None if stated is None or stated["sizes"] is None else EncoderConfig(**stated["sizes"])
    except (TypeError, LookupError) as error:
        raise InputError(f"{folder} does not say what its probe reads: give the model") from error
    source = load_features(name, sizes)
    if source.width != probe.width or max(probe.layers) >= source.depth:
        raise InputError(
            f"the probe in {folder} reads layers {list(probe.layers)} of width {probe.width}, model={name!r} has "
            f"{source.depth} of width {source.width}: give the model that it was trained on"
        )
    source.best = probe.layers
    return source
