"""AIM's pre-training: what a prediction depends on, what is predicted, and in which order."""

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from helpers import largest_difference, normal, randomize, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from var.models.aim import EncoderConfig
from var.models.aim_pretraining import (
    AIMPretrainer,
    HeadConfig,
    PixelHead,
    check_prefix,
    prefix_lengths,
    target_mask,
)
from var.models.masks import prefix_causal
from var.models.orders import sequence_order
from var.models.pretraining import denormalize_patches, normalize_patches, patch_statistics, patches, unpatchify

SIDE, PATCH = 4, 2
ENCODER = EncoderConfig(image_size=SIDE * PATCH, patch_size=PATCH, width=16, depth=2, heads=2)
N = SIDE * SIDE


def small(order: Tensor | None = None, depth: int = 2) -> AIMPretrainer:
    model = AIMPretrainer(
        ENCODER, HeadConfig(depth=depth, width=8), 12, sequence_order("raster", SIDE) if order is None else order
    )
    randomize(model, seed=1)
    return model


# --- the mask


@given(st.integers(1, 12), st.data())
@settings(max_examples=30, deadline=None)
def test_prefix_causal_is_what_the_paper_says(length: int, data: st.DataObject) -> None:
    prefix = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    mask = prefix_causal(torch.tensor(prefix), length)
    assert mask.shape == (len(prefix), 1, length, length)
    for b, first in enumerate(prefix):
        for i in range(length):
            seen = {j for j in range(length) if mask[b, 0, i, j]}
            assert seen == set(range(max(i + 1, first)))


@pytest.mark.parametrize("kind", ["raster", "spiral"])
def test_a_prediction_depends_on_every_prefix_patch_and_on_no_later_one(kind: str) -> None:
    """By gradients: of the prediction made at each place of the sequence, to the pixels of each patch."""
    order = sequence_order(kind, SIDE)  # type: ignore[arg-type]
    model, prefix = small(order), 5
    images = normal(1, 3, SIDE * PATCH, SIDE * PATCH).requires_grad_()
    predictions = model(images, prefix_lengths([prefix], N))
    assert predictions.shape == (1, N - 1, 12)
    for i in range(N - 1):
        (gradient,) = torch.autograd.grad(predictions[0, i].square().sum(), images, retain_graph=True)
        strength = patches(gradient, PATCH)[0].abs().sum(dim=-1)[order]
        visible = max(i + 1, prefix)
        assert (strength[:visible] > 0).all()
        assert (strength[visible:] == 0).all()


def test_without_a_prefix_it_is_causal() -> None:
    model, images = small(), normal(1, 3, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images, prefix_lengths([0], N))[0, 0].sum(), images)
    strength = patches(gradient, PATCH)[0].abs().sum(dim=-1)
    assert strength[0] > 0
    assert (strength[1:] == 0).all()


def test_samples_have_their_own_prefix() -> None:
    model, images = small(), normal(2, 3, 8, 8)
    both = model(images, prefix_lengths([3, 9], N))
    for b, prefix in enumerate((3, 9)):
        assert largest_difference(both[b : b + 1], model(images[b : b + 1], prefix_lengths([prefix], N))) < 1e-5


def test_prefix_lengths_that_leave_nothing_to_predict_are_refused() -> None:
    with refused("prefix 16", "0..15", "16 patches"):
        prefix_lengths([1, 16], N)
    with refused("prefix -1"):
        prefix_lengths([-1], N)
    with refused("(2, 3, 6, 6)", "(B, 3, 8, 8)"):
        small()(normal(2, 3, 6, 6), prefix_lengths([1, 1], N))


@pytest.mark.parametrize("length", [16, 99, -1])
def test_a_model_refuses_prefixes_outside_the_sequence(length: int) -> None:
    with refused(f"prefix {length} must be in 0..15", "of 16 patches one at least is predicted"):
        small()(normal(2, 3, 8, 8), torch.tensor([3, length]))


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        (torch.tensor([3]), "torch.int64 (1,)"),
        (torch.tensor(3), "torch.int64 ()"),
        (torch.tensor([[3, 3]]), "torch.int64 (1, 2)"),
        (torch.tensor([3.0, 3.0]), "torch.float32 (2,)"),
        (torch.tensor([True, False]), "torch.bool (2,)"),
        ([3, 3], "[3, 3]"),
    ],
    ids=str,
)
def test_a_model_refuses_prefixes_that_are_not_one_whole_number_an_image(prefix: Tensor, what: str) -> None:
    with refused(f"prefix is {what}", "int64 of shape (2,)"):
        small()(normal(2, 3, 8, 8), prefix)
    with refused("torch.float32 (1,)"):
        prefix_lengths([1.5], N)  # type: ignore[list-item]
    assert prefix_lengths([], N).dtype == torch.int64


def test_prefixes_that_would_have_to_be_waited_for_are_checked_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, and in a compiled model: an assertion on the device, for nothing here may look at the values."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check_prefix(torch.tensor([0, 15]), 2, N)
    with pytest.raises(RuntimeError, match=r"must be in 0\.\.15"):
        check_prefix(torch.tensor([0, 16]), 2, N)
    check_prefix(torch.zeros(2, dtype=torch.int64, device="meta"), 2, N)


