"""Discriminators: what they accept, whom gradients reach, and that no image depends on the batch around it."""

from collections.abc import Callable

import pytest
import torch
from helpers import normal, randomize, refused
from torch import Tensor, nn
from torch.func import functional_call

from tokenizer.discriminators import FeatureHeads, PatchGAN, SpectralConv2d, advance_spectral_norms
from tokenizer.losses import gradient_penalty, hinge_discriminator, hinge_generator

CHANNELS = (8, 6)


class Features(nn.Module):
    """A small frozen network of two maps and heads on them."""

    def __init__(self, spectral_norm: bool) -> None:
        super().__init__()
        self.heads = FeatureHeads(CHANNELS, spectral_norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        first, second = normal(CHANNELS[0], 3, 2, 2, seed=5).to(images), normal(CHANNELS[1], 3, 4, 4, seed=6).to(images)
        strided = torch.nn.functional.conv2d
        return self.heads([strided(images, first, stride=2).tanh(), strided(images, second, stride=4).tanh()])


def kinds() -> list[Callable[[], nn.Module]]:
    return [
        lambda: PatchGAN(16, width=8, layers=2),
        lambda: PatchGAN(16, width=8, layers=2, spectral_norm=True),
        lambda: Features(spectral_norm=True),
        lambda: Features(spectral_norm=False),
    ]


@pytest.fixture(params=kinds(), ids=["patch", "patch-spectral", "heads-spectral", "heads"])
def discriminator(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = request.param()
    randomize(module, seed=1)
    for _ in range(20):
        advance_spectral_norms(module)
    return module


@pytest.mark.parametrize(("side", "layers", "left"), [(64, 3, 6), (32, 3, 2), (24, 3, 1), (12, 2, 1), (65, 3, 6)])
def test_patches_that_are_left(side: int, layers: int, left: int) -> None:
    for spectral_norm in (False, True):
        (logits,) = PatchGAN(side, 4, layers, spectral_norm)(normal(2, 3, side, side))
        assert logits.shape == (2, 1, left, left)


def test_the_papers_patches_see_70_pixels() -> None:
    images = normal(1, 3, 128, 128).requires_grad_()
    (logits,) = PatchGAN(128, width=4, spectral_norm=True)(images)  # without norms, which see the whole map
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], images)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_what_leaves_no_patch_is_refused() -> None:
    with refused("layers=3", "16 px", "at most 2 layers", "at least 24 px"):
        PatchGAN(16)
    with refused("width 0"):
        PatchGAN(64, width=0)


def test_heads_give_a_logit_at_every_place() -> None:
    heads = FeatureHeads(CHANNELS)
    logits = heads([normal(2, 8, 5, 4), normal(2, 6, 1, 1)])
    assert [tuple(head.shape) for head in logits] == [(2, 1, 5, 4), (2, 1, 1, 1)]


def test_a_map_of_one_pixel_is_not_normalised_to_nothing() -> None:
    heads = FeatureHeads((16,))
    (logits,) = heads([normal(4, 16, 1, 1)])
    assert logits.std() > 1e-3


def test_spectral_norm_is_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 8, 4)
    for _ in range(200):
        advance_spectral_norms(layer)
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
    torch.testing.assert_close(layer.norm(), largest)
    images = normal(1, 3, 6, 6)
    expected = torch.nn.functional.conv2d(images, layer.weight / largest, layer.bias)
    torch.testing.assert_close(layer(images), expected)


def test_gradient_of_the_spectral_norm_is_that_of_the_singular_value() -> None:
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 3, 2)
    for _ in range(200):
        layer.advance()
    (ours,) = torch.autograd.grad(layer.norm(), layer.weight)
    (exact,) = torch.autograd.grad(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2), layer.weight)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def test_forward_passes_change_nothing_and_advancing_only_the_vectors(discriminator: nn.Module) -> None:
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator.train()
    for _ in range(2):
        discriminator(normal(2, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    randomize(discriminator, seed=7)
    moved = {name: value.clone() for name, value in discriminator.state_dict().items()}
    advance_spectral_norms(discriminator)
    changed = {name for name, value in discriminator.state_dict().items() if not torch.equal(value, moved[name])}
    vectors = {f"{name}.u" for name, m in discriminator.named_modules() if isinstance(m, SpectralConv2d)}
    assert {name for name in vectors if moved[name].numel() > 1} <= changed <= vectors


def test_an_image_gets_the_same_logits_in_any_batch(discriminator: nn.Module) -> None:
    images = normal(4, 3, 16, 16)
    together = discriminator(images)
    for i in range(4):
        for head, alone in zip(together, discriminator(images[i : i + 1]), strict=True):
            torch.testing.assert_close(head[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_accumulated_gradients_are_those_of_the_large_batch(discriminator: nn.Module) -> None:
    real, fake = normal(4, 3, 16, 16, seed=1), normal(4, 3, 16, 16, seed=2)

    def loss(part: slice) -> Tensor:
        images = real[part].clone().requires_grad_()
        logits = discriminator(images)
        return hinge_discriminator(logits, discriminator(fake[part])) + 0.1 * gradient_penalty(logits, images)

    parameters = list(discriminator.parameters())
    whole = torch.autograd.grad(loss(slice(None)), parameters, allow_unused=True)
    parts = [torch.autograd.grad(loss(slice(i, i + 2)), parameters, allow_unused=True) for i in (0, 2)]
    for expected, first, second in zip(whole, *parts, strict=True):
        if expected is not None:
            torch.testing.assert_close((first + second) / 2, expected, rtol=1e-3, atol=1e-4)


def test_the_discriminators_loss_reaches_its_parameters_and_not_the_generator(discriminator: nn.Module) -> None:
    fake = normal(2, 3, 16, 16).requires_grad_()
    hinge_discriminator(discriminator(normal(2, 3, 16, 16, seed=1)), discriminator(fake.detach())).backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_the_generators_turn_reaches_the_images_and_nothing_else(discriminator: nn.Module) -> None:
    fake = normal(2, 3, 16, 16).requires_grad_()
    detached = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    logits = functional_call(discriminator, detached, (fake,))
    for ours, plain in zip(logits, discriminator(fake), strict=True):
        assert torch.equal(ours, plain)
    hinge_generator(logits).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_r1_can_be_differentiated_to_the_parameters(discriminator: nn.Module) -> None:
    discriminator.double()
    images = normal(2, 3, 16, 16).double().requires_grad_()
    weights = [parameter for parameter in discriminator.parameters() if parameter.dim() == 4]
    slopes = torch.autograd.grad(gradient_penalty(discriminator(images), images), weights)

    def moved(step: float) -> float:
        """The penalty after a step along its own gradient."""
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight += step * slope
        return gradient_penalty(discriminator(images), images).item()

    length = sum(slope.square().sum().item() for slope in slopes)
    step = 1e-6 / length**0.5
    difference = moved(step) - moved(-2 * step)
    assert length > 0
    assert difference / (2 * step) == pytest.approx(length, rel=1e-3)


def test_training_tells_real_from_fake(discriminator: nn.Module) -> None:
    real, fake = normal(8, 3, 16, 16, seed=1) + 0.5, normal(8, 3, 16, 16, seed=2) - 0.5
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-2)
    losses = []
    for _ in range(30):
        loss = hinge_discriminator(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance_spectral_norms(discriminator)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
