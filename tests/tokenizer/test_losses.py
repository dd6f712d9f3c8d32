"""The tokenizer's losses and the PSNR, against closed forms."""

import math

import pytest
import torch
from helpers import normal
from torch import Tensor

from tokenizer.losses import (
    adaptive_weight,
    feature_distance,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    pixel_losses,
    psnr,
    ramp,
)


def test_pixel_losses_are_means() -> None:
    images = torch.zeros(2, 3, 4, 4)
    reconstruction = images.clone()
    reconstruction[0, 0, 0, 0] = 0.6  # one of 96 values
    l1, l2 = pixel_losses(reconstruction, images)
    assert l1.item() == pytest.approx(0.6 / 96)
    assert l2.item() == pytest.approx(0.36 / 96)


def test_pixel_losses_reach_the_reconstruction() -> None:
    reconstruction = normal(1, 3, 2, 2).requires_grad_()
    l1, l2 = pixel_losses(reconstruction, torch.zeros(1, 3, 2, 2))
    (gradient,) = torch.autograd.grad(l1 + l2, reconstruction)
    torch.testing.assert_close(gradient, (reconstruction.sign() + 2 * reconstruction).detach() / 12)


def test_psnr_of_a_known_error() -> None:
    images = torch.zeros(3, 3, 4, 4)
    errors = torch.tensor([0.2, 0.02, 1.0])
    found = psnr(images + errors[:, None, None, None], images)
    torch.testing.assert_close(found, -10 * (errors.square() / 4).log10())  # pixels span 2, from -1 to 1


def test_psnr_is_bounded_for_equal_images_and_ignores_what_cannot_be_shown() -> None:
    images = torch.ones(1, 3, 2, 2)
    bound = 10 * math.log10(4e10)
    assert psnr(images, images).item() == pytest.approx(bound)
    assert psnr(images * 3, images).item() == pytest.approx(bound)  # beyond white is white
    assert not psnr(images.clone().requires_grad_(), images).requires_grad


def test_feature_distance_is_two_minus_two_cosines_averaged_over_places_and_layers() -> None:
    ours = [normal(2, 5, 3, 3, seed=1), normal(2, 7, 2, 2, seed=2)]
    theirs = [normal(2, 5, 3, 3, seed=3), normal(2, 7, 2, 2, seed=4)]
    cosines = [torch.cosine_similarity(a, b, dim=1).mean(dim=(1, 2)) for a, b in zip(ours, theirs, strict=True)]
    expected = 2 - 2 * torch.stack(cosines).mean(dim=0)
    torch.testing.assert_close(feature_distance(ours, theirs), expected, rtol=0, atol=1e-5)


def test_feature_distance_ignores_length_and_survives_features_of_zero() -> None:
    maps = normal(1, 4, 2, 2)
    assert feature_distance([3 * maps], [maps]).item() == pytest.approx(0, abs=1e-6)
    dead = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(feature_distance([dead], [maps]).sum(), dead)
    assert gradient.isfinite().all()


def test_hinge_losses_by_hand() -> None:
    real = [torch.tensor([[0.5, 2.0]]), torch.tensor([[-1.0]])]  # relu(1 - r): 0.5 0, 2
    fake = [torch.tensor([[0.5, -3.0]]), torch.tensor([[1.0]])]  # relu(1 + f): 1.5 0, 2
    assert hinge_discriminator(real, fake).item() == pytest.approx((0.25 + 2) / 2 + (0.75 + 2) / 2)
    assert hinge_generator(fake).item() == pytest.approx(-(-1.25 + 1) / 2)


def test_losses_of_a_batch_are_the_means_of_its_halves() -> None:
    real, fake = [normal(4, 1, 2, 2, seed=1), normal(4, 1, 1, 1, seed=2)], [normal(4, 1, 2, 2, seed=3)] * 2

    def halves(maps: list[Tensor]) -> list[list[Tensor]]:
        return [[m[:2] for m in maps], [m[2:] for m in maps]]

    parts = [hinge_discriminator(r, f) for r, f in zip(halves(real), halves(fake), strict=True)]
    torch.testing.assert_close(hinge_discriminator(real, fake), (parts[0] + parts[1]) / 2)
    parts = [hinge_generator(f) for f in halves(fake)]
    torch.testing.assert_close(hinge_generator(fake), (parts[0] + parts[1]) / 2)


def test_adaptive_weight_is_the_clamped_ratio_of_lengths() -> None:
    reference = torch.tensor([[3.0, 4.0]], requires_grad=True)  # length 5
    weight = adaptive_weight(reference, torch.tensor([0.0, 2.0]), 0.1, 10)
    assert weight.item() == pytest.approx(2.5)
    assert not weight.requires_grad
    assert adaptive_weight(reference, torch.tensor([2.0]), 3, 10).item() == 3
    assert adaptive_weight(reference, torch.zeros(2), 0.1, 10).item() == 10  # no adversarial gradient at all


def test_gradient_penalty_of_linear_heads() -> None:
    images = normal(3, 3, 2, 2, seed=1).requires_grad_()
    first, second = (normal(3, 2, 2, seed=seed).requires_grad_() for seed in (2, 3))
    logits = [(images * weight).sum(dim=(1, 2, 3)) for weight in (first, second)]
    penalty = gradient_penalty(logits, images)
    assert penalty.item() == pytest.approx((first + second).square().sum().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty, first)
    torch.testing.assert_close(gradient, 2 * (first + second).detach())


def test_gradient_penalty_is_the_mean_over_images() -> None:
    images = normal(2, 3, 2, 2).requires_grad_()
    penalty = gradient_penalty([images.square()], images)  # the gradient is 2 x
    assert penalty.item() == pytest.approx(4 * images.square().sum().item() / 2, rel=1e-5)


def test_ramp() -> None:
    assert [ramp(step, start_step=10, length=4) for step in (0, 9, 10, 11, 12, 13, 14, 99)] == [
        0.0,
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]
    assert [ramp(step, start_step=10, length=0) for step in (9, 10)] == [0.0, 1.0]
