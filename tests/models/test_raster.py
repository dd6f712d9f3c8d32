"""Raster: next-token prediction in any order of the cells."""

from itertools import permutations, product

import pytest
import torch
from helpers import CLASSES, LATENT, VOCAB, largest_difference, normal, refused, small_raster
from torch import Tensor

from var.models.raster import Raster, RasterConfig
from var.models.var import require_var

ORDERS = ["raster", "spiral", "z-curve"]
LABELS = torch.tensor([0, CLASSES, 3])
LENGTH = 16


def inputs(batch: int = 3, length: int = LENGTH) -> Tensor:
    return normal(batch, length - 1, LATENT)


@pytest.mark.parametrize("order", ORDERS)
@torch.inference_mode()
def test_token_by_token_with_a_cache_equals_all_at_once(order: str) -> None:
    model, codes = small_raster(order=order), inputs()
    whole = model(LABELS, codes)
    condition, cache = model.condition(LABELS), model.new_cache(3)
    steps = [model.step(i, codes[:, i - 1 : i] if i else None, condition, cache) for i in range(LENGTH)]
    assert largest_difference(torch.cat(steps, dim=1), whole) < 1e-5


def test_its_own_order_is_the_default() -> None:
    model, codes = small_raster(order="spiral"), inputs()
    assert torch.equal(model(LABELS, codes), model(LABELS, codes, model.order.expand(3, -1)))
    assert not torch.equal(model(LABELS, codes), model(LABELS, codes, torch.arange(LENGTH)))


@torch.inference_mode()
def test_every_sample_may_have_an_order_of_its_own() -> None:
    model, codes = small_raster(), inputs()
    orders = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    together = model(LABELS, codes, orders)
    alone = [model(LABELS[i : i + 1], codes[i : i + 1], orders[i]) for i in range(3)]
    assert largest_difference(together, torch.cat(alone)) < 1e-5


@torch.inference_mode()
def test_what_is_predicted_is_the_token_of_the_cell_that_comes_next() -> None:
    """Orders that differ from token i on give the same predictions before it, and another one of it."""
    model, codes = small_raster(), inputs(1)
    order = torch.arange(LENGTH)
    swapped = order.clone()
    swapped[[5, 9]] = order[[9, 5]]
    a, b = (model(LABELS[:1], codes, each) for each in (order, swapped))
    assert largest_difference(a[:, :5], b[:, :5]) < 1e-6
    assert (a[:, 5] - b[:, 5]).abs().max() > 1e-2


@torch.inference_mode()
def log_likelihoods(model: Raster, order: Tensor | None) -> Tensor:
    """Log-likelihood of every map of 2x2 tokens, (81,) float64."""
    codebook = normal(3, LATENT, seed=4)
    tokens = torch.tensor(list(product(range(3), repeat=4)))  # in the order of their prediction
    labels = torch.full((len(tokens),), 2)
    logits = model(labels, codebook[tokens[:, :-1]], order).double()
    return logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0].sum(dim=1)


@pytest.mark.parametrize("order", ORDERS)
def test_the_likelihoods_of_all_token_maps_sum_to_one(order: str) -> None:
    likelihoods = log_likelihoods(small_raster(scales=(2,), vocab_size=3, order=order), None).exp()
    assert likelihoods.sum().item() == pytest.approx(1, abs=1e-5)
    assert likelihoods.max() > 2 * likelihoods.min()  # the model is no uniform one, which would sum to 1 too


def test_in_every_order_the_likelihoods_sum_to_one() -> None:
    model = small_raster(scales=(2,), vocab_size=3)
    for order in permutations(range(4)):
        assert log_likelihoods(model, torch.tensor(order)).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_initial_weights_are_drawn_as_those_of_a_var() -> None:
    torch.manual_seed(0)
    model = Raster(RasterConfig(depth=2, width=32, heads=4, scales=(4,), vocab_size=VOCAB, num_classes=CLASSES))
    deviation = (1 / 3 / 32) ** 0.5
    for position in (model.position, model.token_position):
        assert position.std().item() == pytest.approx(deviation, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(0.02 * deviation, rel=0.2)
    assert set(model.state_dict()) >= {"position", "token_position", "start_position", "head_adaln.linear.weight"}


def test_sizes_that_cannot_work() -> None:
    with refused("scales [1, 2, 4] are 3 token maps", "model.scales=[4]"):
        RasterConfig(scales=(1, 2, 4))
    with refused("order='random' must be one of raster, spiral, z-curve"):
        RasterConfig(order="random")  # type: ignore[arg-type]
    with refused("drop_path=1.5"):
        RasterConfig(drop_path=1.5)


def test_inputs_of_another_shape_are_refused() -> None:
    with refused("teacher forcing input of shape (3, 16, 8)", "(3, 15, 8)"):
        small_raster()(LABELS, inputs(length=LENGTH + 1))


def test_work_that_needs_a_var() -> None:
    with refused("upscaling needs a VAR, and the model is a Raster"):
        require_var(small_raster(), "upscaling")
