"""The transformer core that VAR and AIM share: pre-norm blocks, for training, cached generation and features.

B batch, L query tokens, T key tokens (cached ones included), D width, H heads.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenizer.errors import InputError, abbreviate
from var.models.masks import Mask, Spans

NORM_EPS = 1e-6
MAX_LOG_SCALE = math.log(100)  # bound on the log of the learned attention scale


def check_mlp_ratio(ratio: float) -> None:
    """Raise InputError unless the hidden width of an MLP over its width is positive, and one that can be built."""
    if not 0 < ratio <= 256:
        raise InputError(f"mlp_ratio={abbreviate(ratio)} must be positive, at most 256")


@dataclass(frozen=True)
class BlockConfig:
    """Sizes and kinds of a block's parts.

    Attributes:
        width: D.
        heads: H.
        mlp_ratio: hidden width of the MLP over D.
        qk_norm: q and k on the unit sphere, with a learned scale per head.
        logit_scale: without qk_norm, factor on the dot products over sqrt(D / H).
        bias: on q, v, the projection and the MLP; none on k, as in the released models (without qk_norm it would
            cancel in the softmax).
        gelu: the tanh form, or the exact one ("none" to PyTorch).
    """

    width: int
    heads: int
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    logit_scale: float = 1.0
    bias: bool = True
    gelu: Literal["tanh", "none"] = "tanh"


class Modulation(NamedTuple):
    """AdaLN of one block, each (B, 1, D): x += gate * f(LN(x) * (1 + scale) + shift)  (DiT, arXiv 2212.09748)."""

    gate_attention: Tensor
    gate_mlp: Tensor
    scale_attention: Tensor
    scale_mlp: Tensor
    shift_attention: Tensor
    shift_mlp: Tensor


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, allocated once for all scales by the sampling loop, which owns it."""

    keys: Tensor  # (blocks, B, L, H, D / H)
    values: Tensor

    @classmethod
    def allocate(cls, blocks: int, batch: int, heads: int, length: int, head_dim: int, like: Tensor) -> "KVCache":
        """Allocate an empty cache with the device and dtype of `like`."""
        shape = (blocks, batch, length, heads, head_dim)
        return cls(like.new_empty(shape), like.new_empty(shape))

    def select(self, rows: slice) -> "KVCache":
        """Return the part of some rows of the batch, as views."""
        return KVCache(self.keys[:, rows], self.values[:, rows])

    def layer(self, i: int) -> "LayerCache":
        """Return the part of block i, as views."""
        return LayerCache(self.keys[i], self.values[i])


class LayerCache(NamedTuple):
    """The part of a KVCache that belongs to one block."""

    keys: Tensor  # (B, L, H, D / H)
    values: Tensor

    def extend(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, l, H, D / H) at position start; return all keys and values up to their end."""
        stop = start + k.shape[1]
        self.keys[:, start:stop] = k
        self.values[:, start:stop] = v
        return self.keys[:, :stop], self.values[:, :stop]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """Softmax attention of queries (B, L, H, D / H) to keys and values (B, T, H, D / H) -> (B, L, D)."""
    if isinstance(mask, Spans):
        return attend_in_spans(q, k, v, mask, scale)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, L or T, D / H)
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)  # (B, H, L, D / H)
    return rearrange(h, "b h l d -> b l (h d)")


def attend_in_spans(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> Tensor:
    """Attention under a block-causal mask, one call per span, from the finest to the coarsest."""
    queries = q.split([stop - start for start, stop in spans.bounds], dim=1)
    parts = []
    for query, (start, stop) in zip(reversed(queries), reversed(spans.bounds), strict=True):
        k, v = k[:, :stop], v[:, :stop]  # drop keys of finer spans step by step, so that the backward pass pads less
        parts.append(attend(query, k, v, spans.coarse if start == 0 else None, scale))  # (B, stop - start, D)
    return torch.cat(parts[::-1], dim=1)


def on_sphere(x: Tensor, radius: Tensor | float = 1.0) -> Tensor:
    """Scale each vector (..., D / H) to the given length: factors in float32, the result rounded once to x's dtype."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (x * (radius / length.clamp(min=1e-12))).to(x.dtype)