def test_the_head_is_told_the_place_of_the_patch_that_predicts() -> None:
    """Not of the one predicted: what the position of a place changes is the prediction made there."""
    order = sequence_order("spiral", SIDE)
    model, images, prefix = small(order), normal(1, 3, 8, 8), prefix_lengths([4], N)
    before = model(images, prefix)
    for i in (0, 7, N - 2):
        changed = deepcopy(model)
        changed.head.position[order[i]] += 1  # type: ignore[index]
        differs = (changed(images, prefix) != before)[0].any(dim=-1)
        assert differs.nonzero().flatten().tolist() == [i]


def test_what_counts_are_the_targets_after_the_prefix() -> None:
    counted = target_mask(torch.tensor([0, 1, 2, 15]), N)
    assert counted.shape == (4, N - 1)
    assert counted.sum(dim=1).tolist() == [15, 15, 14, 1]
    assert counted[3].nonzero().flatten().tolist() == [14]  # the last patch, predicted from the one before it


# --- the head


def test_head_is_residual_blocks_on_every_patch_alone() -> None:
    head = PixelHead(ENCODER, HeadConfig(depth=3, width=8, mlp_ratio=2.0), 5)
    randomize(head, seed=2)
    x, places = normal(2, 4, 16), torch.tensor([3, 0, 9, 2])
    h = head.widen(x) + head.position[places]  # type: ignore[index]
    for norm, mlp in zip(head.norms, head.mlps, strict=True):
        z = norm(h)
        h = h + 0.5 * (z @ mlp.up.weight.T) * (1 + torch.erf(z @ mlp.up.weight.T / math.sqrt(2))) @ mlp.down.weight.T
    assert largest_difference(head(x, places), head.predict(head.norm(h))) < 1e-5
    assert largest_difference(head(x[:, 1:2], places[1:2]), head(x, places)[:, 1:2]) < 1e-6


def test_no_head_is_one_linear_map() -> None:
    head = PixelHead(ENCODER, HeadConfig(depth=0), 5)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "predict.weight": (5, 16),
        "predict.bias": (5,),
    }
    x = normal(2, 3, 16)
    assert torch.equal(head(x, torch.arange(3)), head.predict(x))


def test_head_sizes_that_cannot_work() -> None:
    for wrong in ({"depth": -1}, {"width": 6}, {"width": 0}, {"mlp_ratio": 0.0}):
        with refused(f"{next(iter(wrong))}="):
            HeadConfig(**wrong)  # type: ignore[arg-type]


# --- orders


@pytest.mark.parametrize("kind", ["raster", "spiral", "checkerboard", "z-curve", "random"])
@pytest.mark.parametrize("side", [1, 2, 3, 6, 16])
def test_every_order_visits_every_patch_once(kind: str, side: int) -> None:
    assert sequence_order(kind, side).sort().values.tolist() == list(range(side * side))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["zigzag", "Raster", None])
def test_orders_that_there_are_not(kind: object) -> None:
    with refused(f"order={kind!r} is unknown", "raster, spiral, checkerboard, z-curve, random"):
        sequence_order(kind, 3)  # type: ignore[arg-type]


def test_orders_are_what_they_are_called() -> None:
    assert sequence_order("raster", 3).tolist() == list(range(9))
    assert sequence_order("checkerboard", 3).tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7]
    for side in (3, 4, 7):
        spiral = [divmod(place, side) for place in sequence_order("spiral", side).tolist()]
        for (a, b), (c, d) in pairwise(spiral):
            assert abs(a - c) + abs(b - d) == 1  # from a patch to a neighbor
        ring = [max(abs(2 * a - side + 1), abs(2 * b - side + 1)) for a, b in spiral]
        assert ring == sorted(ring)  # outwards
    assert torch.equal(sequence_order("random", 6, seed=3), sequence_order("random", 6, seed=3))
    assert not torch.equal(sequence_order("random", 6, seed=3), sequence_order("random", 6, seed=4))


# --- targets


def test_patches_hold_the_pixels_of_their_place() -> None:
    images = normal(2, 3, 8, 8)
    out = patches(images, PATCH)
    assert out.shape == (2, N, 12)
    for place in (0, 1, 6, 15):
        row, column = divmod(place, SIDE)
        part = images[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        assert torch.equal(out[:, place], part.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(out, PATCH), images)


def test_statistics_are_of_each_patch_with_the_unbiased_variance() -> None:
    x = normal(2, 5, 12).double()
    mean, deviation = patch_statistics(x)
    expected = ((x - x.mean(dim=-1, keepdim=True)).square().sum(dim=-1, keepdim=True) / 11 + 1e-6).sqrt()
    assert largest_difference(mean, x.mean(dim=-1, keepdim=True)) < 1e-12
    assert largest_difference(deviation, expected) < 1e-12
    assert largest_difference(denormalize_patches(normalize_patches(x), x), x) < 1e-12
    flat = torch.full((1, 1, 12), 0.3)
    mean, deviation = patch_statistics(flat)
    assert ((flat - mean) / deviation).abs().max() < 1e-3  # a patch of one color does not blow up
