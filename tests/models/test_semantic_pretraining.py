"""SemAIM: the order of the patches, what a prediction depends on, and that finding the order trains nothing."""

import math

import pytest
import torch
from helpers import largest_difference, normal, randomize, refused
from torch import Tensor

from var.models.aim import Encoder, EncoderConfig
from var.models.aim_pretraining import prefix_lengths
from var.models.pretraining import DecoderConfig, patches
from var.models.semantic_order import mean_query_attention, semantic_order, smooth
from var.models.semantic_pretraining import SemAIMPretrainer

SIDE, PATCH = 4, 2
ENCODER = EncoderConfig(image_size=SIDE * PATCH, patch_size=PATCH, width=16, depth=2, heads=2)
N = SIDE * SIDE


def small(smoothing: float = 1.0) -> SemAIMPretrainer:
    model = SemAIMPretrainer(ENCODER, DecoderConfig(depth=2, width=8, heads=2), 12, smoothing)
    randomize(model, seed=1)
    return model


def attention_by_hand(encoder: Encoder, image: Tensor) -> Tensor:
    """One image's attention (N,) in float64, head by head."""
    (x,) = encoder.extract_features(image[None], [0])
    last = encoder.blocks[1]
    x = last.norm_attention(x)[0].double()  # (N, D)
    query, key = (part.double() for part in last.attention.qkv.weight.split(16)[:2])
    total = torch.zeros(N, dtype=torch.float64)
    for head in (slice(0, 8), slice(8, 16)):
        q, k = (x @ query.T)[:, head].mean(dim=0), (x @ key.T)[:, head]
        weights = (k @ q / math.sqrt(8)).exp()
        total += weights / weights.sum() / 2
    return total


def test_the_order_is_by_the_attention_of_the_mean_query_in_the_last_block() -> None:
    encoder, images = small().encoder, normal(3, 3, 8, 8)
    expected = torch.stack([attention_by_hand(encoder, image) for image in images])
    assert largest_difference(mean_query_attention(encoder, images).double(), expected) < 1e-6
    order = semantic_order(encoder, images, 0)
    assert order.dtype == torch.int64
    assert torch.equal(order, expected.argsort(dim=1, descending=True))
    assert not torch.equal(order[0], order[1])  # each image has its own
    smoothed = smooth(expected.float().view(3, SIDE, SIDE), 1.0).flatten(1)
    assert torch.equal(semantic_order(encoder, images, 1.0), smoothed.argsort(dim=1, descending=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 3.0])
def test_the_order_is_a_permutation_for_each_image(smoothing: float) -> None:
    order = semantic_order(small().encoder, normal(5, 3, 8, 8), smoothing)
    assert torch.equal(order.sort(dim=1).values, torch.arange(N).expand(5, N))


def test_equal_patches_keep_their_order() -> None:
    encoder = small().encoder
    torch.nn.init.zeros_(encoder.blocks[1].attention.qkv.weight)
    assert torch.equal(semantic_order(encoder, normal(2, 3, 8, 8), 0), torch.arange(N).expand(2, N))


def test_a_gaussian_smooths_the_map() -> None:
    point = torch.zeros(1, 7, 7)
    point[0, 3, 2] = 1
    expected = torch.zeros(7, 7)
    for row in range(7):
        for column in range(7):
            weights = [
                [math.exp(-((place - other) ** 2) / (2 * 0.8**2)) for other in range(7)] for place in (row, column)
            ]
            expected[row, column] = weights[0][3] / sum(weights[0]) * weights[1][2] / sum(weights[1])
    assert largest_difference(smooth(point, 0.8)[0], expected) < 1e-6
    assert largest_difference(smooth(torch.ones(1, 5, 5), 2.0), torch.ones(1, 5, 5)) < 1e-6  # none is lost at the edge
    assert smooth(point, 0) is point


@pytest.mark.parametrize("prefix", [0, 5])
def test_a_prediction_depends_on_every_patch_before_it_and_on_no_later_one(
    prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gradients: of the prediction made at each place of the order, to the pixels of each patch."""
    model, images = small(), normal(1, 3, 8, 8).requires_grad_()
    predictions, order = model(images, prefix_lengths([prefix], N))
    assert predictions.shape == (1, N - 1, 12)
    assert torch.equal(order, semantic_order(model.encoder, images, 1.0))
    for i in range(N - 1):
        (gradient,) = torch.autograd.grad(predictions[0, i].square().sum(), images, retain_graph=True)
        strength = patches(gradient, PATCH)[0].abs().sum(dim=-1)[order[0]]
        visible = max(i + 1, prefix)
        assert (strength[:visible] > 0).all()
        assert (strength[visible:] == 0).all()


def test_a_prediction_knows_which_patch_it_is_of() -> None:
    model, images = small(), normal(1, 3, 8, 8)
    features, first = model.encoder(images)[:, :1], torch.ones(1, 1, 1, 1, dtype=torch.bool)
    one, other = (model.decoder(features, torch.tensor([[target]]), first) for target in (3, 7))
    assert largest_difference(one, other) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_is_found_without_gradients_and_all_weights_get_theirs_from_the_predictions(
    dtype: torch.dtype,
) -> None:
    """Under autocast too, which caches its casts of weights: those made for the order must not be used again."""
    model, images = small(), normal(2, 3, 8, 8)
    assert not semantic_order(model.encoder, images.clone().requires_grad_(), 1.0).requires_grad
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        predictions, _ = model(images, prefix_lengths([0, 0], N))
    predictions.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_sizes_that_cannot_work() -> None:
    with refused("width=10", "heads=4"):
        DecoderConfig(width=10, heads=4)
    with refused("depth=0", "at least 1"):
        DecoderConfig(depth=0)
    with refused("width=0 must be in 4..65536"):
        DecoderConfig(width=0)
    with refused("prefix 16"):
        small()(normal(1, 3, 8, 8), torch.tensor([16]))
