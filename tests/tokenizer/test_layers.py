"""Convolutional layers of the tokenizer against computations by hand."""

import pytest
import torch
import torch.nn.functional as F
from helpers import largest_difference, normal, randomize
from torch import Tensor

from tokenizer.layers import Decoder, Downsample, Encoder, ResidualBlock, SpatialAttention, Upsample


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """GroupNorm written out: mean and (biased) variance over each group of channels and all positions."""
    grouped = x.reshape(x.shape[0], groups, -1)
    centered = grouped - grouped.mean(dim=-1, keepdim=True)
    scaled = centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return scaled.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


@torch.no_grad()
def test_downsampling_pads_only_right_and_below() -> None:
    layer = Downsample(1)
    layer.conv.weight.copy_(torch.arange(1.0, 10.0).reshape(1, 1, 3, 3))
    layer.conv.bias.zero_()
    image = normal(1, 1, 4, 4)
    ours = layer(image)
    weight, padded = layer.conv.weight[0, 0], torch.zeros(5, 5)
    padded[:4, :4] = image[0, 0]
    by_hand = [[(padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * weight).sum() for j in (0, 1)] for i in (0, 1)]
    assert ours.shape == (1, 1, 2, 2)
    assert largest_difference(ours[0, 0], torch.tensor(by_hand)) < 1e-5
    assert not torch.allclose(ours, F.conv2d(image, layer.conv.weight, stride=2, padding=1))


@torch.no_grad()
def test_upsampling_repeats_pixels_before_the_convolution() -> None:
    layer = Upsample(2)
    x = normal(1, 2, 3, 3)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert largest_difference(layer(x), layer.conv(repeated)) < 1e-6


@pytest.mark.parametrize(("width_in", "width_out"), [(4, 4), (4, 8)])
@torch.no_grad()
def test_residual_block(width_in: int, width_out: int) -> None:
    block = ResidualBlock(width_in, width_out, groups=2, dropout=0.5).eval()
    randomize(block, seed=0)
    x = normal(2, width_in, 5, 5)
    h = F.conv2d(
        silu(group_norm(x, 2, block.norm1.weight, block.norm1.bias)), block.conv1.weight, block.conv1.bias, 1, 1
    )
    h = F.conv2d(
        silu(group_norm(h, 2, block.norm2.weight, block.norm2.bias)), block.conv2.weight, block.conv2.bias, 1, 1
    )
    if width_in != width_out:
        x = torch.einsum("oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], x) + block.shortcut.bias[:, None, None]
    assert largest_difference(block(torch.clone(normal(2, width_in, 5, 5))), x + h) < 1e-4


@torch.no_grad()
def test_spatial_attention_is_one_softmax_over_all_positions() -> None:
    layer = SpatialAttention(4, groups=2)
    randomize(layer, seed=1, std=1.0)
    x = normal(2, 4, 3, 3)
    normed = group_norm(x, 2, layer.norm.weight, layer.norm.bias).flatten(2)
    q, k, v = (
        torch.einsum("oi,bin->bon", weight[:, :, 0, 0], normed) + bias[:, None]
        for weight, bias in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
    )
    weights = (torch.einsum("bcq,bck->bqk", q, k) / 4**0.5).softmax(dim=-1)
    mixed = torch.einsum("bqk,bck->bcq", weights, v)
    projected = torch.einsum("oi,bin->bon", layer.proj.weight[:, :, 0, 0], mixed) + layer.proj.bias[:, None]
    assert largest_difference(layer(x), x + projected.reshape(x.shape)) < 1e-4


@pytest.mark.parametrize(("multipliers", "factor"), [((1,), 1), ((1, 2), 2), ((1, 1, 2), 4)])
@torch.no_grad()
def test_encoder_and_decoder_shapes(multipliers: tuple[int, ...], factor: int) -> None:
    sizes = (4, multipliers, 1, 3, 2, 0.0)
    features = Encoder(*sizes)(torch.zeros(2, 3, 8, 8))
    assert features.shape == (2, 3, 8 // factor, 8 // factor)
    assert Decoder(*sizes)(features).shape == (2, 3, 8, 8)


def test_attention_stands_only_at_the_lowest_level_and_the_decoder_has_one_more_block() -> None:
    sizes = (4, (1, 1, 2), 2, 3, 2, 0.0)
    block, attention = "ResidualBlock", "SpatialAttention"
    encoder = [[type(layer).__name__ for layer in level] for level in Encoder(*sizes).levels]
    decoder = [[type(layer).__name__ for layer in level] for level in Decoder(*sizes).levels]
    assert encoder == [[block] * 2, [block] * 2, [block, attention] * 2]
    assert decoder == [[block, attention] * 3, [block] * 3, [block] * 3]


def test_dropout_acts_in_training_only() -> None:
    block = ResidualBlock(4, 4, groups=2, dropout=0.5)
    x = normal(1, 4, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
