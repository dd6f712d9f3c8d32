"""The residual pyramid against an independent one in NumPy and float64, and what training needs of it."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from helpers import (
    LATENT,
    SIDES,
    VOCAB,
    largest_difference,
    normal,
    random_tokens,
    randomize,
    small_quantizer,
    small_vqvae,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import correlate
from scipy.special import softmax
from torch import Tensor

from tokenizer.quantizer import Quantizer, phi_of_scale, resize_down, resize_up
from tokenizer.scales import SCALES_256, SCALES_512, Scales

Array = NDArray[Any]
LADDERS = ((1, 2, 4), (1, 2, 3, 4), (1, 3, 5), (1, 2, 3, 5, 6), (4,))


def area_matrix(old: int, new: int) -> Array:
    """Row i averages the cells from floor(i * old / new) to ceil((i + 1) * old / new)."""
    matrix = np.zeros((new, old))
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def bicubic_matrix(old: int, new: int) -> Array:
    """Keys' cubic convolution with a = -0.75, pixel centers aligned, edges repeated."""
    a, matrix = -0.75, np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(center) - 1, math.floor(center) + 3):
            d = abs(tap - center)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(tap, 0), old - 1)] += near if d <= 1 else far
    return matrix


def resized(maps: Array, matrix: Array) -> Array:
    return np.einsum("ih,bchw,jw->bcij", matrix, maps, matrix)


def nearest_ticks(num_phi: int, k: int, num_scales: int) -> set[int]:
    """The facts' rule in exact arithmetic; two where the scale lies halfway between ticks."""
    edge = Fraction(1, 3 * num_phi) if num_phi == 4 else Fraction(1, 2 * num_phi)
    ticks = [edge + j * (1 - 2 * edge) / max(num_phi - 1, 1) for j in range(num_phi)]
    distances = [abs(tick - Fraction(k, max(num_scales - 1, 1))) for tick in ticks]
    return {j for j, distance in enumerate(distances) if distance == min(distances)}


def phi(h: Array, quantizer: Quantizer, k: int) -> Array:
    conv = quantizer.phi[quantizer.phi_index[k]]
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = [[correlate(sample, kernel, mode="valid")[0] for kernel in weight] for sample in padded]
    return 0.5 * h + 0.5 * (np.array(out) + bias[None, :, None, None])


def pyramid(features: Tensor, quantizer: Quantizer) -> tuple[list[Array], list[Array]]:
    """Tokens and cumulative f_hat of every scale."""
    codebook = quantizer.codebook.weight.detach().double().numpy()
    rest = features.double().numpy().copy()
    f_hat, side = np.zeros_like(rest), rest.shape[-1]
    tokens, f_hats = [], []
    for k, small in enumerate(quantizer.scales.sides):
        z = resized(rest, area_matrix(side, small)).transpose(0, 2, 3, 1)  # b h w c
        if quantizer.cosine:
            unit = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
            chosen = (z @ unit.T).argmax(axis=-1)  # the length of z changes no order
        else:
            chosen = np.square(z[..., None, :] - codebook).sum(axis=-1).argmin(axis=-1)
        h = codebook[chosen].transpose(0, 3, 1, 2)
        h = phi(resized(h, bicubic_matrix(small, side)) if small != side else h, quantizer, k)
        f_hat, rest = f_hat + h, rest - h
        tokens.append(chosen.reshape(len(chosen), -1))
        f_hats.append(f_hat)
    return tokens, f_hats


@given(st.integers(0, 10**6), st.sampled_from(LADDERS), st.sampled_from([1, 2, 3, 4]), st.booleans())
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_pyramid_equals_numpy_in_float64(seed: int, sides: tuple[int, ...], num_phi: int, cosine: bool) -> None:
    quantizer = small_quantizer(seed, sides, num_phi=num_phi, cosine=cosine)
    features = normal(2, LATENT, sides[-1], sides[-1], seed=seed)
    tokens, f_hats = pyramid(features, quantizer)
    encoded = quantizer.encode(features)
    assert np.array_equal(encoded.numpy(), np.concatenate(tokens, axis=1))
    for k, f_hat in enumerate(f_hats):
        assert largest_difference(quantizer.decode(encoded, num_scales=k + 1), torch.from_numpy(f_hat)) < 1e-5


