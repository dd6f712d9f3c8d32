"""The convolutions of torchvision's VGG16, AlexNet and SqueezeNet, with the feature maps that LPIPS compares."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from var.networks.frozen import IMAGENET, Backbone, IntermediateLayers, read_or_download
from var.utils.torchvision_compat import import_torchvision
from var.utils.weights import StateDict, on_meta


class ConvNet(NamedTuple):
    """One of torchvision's networks."""

    weights: str  # torchvision's name
    taps: tuple[int, ...]  # ReLUs and fire modules in `features` that give maps; layers after the last are dropped
    channels: tuple[int, ...]  # of the maps
    smallest_side: int  # of images, in pixels


CONVNETS = {
    "vgg16": ConvNet(  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
        "VGG16_Weights.IMAGENET1K_V1", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16
    ),
    "alexnet": ConvNet("AlexNet_Weights.IMAGENET1K_V1", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "squeezenet1_1": ConvNet(
        "SqueezeNet1_1_Weights.IMAGENET1K_V1", (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512), 17
    ),
}


def build(name: str) -> nn.Module:
    """Build a network without weights on the meta device."""
    models: Any = import_torchvision().models
    with on_meta():  # the classifier, most of the network, is never needed
        features: nn.Module = getattr(models, name)(weights=None).features[: CONVNETS[name].taps[-1] + 1]
    return features


def read(name: str, weights: Path | None) -> StateDict:
    """Read the tensors by torchvision's names; None: torchvision's file."""
    url = "" if weights else str(import_torchvision().models.get_weight(CONVNETS[name].weights).url)
    state = read_or_download(weights, url)
    return {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}


def extract_maps(name: str, features: Any) -> Backbone:
    """Wrap a network in the Backbone that gives its maps."""
    net = CONVNETS[name]
    return Backbone(IntermediateLayers(features, net.taps), net.channels, IMAGENET, net.smallest_side)
