"""The losses of guidance-free alignment against closed forms, and the choice of wrong labels."""

import numpy as np
import pytest
import torch
from helpers import normal, random_tokens

from var.training.alignment import (
    alignment_loss,
    draw_wrong_labels,
    fixed_wrong_labels,
    log_likelihood,
    proportional_labels,
)

COUNTS = torch.tensor([0, 5, 0, 2, 3, 0])


def test_log_likelihood_sums_over_all_tokens() -> None:
    logits, tokens = normal(3, 7, 5), random_tokens(3, 7, vocab=5)
    scores = logits.double().numpy()
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, tokens.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_likelihood(logits, tokens).numpy(), np.log(chosen).sum(1), rtol=1e-5)


@pytest.mark.parametrize(("beta", "weight"), [(0.02, 50.0), (1.0, 1.0)])
def test_the_loss_is_the_papers(beta: float, weight: float) -> None:
    positive, negative = 30 * normal(9), 30 * normal(9, seed=1)
    ours = alignment_loss(positive, negative, beta, weight).numpy()

    def sigma(x: torch.Tensor) -> np.ndarray:
        return 1 / (1 + np.exp(-beta * x.double().numpy()))

    cca = -np.log(sigma(positive)) - weight * np.log(sigma(-negative))
    ddo = -np.log(sigma(positive)) - weight * np.log1p(-sigma(negative))
    np.testing.assert_allclose(ours, cca, rtol=1e-5)
    np.testing.assert_allclose(ours, ddo, rtol=1e-5)


def test_gradients_raise_positives_and_lower_negatives() -> None:
    positive, negative = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    alignment_loss(positive, negative, 0.5, 3.0).sum().backward()
    assert torch.equal(positive.grad, torch.full((2,), -0.25))
    assert torch.equal(negative.grad, torch.full((2,), 0.75))


def test_wrong_labels_are_the_other_classes_in_proportion() -> None:
    uniform = (torch.arange(70) + 0.5) / 70
    for label, others in ((1, {3: 2 / 5, 4: 3 / 5}), (3, {1: 5 / 8, 4: 3 / 8}), (4, {1: 5 / 7, 3: 2 / 7})):
        drawn = draw_wrong_labels(torch.full((70,), label), COUNTS, uniform).tolist()
        shares = {other: drawn.count(other) / 70 for other in set(drawn)}
        assert shares == pytest.approx(others, abs=0.02)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_wrong_labels_are_never_right_at_the_ends(uniform: float) -> None:
    counts = torch.tensor([3, 2**25 + 1, 7])
    labels = torch.tensor([0, 1, 2])
    drawn = draw_wrong_labels(labels, counts, torch.full((3,), uniform))
    assert not (drawn == labels).any()
    assert drawn.max() < 3


def test_fixed_wrong_labels_are_present_ones() -> None:
    assert fixed_wrong_labels(COUNTS).tolist() == [1, 3, 1, 4, 1, 1]
    assert fixed_wrong_labels(torch.tensor([4, 0, 4])).tolist() == [2, 0, 0]


def test_labels_of_drawn_images_are_in_proportion() -> None:
    assert proportional_labels(COUNTS, 10).tolist() == [1] * 5 + [3] * 2 + [4] * 3
    assert proportional_labels(COUNTS, 2).tolist() == [1, 4]