@given(st.integers(2, 12), st.integers(1, 12))
@settings(deadline=None)
def test_area_resize_is_the_mean_of_the_covered_cells(old: int, new: int) -> None:
    maps = normal(1, 2, old, old)
    ours = resize_down(maps, min(new, old))
    assert largest_difference(ours, torch.from_numpy(resized(maps.numpy(), area_matrix(old, min(new, old))))) < 1e-6


def test_bicubic_resize_equals_the_formula() -> None:
    maps = normal(1, 2, 3, 3)
    assert largest_difference(resize_up(maps, 7), torch.from_numpy(resized(maps.numpy(), bicubic_matrix(3, 7)))) < 1e-5


@torch.no_grad()
def test_phi_mixes_by_its_ratio() -> None:
    codes, half = normal(2, 4, LATENT), small_quantizer()
    halved = half.scale_update(codes, 1)
    identity = small_quantizer(phi_ratio=0).scale_update(codes, 1)
    assert not list(small_quantizer(phi_ratio=0).phi.parameters())
    assert torch.equal(identity, resize_up(rearrange(codes, "b (h w) c -> b c h w", h=2), SIDES[-1]))
    for ratio in (0.25, 1.0):
        mixed = small_quantizer(phi_ratio=ratio).scale_update(codes, 1)
        assert largest_difference(mixed, identity + 2 * ratio * (halved - identity)) < 1e-5


@pytest.mark.parametrize("num_scales", [1, 3, 4, 6, 10])
@pytest.mark.parametrize("num_phi", [1, 2, 3, 4, 5, 10])
def test_phi_of_scale(num_phi: int, num_scales: int) -> None:
    chosen = phi_of_scale(num_phi, num_scales)
    assert len(chosen) == num_scales
    assert all(j in nearest_ticks(num_phi, k, num_scales) for k, j in enumerate(chosen))


def test_phi_of_the_released_ladders() -> None:
    # Scales 2 and 7 lie halfway between ticks: the released weights were trained with NumPy's rounding in double.
    ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
    reference = [np.argmin(np.abs(ticks - k / 9)).item() for k in range(10)]
    assert reference == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_of_scale(4, len(SCALES_256)) == phi_of_scale(4, len(SCALES_512)) == reference


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_as_many_phi_as_scales_means_one_each(count: int) -> None:
    assert phi_of_scale(count, count) == list(range(count))


@torch.no_grad()
def test_teacher_forcing_input_is_the_resized_sum_of_the_coarser_scales() -> None:
    quantizer, tokens = small_quantizer(sides=(1, 2, 3, 4)), random_tokens(2, 30)
    parts = quantizer.scales.split(quantizer.teacher_forcing_input(tokens).new_zeros(2, 30, LATENT))
    ours = torch.cat([parts[0], quantizer.teacher_forcing_input(tokens)], dim=1)
    for k, part in enumerate(quantizer.scales.split(ours)[1:], start=1):
        coarser = quantizer.decode(tokens, num_scales=k).double().numpy()
        expected = resized(coarser, area_matrix(4, quantizer.scales.sides[k])).transpose(0, 2, 3, 1)
        assert largest_difference(part, torch.from_numpy(expected).flatten(1, 2)) < 1e-6


@torch.no_grad()
def test_a_finer_token_changes_no_coarser_input() -> None:
    quantizer, tokens = small_quantizer(), random_tokens(1, 21)
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB  # the last token of scale 1: only scale 2 may notice
    a, b = quantizer.teacher_forcing_input(tokens), quantizer.teacher_forcing_input(changed)
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.equal(a[:, 4:], b[:, 4:])


