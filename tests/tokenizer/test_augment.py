"""DiffAugment: each operation by hand, and the same image the same way in any batch."""

import pytest
import torch
from helpers import normal
from torch import Tensor

from tokenizer.augment import NOISE, augment, color, cutout, translate


def number(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def uniform(batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, NOISE, generator=torch.Generator().manual_seed(seed))


def test_the_middle_of_every_number_changes_no_colour_and_moves_nothing() -> None:
    images, half = normal(2, 3, 16, 16), number(0.5, 0.5)
    torch.testing.assert_close(color(images, half, half, half), images)
    assert torch.equal(translate(images, half, half), images)


def test_brightness_adds() -> None:
    images = normal(2, 3, 4, 4)
    half = number(0.5, 0.5)
    found = color(images, number(0.0, 0.75), half, half)
    torch.testing.assert_close(found, images + number(-0.5, 0.25))


def test_saturation_scales_the_distance_from_grey() -> None:
    images, half = normal(2, 3, 4, 4), number(0.5, 0.5)
    found = color(images, half, number(0.0, 0.75), half)
    gray = images.mean(dim=1, keepdim=True)
    torch.testing.assert_close(found[0], gray[0].expand(3, -1, -1))
    torch.testing.assert_close(found[1], (gray + 1.5 * (images - gray))[1])


def test_contrast_scales_the_distance_from_the_mean_of_the_image() -> None:
    images, half = normal(2, 3, 4, 4), number(0.5, 0.5)
    found = color(images, half, half, number(0.0, 0.75))
    for image, result, factor in zip(images, found, (0.5, 1.25), strict=True):
        torch.testing.assert_close(result, image.mean() + factor * (image - image.mean()))


def test_translation_moves_by_whole_pixels_and_fills_with_zeros() -> None:
    images = normal(3, 3, 16, 24)  # shifts of up to 2 and 3 pixels
    found = translate(images, number(0.0, 0.99, 0.5), number(0.5, 0.99, 0.0))
    expected = torch.zeros_like(images)
    expected[0, :, :-2] = images[0, :, 2:]
    expected[1, :, 2:, 3:] = images[1, :, :-2, :-3]
    expected[2, :, :, :-3] = images[2, :, :, 3:]
    assert torch.equal(found, expected)


def test_every_shift_is_as_likely_as_any_other() -> None:
    images = torch.zeros(500, 3, 16, 1)
    images[:, :, 8] = 1
    numbers = ((torch.arange(500) + 0.5) / 500).view(-1, 1, 1, 1)
    rows = translate(images, numbers, numbers)[:, 0, :, 0].argmax(dim=1)
    assert rows.bincount().tolist() == [0] * 6 + [100] * 5


@pytest.mark.parametrize(
    ("row", "column", "area"), [(0.5, 0.5, 64), (0.0, 0.5, 32), (0.0, 0.0, 16), (0.9999, 0.9999, 16)]
)
def test_cutout_takes_a_square_of_half_the_side_where_it_lies_within(row: float, column: float, area: int) -> None:
    images = torch.ones(1, 3, 16, 16)
    found = cutout(images, number(row), number(column))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert (found == 0).sum(dim=(2, 3)).tolist() == [[area] * 3]
    kept = (found[0, 0] == 0).float()
    assert torch.equal(kept, kept.amax(dim=1, keepdim=True) * kept.amax(dim=0))  # a rectangle


def test_an_image_is_augmented_the_same_way_in_any_batch() -> None:
    images, noise = normal(6, 3, 16, 16), uniform(6)
    together = augment(images, noise)
    for i in range(6):
        assert torch.equal(together[i : i + 1], augment(images[i : i + 1], noise[i : i + 1]))
    assert not torch.equal(together[:1], augment(images[:1], noise[1:2]))


def test_probability_leaves_whole_images_alone() -> None:
    images, noise = normal(200, 3, 8, 8), uniform(200)
    kept = [torch.equal(a, b) for a, b in zip(images, augment(images, noise, probability=0.3), strict=True)]
    assert kept == (noise[:, 0] >= 0.3).tolist()
    assert torch.equal(augment(images, noise, probability=0.0), images)
    assert not any(torch.equal(a, b) for a, b in zip(images, augment(images, noise), strict=True))


def test_gradients_reach_the_images_where_something_of_them_is_left() -> None:
    images = normal(2, 3, 8, 8).double().requires_grad_()
    noise = uniform(2).double()
    torch.autograd.gradcheck(lambda x: augment(x, noise), (images,))
    torch.autograd.gradgradcheck(lambda x: augment(x, noise).pow(3), (images.detach()[:, :, :3, :3].requires_grad_(),))


def test_noise_at_the_edge_of_its_range_stays_within_the_image() -> None:
    nearly_one = torch.full((1, NOISE), 1 - 2**-24)
    assert augment(normal(1, 3, 64, 64), nearly_one, probability=2.0).isfinite().all()
