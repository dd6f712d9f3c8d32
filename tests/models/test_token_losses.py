"""Loss and accuracy of tokens against NumPy."""

import numpy as np
import pytest
import torch
from helpers import SIDES, VOCAB, normal, random_tokens
from scipy.special import log_softmax

from tokenizer.scales import Scales
from var.models.token_losses import image_means, token_losses

SCALES = Scales(SIDES)


def test_losses_and_hits_are_numpys() -> None:
    logits, tokens = normal(3, SCALES.total, VOCAB), random_tokens(3, SCALES.total)
    tokens[:, ::3] = logits.argmax(dim=-1)[:, ::3]
    each = token_losses(logits, tokens)
    log_p = log_softmax(logits.double().numpy(), axis=-1)
    expected = -np.take_along_axis(log_p, tokens.numpy()[..., None], axis=-1)[..., 0]
    assert each.loss.numpy() == pytest.approx(expected, rel=1e-5)
    assert np.array_equal(each.accuracy.numpy(), log_p.argmax(axis=-1) == tokens.numpy())
    assert 0.3 < each.accuracy.mean() < 0.5


def test_means_of_pictures_and_scales_take_each_its_tokens() -> None:
    logits, tokens = normal(2, SCALES.total, VOCAB), random_tokens(2, SCALES.total)
    each = token_losses(logits, tokens)
    means = image_means(each, SCALES)
    assert list(means) == ["loss", "accuracy", *(f"{n}/{s}x{s}" for n in ("loss", "accuracy") for s in SIDES)]
    for name, values in each._asdict().items():
        assert torch.equal(means[name], values.mean(dim=1))
        for side, start, stop in ((1, 0, 1), (2, 1, 5), (4, 5, 21)):
            assert means[f"{name}/{side}x{side}"].tolist() == pytest.approx(values[:, start:stop].mean(1).tolist())


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    logits, tokens = normal(1, SCALES.total, VOCAB).requires_grad_(), random_tokens(1, SCALES.total)
    token_losses(logits, tokens).loss.sum().backward()
    expected = logits.detach().softmax(-1) - torch.nn.functional.one_hot(tokens, VOCAB)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-6)