def test_arguments_are_not_written_to() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4)
    before = features.clone()
    tokens = quantizer.encode(features)
    kept = tokens.clone()
    quantizer(features)
    quantizer.teacher_forcing_input(tokens)
    quantizer(features, torch.tensor([1, 3]))
    quantizer.entropy_loss(features)
    assert torch.equal(features, before)
    assert torch.equal(tokens, kept)


def test_vq_loss_is_the_formula() -> None:
    quantizer, features = small_quantizer(beta=0.25), normal(2, LATENT, 4, 4)
    _, f_hats = pyramid(features, quantizer)
    errors = [np.square(f_hat - features.numpy()).mean() for f_hat in f_hats]
    assert quantizer(features).loss.item() == pytest.approx(1.25 * np.mean(errors), rel=1e-5)


def test_vq_loss_pulls_features_by_beta_and_codewords_by_one() -> None:
    quantizer, features = small_quantizer(beta=0.25), normal(2, LATENT, 4, 4).requires_grad_()
    quantizer(features).loss.backward()
    _, f_hats = pyramid(features.detach(), quantizer)
    gaps = np.mean([features.detach().numpy() - f_hat for f_hat in f_hats], axis=0)
    expected = 0.25 * 2 * gaps / features.numel()
    assert largest_difference(features.grad, torch.from_numpy(expected)) < 1e-7

    # The gradient on the last scale's phi bias comes from the second term alone.
    k = len(f_hats) - 1
    users = [j for j in range(k + 1) if quantizer.phi_index[j] == quantizer.phi_index[k]]
    assert users == [k]
    gap = f_hats[k] - features.detach().numpy()
    by_hand = (0.5 * 2 * gap / features.numel()).sum(axis=(0, 2, 3)) / len(f_hats)
    assert largest_difference(quantizer.phi[quantizer.phi_index[k]].bias.grad, torch.from_numpy(by_hand)) < 1e-6


def test_reconstruction_gradient_passes_straight_through() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4).requires_grad_()
    out = quantizer(features)
    assert largest_difference(out.straight_through, quantizer.decode(out.tokens)) < 1e-6
    weights = normal(2, LATENT, 4, 4, seed=1)
    (out.straight_through * weights).sum().backward()
    assert torch.equal(features.grad, weights)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_training_pass_draws_the_tokens_of_encode() -> None:
    quantizer, features = small_quantizer(), normal(3, LATENT, 4, 4)
    assert torch.equal(quantizer(features).tokens, quantizer.encode(features))


@torch.no_grad()
def test_cosine_and_distance_choose_differently() -> None:
    codes = torch.tensor([[10.0, 1.0], [0.5, 0.5]])
    z = torch.tensor([1.0, 0.1]).reshape(1, 2, 1, 1)
    for cosine, expected in ((True, 0), (False, 1)):
        quantizer = Quantizer(small_quantizer().scales, 2, 2, cosine=cosine)
        quantizer.codebook.weight.copy_(codes)
        assert quantizer.nearest(z).tolist() == [[expected]]


@torch.no_grad()
def test_bfloat16_network_keeps_the_quantiser_exact() -> None:
    vqvae = small_vqvae()
    before = {name: value.clone() for name, value in vqvae.quantizer.state_dict().items()}
    images = normal(2, 3, 8, 8).clamp(-1, 1)
    vqvae.cast(torch.bfloat16)
    assert vqvae.dtype == vqvae.features(images).dtype == torch.bfloat16
    for name, value in vqvae.quantizer.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name]), f"{name} was rounded"
    assert vqvae.quantizer.decode(vqvae.encode(images)).dtype == torch.float32


@torch.no_grad()
def test_autocast_does_not_reach_the_quantiser() -> None:
    quantizer = small_quantizer(vocab=512)
    features = normal(4, LATENT, 4, 4)
    tokens, f_hat = quantizer.encode(features), quantizer.decode(quantizer.encode(features))
    inputs, nearest = quantizer.teacher_forcing_input(tokens), quantizer.nearest(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(features), tokens)
        assert torch.equal(quantizer.nearest(features), nearest)
        assert torch.equal(quantizer.decode(tokens), f_hat)
        assert torch.equal(quantizer.teacher_forcing_input(tokens), inputs)
        assert torch.equal(quantizer(features).tokens, tokens)


