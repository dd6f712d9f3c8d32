"""The frozen networks of `backbones` without their weights, on the meta device: what can be counted is all there."""

import warnings
from collections.abc import Callable

import torch
from torch import nn

from var.torchvision_compat import import_torchvision
from var.training.backbones import (
    BACKBONES,
    LPIPS,
    Backbone,
    FeatureDistance,
    Normalisation,
    Taps,
    VisionTransformerTaps,
    _package,
    load_backbone,
    load_perceptual,
)

_NONE = Normalisation((0.0,) * 3, (1.0,) * 3)  # of no weight where nothing is computed


def outline_backbone(name: str) -> Backbone:
    """A network of `backbones.BACKBONES`, without downloading anything.

    Raises:
        InputError: an unknown name, or a package that is not installed.
    """
    if name not in _DOWNLOADED:
        return load_backbone(name).to("meta")  # a package ships the weights; an unknown name is told there
    with torch.device("meta"):
        return _DOWNLOADED[name]()


def outline_perceptual(name: str) -> nn.Module:
    """A network of `backbones.PERCEPTUAL`, without downloading anything.

    Raises:
        InputError: an unknown name, or a package that is not installed.
    """
    if name in BACKBONES:
        return FeatureDistance(outline_backbone(name))
    if not name.startswith("lpips-"):
        return load_perceptual(name)  # which refuses it
    import_torchvision()  # lpips imports it
    library = _package("lpips", "lpips")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # it builds torchvision's networks by arguments that are deprecated
        network = library.LPIPS(net=name.removeprefix("lpips-"), pretrained=False, pnet_rand=True, verbose=False)
    return LPIPS(network, smallest_side=1).to("meta")  # some of its constants know no default device


def _vgg16() -> Backbone:
    features = import_torchvision().models.vgg16(weights=None).features[:30]
    return Backbone(Taps(features, (3, 8, 15, 22, 29)), (64, 128, 256, 512, 512), _NONE, 16)


def _dino() -> Backbone:
    vit = import_torchvision().models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )
    vit.heads = nn.Identity()
    return Backbone(VisionTransformerTaps(vit, (2, 5, 8, 11)), (384,) * 4, _NONE, 16)


_DOWNLOADED: dict[str, Callable[[], Backbone]] = {"vgg16": _vgg16, "dino-vits16": _dino}