class QKV(nn.Linear):
    """The linear map to queries, keys and values, whose bias is an argument; a module, so that it can be adapted."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., D) and a bias (3D,) -> (..., 3D)."""
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = QKV(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if config.bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if config.bias else None
        self.log_scale = nn.Parameter(torch.full((self.heads,), math.log(4.0))) if config.qk_norm else None
        self.softmax_scale = 1.0 if config.qk_norm else config.logit_scale / math.sqrt(width // config.heads)
        self.proj = nn.Linear(width, width, bias=config.bias)

    def qkv_bias(self) -> Tensor | None:
        """Return the bias (3D,) of queries, keys and values, 0 for keys."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> queries, keys and values, (B, L, H, D / H) each, without the softmax's scale."""
        qkv = self.qkv(x, self.qkv_bias())  # (B, L, 3D)
        qkv = rearrange(qkv, "b l (three h d) -> b l three h d", three=3, h=self.heads)  # its gradient is laid out so
        q, k, v = qkv.unbind(dim=2)
        if self.log_scale is not None:
            attention_scale = self.log_scale.float().clamp(max=MAX_LOG_SCALE).exp()[:, None]  # (H, 1)
            q, k = on_sphere(q, attention_scale), on_sphere(k)
        return q, k, v

    def forward(self, x: Tensor, mask: Mask = None, cache: LayerCache | None = None, start: int = 0) -> Tensor:
        """(B, L, D) -> (B, L, D). With a cache, x are the tokens from position start on and see earlier ones too."""
        q, k, v = self.project(x)
        if cache is not None:
            k, v = cache.extend(start, k, v)  # (B, T, H, D / H)
        return self.proj(attend(q, k, v, mask, self.softmax_scale))  # (B, L, D)


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.activation: nn.Module = nn.GELU(config.gelu)
        self.down = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(self.activation(self.up(x)))


class AdaLN(nn.Module):
    """SiLU, then Linear: a condition (B, D) -> `parts` vectors of width D each, (B, parts, 1, D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> Tensor:
        return rearrange(self.linear(F.silu(condition)), "b (parts d) -> b parts 1 d", parts=self.parts)


class AdaLNOffset(nn.Module):
    """A block's own part of an AdaLN shared by all blocks: a learned offset to its output (B, 6, 1, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, shared: Tensor) -> Tensor:
        return shared + self.offset[:, None]


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without parameters of its own, then the scale and shift of the condition: (B, L, D) -> (B, L, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


class Block(nn.Module):
    """Attention and MLP, each a residual branch behind a LayerNorm with scale and shift of its own (AIM)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.norm_mlp = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Mask = None, cache: LayerCache | None = None, start: int = 0) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attention(self.norm_attention(x), mask, cache, start)
        return x + self.mlp(self.norm_mlp(x))


class AdaLNBlock(nn.Module):
    """Attention and MLP, each a residual branch with a norm and gate modulated by a condition (VAR).

    Args:
        config: sizes.
        shared: the condition is the output of an AdaLN that all blocks share, to which the block adds an offset.
    """

    def __init__(self, config: BlockConfig, shared: bool = False) -> None:
        super().__init__()
        self.adaln = AdaLNOffset(config.width) if shared else AdaLN(config.width, 6)
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def modulation(self, condition: Tensor) -> Modulation:
        """Compute the modulation from the class embedding (B, D), or the shared AdaLN's output (B, 6, 1, D)."""
        return Modulation(*self.adaln(condition).unbind(dim=1))

    def forward(
        self, x: Tensor, m: Modulation, mask: Mask = None, cache: LayerCache | None = None, start: int = 0
    ) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        attended = self.attention(modulate(x, m.scale_attention, m.shift_attention), mask, cache, start)
        x = torch.addcmul(x, attended, m.gate_attention)  # one pass where a product and a sum are two
        return torch.addcmul(x, self.mlp(modulate(x, m.scale_mlp, m.shift_mlp)), m.gate_mlp)


def run_blocks(
    blocks: Iterable[Block | AdaLNBlock],
    x: Tensor,
    modulations: Sequence[Modulation] | None = None,
    mask: Mask = None,
    cache: KVCache | None = None,
    start: int = 0,
    recompute: bool = False,
) -> Tensor:
    """Run blocks one after another, for training, cached generation and hidden states.

    Args:
        blocks: all AdaLNBlocks, or all Blocks.
        x: (B, L, D).
        modulations: one for each AdaLNBlock; None for Blocks.
        mask: of the attention in every block.
        cache: keys and values of the tokens before `start`, extended by those of x.
        start: position of x's first token.
        recompute: keep only each block's input for the backward pass, and recompute the block there.

    Returns:
        (B, L, D).
    """
    for i, block in enumerate(blocks):
        modulation = [] if modulations is None else [modulations[i]]  # an argument of AdaLNBlocks alone
        layer_cache = None if cache is None else cache.layer(i)
        inputs = (x, *modulation, mask, layer_cache, start)
        x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if recompute else block(*inputs)
    return x


def hidden_states(
    blocks: Sequence[Block] | Sequence[AdaLNBlock],
    x: Tensor,
    layers: Sequence[int],
    modulations: Sequence[Modulation] | None = None,
    mask: Mask = None,
) -> list[Tensor]:
    """Return outputs of some blocks, (B, L, D) each, in the order of `layers`; blocks after the last are not run."""
    outputs, done = {}, 0
    for layer in sorted(layers):
        part = slice(done, layer + 1)
        x = outputs[layer] = run_blocks(blocks[part], x, None if modulations is None else modulations[part], mask)
        done = layer + 1
    return [outputs[layer] for layer in layers]


def stochastic_depth(modulations: Sequence[Modulation], rates: Sequence[float], noise: Tensor) -> list[Modulation]:
    """Drop residual branches of whole samples by closing their gates (arXiv 1603.09382, each branch on its own).

    Args:
        modulations: one per block.
        rates: each block's probability that a branch is dropped, below 1.
        noise: (B, 2 * blocks) uniform in [0, 1): attention of block 0, MLP of block 0, attention of block 1, ...

    Returns:
        The modulations with gates of 0 where noise < rate, divided by 1 - rate elsewhere, which keeps the mean.
    """
    rate = noise.new_tensor(rates).repeat_interleave(2)
    kept = ((noise >= rate) / (1 - rate))[:, :, None, None]  # (B, 2 * blocks, 1, 1)
    return [
        m._replace(
            gate_attention=m.gate_attention * kept[:, 2 * i].to(m.gate_attention.dtype),
            gate_mlp=m.gate_mlp * kept[:, 2 * i + 1].to(m.gate_mlp.dtype),
        )
        for i, m in enumerate(modulations)
    ]