def test_every_codeword_that_scales_use_gets_a_gradient() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4)
    out = quantizer(features)
    out.loss.backward()
    touched = quantizer.codebook.weight.grad.abs().sum(dim=1) > 0
    assert torch.equal(touched.nonzero().flatten(), out.tokens.unique())


def test_a_codebook_of_many_close_codes_is_searched_exactly() -> None:
    quantizer = small_quantizer(vocab=2048)
    randomize(quantizer, seed=5, std=0.05)
    codes = quantizer.codebook.weight.detach()
    found = quantizer.nearest(codes.T.reshape(1, LATENT, 32, 64))
    assert torch.equal(found[0], torch.arange(2048))


def test_the_training_pass_writes_no_usage() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4)
    quantizer.usage.fill_(7.0)
    quantizer(features)
    quantizer.entropy_loss(features)
    assert (quantizer.usage == 7).all()


# --- quantizer dropout


@torch.no_grad()
def test_each_sample_is_passed_on_as_its_first_scales() -> None:
    quantizer, features = small_quantizer(), normal(4, LATENT, 4, 4)
    kept = torch.tensor([2, 1, 3, 2])
    out = quantizer(features, kept)
    for i, k in enumerate(kept.tolist()):
        alone = quantizer.decode(out.tokens[i : i + 1], num_scales=k)
        assert largest_difference(out.straight_through[i : i + 1], alone) < 1e-6
    assert largest_difference(out.straight_through[:1], quantizer.decode(out.tokens[:1])) > 0.01


def test_quantiser_dropout_changes_neither_loss_nor_tokens_nor_their_gradients() -> None:
    quantizer, features = small_quantizer(), normal(3, LATENT, 4, 4)
    losses, gradients = [], []
    for num_scales in (None, torch.tensor([1, 2, 3]), torch.tensor([1, 1, 1])):
        leaf = features.clone().requires_grad_()
        out = quantizer(leaf, num_scales)
        assert torch.equal(out.tokens, quantizer.encode(features))
        used = [p for i, p in enumerate(quantizer.phi) if i in quantizer.phi_index]
        wanted = [leaf, quantizer.codebook.weight, *(p.weight for p in used)]
        gradients.append(torch.autograd.grad(out.loss, wanted))
        losses.append(out.loss.item())
    assert losses[0] == losses[1] == losses[2]
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_all_scales_for_every_sample_is_no_dropout() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4)
    assert torch.equal(quantizer(features, torch.tensor([3, 3])).straight_through, quantizer(features).straight_through)


def test_the_gradient_passes_straight_through_whatever_was_dropped() -> None:
    quantizer, features = small_quantizer(), normal(3, LATENT, 4, 4).requires_grad_()
    weights = normal(3, LATENT, 4, 4, seed=1)
    (quantizer(features, torch.tensor([1, 2, 3])).straight_through * weights).sum().backward()
    assert torch.equal(features.grad, weights)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


# --- crowding


def crowding(features: Tensor, quantizer: Quantizer) -> float:
    """The formula in float64."""
    codebook = quantizer.codebook.weight.detach().double().numpy()
    _, f_hats = pyramid(features, quantizer)
    rests = [features.double().numpy(), *(features.double().numpy() - f_hat for f_hat in f_hats[:-1])]
    terms = []
    for side, rest in zip(quantizer.scales.sides, rests, strict=True):
        z = resized(rest, area_matrix(rest.shape[-1], side)).transpose(0, 2, 3, 1).reshape(-1, rest.shape[1])
        if quantizer.cosine:
            z, codebook = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, codebook))
        distance = np.square(z[:, None] - codebook).sum(axis=-1)
        choice = softmax(-distance / (0.1 * distance.min(axis=1).mean()), axis=1).mean(axis=0)
        terms.append(np.sum(choice * np.log(choice + 1e-9)) / np.log(len(codebook)))
    return float(np.mean(terms))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_crowding_is_the_formula(cosine: bool, scale: float) -> None:
    quantizer, features = small_quantizer(cosine=cosine), normal(3, LATENT, 4, 4) * scale
    assert quantizer.entropy_loss(features).item() == pytest.approx(crowding(features, quantizer), abs=1e-4)


