"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from var.training.ema import EMA


def constant(value: float) -> nn.Module:
    model = nn.BatchNorm1d(3)  # has parameters and buffers
    with torch.no_grad():
        for entry in (*model.parameters(), model.running_mean):
            assert entry is not None
            entry.fill_(value)
    return model


def closed_form(values: list[float], decay: float, first_step: int = 0) -> float:
    """Sum of the values, each weighted by what the later steps leave of it."""
    average = values[0]
    for step, value in enumerate(values[1:], start=first_step):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * value
    return average


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.99])
def test_it_follows_the_closed_form(decay: float) -> None:
    values = [3.0, -1.0, 4.0, 1.5, 9.0, 2.0, 6.0]
    ema = EMA(constant(values[0]), decay)
    for step, value in enumerate(values[1:]):
        ema.update(constant(value), step)
    expected = closed_form(values, decay)
    for parameter in ema.model.parameters():
        torch.testing.assert_close(parameter, torch.full((3,), expected))


def test_late_steps_use_the_decay_itself_and_early_ones_forget_faster() -> None:
    late, early = EMA(constant(1.0), 0.9), EMA(constant(1.0), 0.9)
    late.update(constant(2.0), 10**6)
    early.update(constant(2.0), 0)
    torch.testing.assert_close(next(late.model.parameters()), torch.full((3,), 1.1))
    torch.testing.assert_close(next(early.model.parameters()), torch.full((3,), 1.9))


def test_buffers_are_copied_not_averaged() -> None:
    ema = EMA(constant(1.0), 0.99)
    ema.update(constant(5.0), 10**6)
    assert torch.equal(ema.model.running_mean, torch.full((3,), 5.0))


def test_the_average_is_a_copy_that_is_never_trained() -> None:
    model = constant(1.0)
    ema = EMA(model.train(), 0.9)
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    ema.update(constant(7.0), 0)
    assert torch.equal(next(model.parameters()), torch.ones(3))
