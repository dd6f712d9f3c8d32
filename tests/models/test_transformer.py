"""The transformer core against naive computations."""

import math

import pytest
import torch
from helpers import largest_difference, normal, randomize
from torch import Tensor

from tokenizer.scales import Scales
from var.models.masks import block_causal, spans
from var.models.transformer import (
    MLP,
    AdaLN,
    AdaLNBlock,
    Attention,
    BlockConfig,
    KVCache,
    Modulation,
    modulate,
    stochastic_depth,
)


def naive_attention(layer: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Head by head, query by query, in float64."""
    width, heads = x.shape[-1], layer.heads
    weight = layer.qkv.weight.double()
    q = x.double() @ weight[:width].T + layer.q_bias.double()
    k = x.double() @ weight[width : 2 * width].T
    v = x.double() @ weight[2 * width :].T + layer.v_bias.double()
    out, size = torch.zeros_like(q), width // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for b in range(len(x)):
            for i in range(x.shape[1]):
                query, keys = q[b, i, part], k[b, :, part]
                if layer.log_scale is None:
                    scores = keys @ query * 0.25 / math.sqrt(size)
                else:
                    cosines = keys @ query / keys.norm(dim=-1) / query.norm()
                    scores = cosines * math.exp(min(layer.log_scale[h].item(), math.log(100)))
                if mask is not None:
                    scores[~mask[i]] = -math.inf
                weights = (scores - scores.max()).exp()
                out[b, i, part] = weights / weights.sum() @ v[b, :, part]
    return out @ layer.proj.weight.double().T + layer.proj.bias.double()


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_attention_equals_a_naive_softmax(qk_norm: bool, masked: bool) -> None:
    layer = Attention(BlockConfig(12, 3, qk_norm=qk_norm, logit_scale=0.25))
    randomize(layer, seed=0, std=0.7)
    if layer.log_scale is not None:
        layer.log_scale.copy_(torch.tensor([0.5, 2.0, 9.0]))  # the last is above the bound
    x = normal(2, 5, 12)
    mask = block_causal(Scales((1, 2))) if masked else None
    assert largest_difference(layer(x, mask), naive_attention(layer, x, mask)) < 1e-5


def test_attention_has_biases_on_q_and_v_only_and_scales_that_start_at_4() -> None:
    layer = Attention(BlockConfig(12, 3))
    assert {name for name, _ in layer.named_parameters()} == {
        *("qkv.weight", "q_bias", "v_bias", "log_scale", "proj.weight", "proj.bias")
    }
    assert layer.log_scale.exp().tolist() == pytest.approx([4.0] * 3)


@torch.no_grad()
def test_cached_attention_equals_masked_attention() -> None:
    layer, scales = Attention(BlockConfig(12, 3)), Scales((1, 2, 3))
    randomize(layer, seed=0)
    x = normal(2, scales.total, 12)
    cache = KVCache.allocate(1, 2, 3, scales.total, 4, like=x)
    cache.keys.fill_(math.nan)  # whatever lies there must not matter
    cache.values.fill_(math.nan)
    parts = [
        layer(part, None, cache.layer(0), start) for part, start in zip(scales.split(x), scales.offsets, strict=False)
    ]
    assert largest_difference(torch.cat(parts, dim=1), layer(x, block_causal(scales))) < 1e-5


def test_cache_is_written_where_it_should_be() -> None:
    cache = KVCache.allocate(2, 1, 1, 5, 2, like=torch.zeros(0, dtype=torch.bfloat16))
    assert cache.keys.shape == cache.values.shape == (2, 1, 5, 1, 2)
    assert cache.keys.dtype == torch.bfloat16
    cache.keys.zero_()
    cache.values.zero_()
    k, v = cache.layer(1).extend(2, torch.ones(1, 2, 1, 2), torch.full((1, 2, 1, 2), 2.0))
    assert k[0, :, 0, 0].tolist() == [0, 0, 1, 1]
    assert v[0, :, 0, 0].tolist() == [0, 0, 2, 2]
    assert cache.keys[1, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 0]
    assert not cache.keys[0].any()


@torch.no_grad()
def test_modulate_is_a_layer_norm_with_the_given_scale_and_shift() -> None:
    x, scale, shift = normal(2, 3, 8), normal(2, 1, 8, seed=1), normal(2, 1, 8, seed=2)
    mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, correction=0, keepdim=True)
    assert (
        largest_difference(modulate(x, scale, shift), (x - mean) / (variance + 1e-6).sqrt() * (1 + scale) + shift)
        < 1e-5
    )


@torch.no_grad()
def test_mlp_uses_the_tanh_form_of_gelu() -> None:
    mlp = MLP(BlockConfig(4, 1))
    randomize(mlp, seed=0, std=1.0)
    x = normal(3, 4)
    h = x @ mlp.up.weight.T + mlp.up.bias
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    assert largest_difference(mlp(x), h @ mlp.down.weight.T + mlp.down.bias) < 1e-5


@torch.no_grad()
def test_adaln_is_silu_then_linear() -> None:
    layer = AdaLN(4, 6)
    randomize(layer, seed=0, std=1.0)
    condition = normal(2, 4)
    expected = condition / (1 + (-condition).exp()) @ layer.linear.weight.T + layer.linear.bias
    assert layer(condition).shape == (2, 6, 1, 4)
    assert largest_difference(layer(condition).flatten(1), expected) < 1e-6


@torch.no_grad()
def test_block_takes_the_six_parts_in_the_order_of_the_released_weights() -> None:
    block = AdaLNBlock(BlockConfig(8, 2, mlp_ratio=2.0))
    randomize(block, seed=0)
    condition, x = normal(2, 8), normal(2, 3, 8, seed=1)
    gate1, gate2, scale1, scale2, shift1, shift2 = block.adaln(condition).unbind(dim=1)
    h = x + gate1 * block.attention(modulate(x, scale1, shift1))
    h = h + gate2 * block.mlp(modulate(h, scale2, shift2))
    assert largest_difference(block(x, block.modulation(condition)), h) < 1e-6


@torch.no_grad()
def test_shared_adaln_adds_the_blocks_offset() -> None:
    block = AdaLNBlock(BlockConfig(8, 2, mlp_ratio=2.0), shared=True)
    randomize(block, seed=0)
    shared = normal(2, 6, 1, 8)
    offset = dict(block.named_parameters())["adaln.offset"]
    assert offset.shape == (6, 8)
    parts = block.modulation(shared)
    for i, part in enumerate(parts):
        assert largest_difference(part, shared[:, i] + offset[i]) < 1e-6


@torch.no_grad()
def test_closed_gates_make_a_block_the_identity() -> None:
    block = AdaLNBlock(BlockConfig(8, 2, mlp_ratio=2.0, qk_norm=False))
    x, zero = normal(2, 3, 8), torch.zeros(2, 1, 8)
    assert torch.equal(block(x, Modulation(zero, zero, *(normal(2, 1, 8) for _ in range(4)))), x)


def test_stochastic_depth_closes_the_gates_of_whole_samples_where_the_noise_is_below_the_rate() -> None:
    blocks = [Modulation(*(normal(2, 1, 8, seed=6 * i + j) for j in range(6))) for i in range(2)]
    noise = torch.tensor([[0.0, 0.9, 0.24, 0.25], [0.1, 0.2, 0.3, 0.1]])
    closed, open_ = torch.zeros(1, 8), 1 / 0.75
    first, second = stochastic_depth(blocks, [0.0, 0.25], noise)
    assert torch.equal(torch.stack(first), torch.stack(blocks[0]))  # at rate 0 nothing is dropped or scaled
    assert torch.equal(second.gate_attention, torch.stack([closed, blocks[1].gate_attention[1] * open_]))
    assert torch.equal(second.gate_mlp, torch.stack([blocks[1].gate_mlp[0] * open_, closed]))
    assert torch.equal(torch.stack(second[2:]), torch.stack(blocks[1][2:]))


def test_stochastic_depth_keeps_the_mean_and_the_type() -> None:
    gates = Modulation(*[torch.ones(8000, 1, 1)] * 6)
    thinned = stochastic_depth([gates], [0.25], torch.rand(8000, 2, generator=torch.Generator().manual_seed(0)))
    assert thinned[0].gate_mlp.mean().item() == pytest.approx(1, abs=0.03)  # 5 standard deviations
    half = Modulation(*[torch.ones(2, 1, 1, dtype=torch.bfloat16)] * 6)
    assert stochastic_depth([half], [0.25], torch.rand(2, 2))[0].gate_mlp.dtype == torch.bfloat16


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("sides", [(1, 2, 3, 4), (1, 2), (1,)], ids=str)
def test_spans_equal_the_dense_mask_in_outputs_and_gradients(qk_norm: bool, sides: tuple[int, ...]) -> None:
    layer, scales = Attention(BlockConfig(12, 3, qk_norm=qk_norm, logit_scale=0.25)), Scales(sides)
    randomize(layer, seed=0, std=0.7)
    mask = block_causal(scales)
    results = []
    for form in (mask, spans(scales, mask)):
        x = normal(2, scales.total, 12).requires_grad_()
        out = layer(x, form)
        gradients = torch.autograd.grad(out, [x, *layer.parameters()], normal(*out.shape, seed=1))
        results.append([out, *gradients])
    with torch.no_grad():
        assert largest_difference(results[1][0], naive_attention(layer, x, mask)) < 1e-5
    for dense, sparse in zip(*results, strict=True):
        assert largest_difference(dense, sparse) < 1e-5 * max(1, dense.abs().max().item())


def test_attention_with_a_mask_for_each_sample() -> None:
    layer = Attention(BlockConfig(12, 3))
    x, masks = normal(2, 5, 12), torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    masks |= torch.eye(5, dtype=torch.bool)
    with torch.no_grad():
        out = layer(x, masks[:, None])
        for i in range(2):
            assert largest_difference(out[i : i + 1], naive_attention(layer, x[i : i + 1], masks[i])) < 1e-5