def corners(cosine: bool, length: float = 1.0) -> Quantizer:
    """One scale of 1x1, and the unit vectors as codewords: as many as channels."""
    quantizer = Quantizer(Scales((1,)), LATENT, LATENT, cosine=cosine)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(length * torch.eye(LATENT))
    return quantizer


def near_corners(which: list[int]) -> Tensor:
    """(len(which), LATENT, 1, 1): each near the codeword of its number, all at the same distance from theirs."""
    return (torch.eye(LATENT)[which] + 0.2)[..., None, None]


@pytest.mark.parametrize("cosine", [False, True])
def test_crowding_is_least_where_all_codewords_are_chosen_alike(cosine: bool) -> None:
    quantizer = corners(cosine)
    every = list(range(LATENT))
    alike = quantizer.entropy_loss(near_corners(every * 3)).item()
    undecided = quantizer.entropy_loss(torch.ones(2, LATENT, 1, 1)).item()  # as far from one as from another
    half = quantizer.entropy_loss(near_corners(every[: LATENT // 2] * 2)).item()
    one = quantizer.entropy_loss(near_corners([3] * LATENT)).item()
    assert alike == pytest.approx(-1, abs=1e-5)
    assert undecided == pytest.approx(-1, abs=1e-5)
    assert alike < half - 0.1 < one - 0.2
    assert half == pytest.approx(-math.log(LATENT / 2) / math.log(LATENT), abs=0.1)
    assert -0.2 < one <= 1e-5


@pytest.mark.parametrize("cosine", [False, True])
def test_crowding_reaches_features_and_codebook_and_nothing_else(cosine: bool) -> None:
    quantizer, features = small_quantizer(cosine=cosine), normal(2, LATENT, 4, 4).requires_grad_()
    quantizer.entropy_loss(features).backward()
    for gradient in (features.grad, quantizer.codebook.weight.grad):
        assert torch.isfinite(gradient).all()
        assert gradient.any()
    assert all(p.grad is None for p in quantizer.phi.parameters())


@pytest.mark.parametrize("cosine", [False, True])
def test_descent_on_crowding_spreads_the_choices(cosine: bool) -> None:
    """The sides of the ladder see the same crowd: nearly all of it at one codeword."""
    quantizer = small_quantizer(cosine=cosine)
    features = (quantizer.codebook.weight[3].detach().view(1, -1, 1, 1) + 0.1 * normal(8, LATENT, 4, 4)) / 2
    features.requires_grad_()
    before, used = quantizer.entropy_loss(features).item(), len(quantizer.encode(features).unique())
    optimizer = torch.optim.Adam([features, quantizer.codebook.weight], lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        quantizer.entropy_loss(features).backward()
        optimizer.step()
    assert quantizer.entropy_loss(features).item() < before - 0.05
    assert len(quantizer.encode(features).unique()) > used


@pytest.mark.parametrize("cosine", [False, True])
def test_gradients_stay_finite_where_choices_underflow(cosine: bool) -> None:
    """Features that lie on codewords, or nearly, leave a share of exactly 0 for all others."""
    for offset in (0.0, 1e-3):
        quantizer = corners(cosine, length=100.0)
        features = (100 * torch.eye(LATENT)[[0, 0, 1]] + offset)[..., None, None].requires_grad_()
        loss = quantizer.entropy_loss(features)
        loss.backward()
        assert torch.isfinite(loss)
        assert loss.item() == pytest.approx((2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(LATENT))
        assert torch.isfinite(features.grad).all()
        assert torch.isfinite(quantizer.codebook.weight.grad).all()


def test_crowding_is_the_same_under_autocast() -> None:
    quantizer, features = small_quantizer(), normal(2, LATENT, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = quantizer.entropy_loss(features)
    assert torch.equal(rounded, quantizer.entropy_loss(features))
