"""The tokenizer's pixel losses and the PSNR."""

import math

import pytest
import torch
from helpers import normal

from tokenizer.losses import pixel_losses, psnr


def test_pixel_losses_are_means() -> None:
    images = torch.zeros(2, 3, 4, 4)
    reconstruction = images.clone()
    reconstruction[0, 0, 0, 0] = 0.6  # one of 96 values
    losses = pixel_losses(reconstruction, images)
    assert losses.l1.item() == pytest.approx(0.6 / 96)
    assert losses.l2.item() == pytest.approx(0.36 / 96)


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
