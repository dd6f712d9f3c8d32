"""Loss and accuracy of tokens against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import SIDES, VOCAB, normal, random_tokens
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tokenizer.scales import Scales
from var.models.token_losses import head_losses, image_means, token_losses

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


def head_and_input() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(8, VOCAB), normal(3, SCALES.total, 8).requires_grad_(), random_tokens(3, SCALES.total)


@pytest.mark.parametrize("rows", [0, 1, 10, 62, 63])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias")])
def test_losses_in_parts_and_their_gradients_are_those_of_the_whole(rows: int, frozen: tuple[str, ...]) -> None:
    head, x, tokens = head_and_input()
    tokens[:, ::3] = head(x).argmax(dim=-1)[:, ::3]
    trained = [x, *(parameter for name, parameter in head.named_parameters() if name not in frozen)]
    head.requires_grad_(False)
    for tensor in trained:
        tensor.requires_grad_()
    weights = torch.linspace(-1, 2, tokens.numel()).view_as(tokens)  # each token's loss has a gradient of its own
    whole, parts = token_losses(head(x), tokens), head_losses(head, x, tokens, chunk=rows * VOCAB)
    assert torch.allclose(parts.loss, whole.loss, rtol=1e-5)
    assert torch.equal(parts.accuracy, whole.accuracy)
    assert not parts.accuracy.requires_grad
    expected = torch.autograd.grad((whole.loss * weights).sum(), trained)
    found = torch.autograd.grad((parts.loss * weights).sum(), trained)
    for each, other in zip(found, expected, strict=True):
        assert torch.allclose(each, other, rtol=1e-4, atol=1e-6)


def test_losses_in_parts_are_finite_where_exp_would_overflow() -> None:
    head, x, tokens = head_and_input()
    large = x.detach() * 1e4
    loss = head_losses(head, large, tokens, chunk=VOCAB).loss
    assert torch.allclose(loss, token_losses(head(large), tokens).loss, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """The most numbers in one tensor that an operation inside returns."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_never_more_logits_at_once_than_a_part() -> None:
    head, x, tokens = head_and_input()
    with LargestTensor() as largest:
        head_losses(head, x, tokens, chunk=10 * VOCAB).loss.sum().backward()
    assert largest.numbers == max(10 * VOCAB, x.numel())
    with LargestTensor() as largest:
        head_losses(head, x, tokens).loss.sum().backward()
    assert largest.numbers == tokens.numel() * VOCAB
