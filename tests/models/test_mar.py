"""MAR: conditions of masked tokens from the known ones."""

import pytest
import torch
from helpers import CLASSES, LATENT, largest_difference, normal, refused, small_mar

from var.models.mar import MARConfig

LABELS = torch.tensor([0, CLASSES, 3])
LENGTH = 16


def mask_of(*known: int) -> torch.Tensor:
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[:, list(known)] = False
    return mask


@torch.inference_mode()
def test_known_tokens_reach_all_and_masked_ones_none() -> None:
    model, tokens, mask = small_mar(), normal(3, LENGTH, LATENT), mask_of(2, 7)
    conditions = model(LABELS, tokens, mask)
    assert conditions.shape == (3, LENGTH, 32)
    changed = tokens.clone()
    changed[:, [0, 1, 3]] += 5
    assert torch.equal(model(LABELS, changed, mask), conditions)
    changed[:, 7] += 5
    assert ((model(LABELS, changed, mask) - conditions).abs().amax(dim=-1) > 1e-4).all()


@torch.inference_mode()
def test_conditions_of_the_loop_are_those_of_training() -> None:
    model, tokens, mask = small_mar(), normal(3, LENGTH, LATENT), mask_of(0, 5, 9)
    assert largest_difference(model(LABELS, tokens, mask), model.predict(tokens, mask, model.condition(LABELS))) < 1e-6
    assert largest_difference(model(LABELS, tokens, mask), model(LABELS, tokens, mask, checkpoint=True)) < 1e-6


def test_every_parameter_has_a_gradient() -> None:
    model = small_mar()
    read = lambda head, z: head(normal(3 * LENGTH, LATENT), torch.arange(3 * LENGTH), z.flatten(0, 1))  # noqa: E731
    model(LABELS, normal(3, LENGTH, LATENT), mask_of(1), read=read).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_head_stays_in_float32() -> None:
    model = small_mar().cast(torch.bfloat16)
    assert {parameter.dtype for parameter in model.head.parameters()} == {torch.float32}
    assert model(LABELS, normal(3, LENGTH, LATENT), mask_of(1)).dtype == torch.float32


def test_sizes_that_cannot_work() -> None:
    with refused("scales [1, 4] are 2 token maps"):
        MARConfig(scales=(1, 4))
    with refused("head_depth=0 must be at least 1"):
        MARConfig(head_depth=0)
    with refused("head_width=-1 must not be negative"):
        MARConfig(head_width=-1)


@pytest.mark.parametrize("shape", [(3, LENGTH - 1, LATENT), (2, LENGTH, LATENT)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with refused(f"tokens of shape {shape}", f"(3, {LENGTH}, {LATENT})"):
        small_mar()(LABELS, normal(*shape), mask_of(0))
