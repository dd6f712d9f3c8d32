"""Perceptual distances of images: LPIPS, its form on other backbones, and SSIM.

Images are (B, 3, H, W) in [-1, 1]; the mathematics of features is in tokenizer/losses.py.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.errors import InputError, did_you_mean
from tokenizer.losses import feature_distance
from var.networks.backbones import BACKBONES, build_backbone, load_backbone
from var.networks.frozen import Backbone
from var.utils.optional_packages import import_package
from var.utils.torchvision_compat import import_torchvision
from var.utils.weights import read_weights

_LPIPS = {"lpips-vgg": "vgg16", "lpips-alex": "alexnet", "lpips-squeeze": "squeezenet1_1"}  # its backbone
PERCEPTUAL = (*_LPIPS, *BACKBONES)


class FeatureDistance(nn.Module):
    """`feature_distance` of a reconstruction and its image, on the maps of a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [-1, 1] -> (B,), with gradients to the reconstruction alone.

        Raises InputError: images that are too small for the backbone.
        """
        with torch.no_grad():
            theirs = self.backbone(images)
        return self.compare(self.backbone(reconstruction), theirs)

    def compare(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """One (B, C, h, w) map a layer of each -> (B,)."""
        return feature_distance(ours, theirs)


class LPIPS(FeatureDistance):
    """LPIPS (arXiv 1801.03924, version 0.1), with its learned weight of every channel."""

    def __init__(self, backbone: Backbone, channel_weights: Sequence[Tensor]) -> None:
        super().__init__(backbone)
        self.channel_weights = nn.ParameterList(nn.Parameter(each, requires_grad=False) for each in channel_weights)

    def compare(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        layers = zip(self.channel_weights, ours, theirs, strict=True)
        differences = [weight * (_unit(a) - _unit(b)).square() for weight, a, b in layers]
        return torch.stack([each.sum(dim=1).mean(dim=(1, 2)) for each in differences]).sum(dim=0)


def _unit(features: Tensor) -> Tensor:
    """Normalize as LPIPS does, but without NaN in the gradient where all channels are 0."""
    return F.normalize(features.float(), dim=1, eps=1e-10)


class Enlarged(nn.Module):
    """A perceptual distance of images that are first resized (bicubic)."""

    def __init__(self, distance: nn.Module, side: int) -> None:
        super().__init__()
        self.distance = distance
        self.side = side

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [-1, 1] -> (B,), with gradients to the reconstruction alone."""
        size = (self.side, self.side)
        pair = (F.interpolate(each, size=size, mode="bicubic", antialias=True) for each in (reconstruction, images))
        return self.distance(*pair)


def load_perceptual(name: str, weights: Path | None = None) -> nn.Module:
    """Load a frozen perceptual distance: module(reconstruction, images) -> (B,), with gradients to the former alone.

    lpips-vgg, lpips-alex and lpips-squeeze are LPIPS, with the channel weights that torchmetrics ships; a backbone's
    name means `feature_distance` through that backbone.

    Args:
        name: one of PERCEPTUAL.
        weights: a file of the backbone's weights, for LPIPS with torchvision's names; None as in `load_backbone`.

    Raises InputError: as in `load_backbone`.
    """
    backbone = load_backbone(_backbone_of(name), weights)
    return LPIPS(backbone, _read_channel_weights(name)) if name in _LPIPS else FeatureDistance(backbone)


def build_perceptual(name: str) -> nn.Module:
    """Build the distance of `load_perceptual` on the meta device, without reading or downloading its weights.

    Raises InputError: an unknown name, or a package that is not installed.
    """
    backbone = build_backbone(_backbone_of(name))
    if name not in _LPIPS:
        return FeatureDistance(backbone)
    return LPIPS(backbone, [torch.empty(channels, 1, 1, device="meta") for channels in backbone.channels])


def _backbone_of(name: str) -> str:
    if name not in PERCEPTUAL:
        near = did_you_mean(name, PERCEPTUAL)
        raise InputError(f"perceptual network {name!r} is unknown{near}: choose one of {', '.join(PERCEPTUAL)}")
    return _LPIPS.get(name, name)


def _read_channel_weights(name: str) -> list[Tensor]:
    """Read the channel weights of LPIPS, (C, 1, 1) a layer.

    torchmetrics, which SSIM needs too, contains the lpips package's files, byte for byte, under Apache 2.0.
    """
    package = Path(str(_torchmetrics().__file__)).parent
    state = read_weights(package / "lpips_models" / f"{name.removeprefix('lpips-')}.pth")
    return [state[f"lin{layer}.model.1.weight"][0].float() for layer in range(len(state))]


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """(B,) structural similarity of each image, after clamping, without gradients.

    torchmetrics' values for pixels in [0, 1] (the value depends on the range): a Gaussian window of sigma 1.5 and
    11 px, the mean over all positions, images reflected at their borders. Below 6 px, where that much cannot be
    reflected, window and sigma shrink.

    Raises InputError: torchmetrics is not installed.
    """
    metric = _torchmetrics().structural_similarity_index_measure
    if not len(images):  # a batch of which no image could be read; torchmetrics has no empty ones
        return images.new_zeros(0)
    sigma = min(1.5, (min(images.shape[-2:]) - 1) / 3.5)  # the window reaches 3.5 sigma, which is reflected
    pair = ((each + 1) / 2 for each in (reconstruction.detach().clamp(-1, 1), images))
    return metric(*pair, sigma=sigma, reduction="none", data_range=1.0).view(len(images))


def _torchmetrics() -> ModuleType:
    import_torchvision()  # torchmetrics imports it
    return import_package("torchmetrics.functional.image")
