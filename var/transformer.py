"""The transformer core: pre-norm blocks with AdaLN, written once for training and for cached generation.

B batch, L query tokens, T key tokens (cached ones included), D width, H heads.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100)  # bound on the learned log temperature of the attention


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
    """Keys and values of the tokens drawn so far, allocated once for the whole picture by the loop that owns it."""

    keys: Tensor  # (blocks, B, H, L, D / H)
    values: Tensor

    @classmethod
    def allocate(cls, blocks: int, batch: int, heads: int, length: int, head_dim: int, like: Tensor) -> "KVCache":
        """An empty cache with the device and dtype of `like`."""
        shape = (blocks, batch, heads, length, head_dim)
        return cls(like.new_empty(shape), like.new_empty(shape))

    def layer(self, i: int) -> "LayerCache":
        return LayerCache(self.keys[i], self.values[i])


class LayerCache(NamedTuple):
    """The part of a KVCache that belongs to one block."""

    keys: Tensor  # (B, H, L, D / H)
    values: Tensor

    def extend(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, l, D / H) at position start; return all keys and values up to their end."""
        stop = start + k.shape[2]
        self.keys[:, :, start:stop] = k
        self.values[:, :, start:stop] = v
        return self.keys[:, :, :stop], self.values[:, :, :stop]


class Attention(nn.Module):
    """Multi-head self-attention; optionally with q and k on the unit sphere and a learned temperature a head."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))  # a bias on k would cancel in the softmax
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(4.0))) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None, start: int = 0) -> Tensor:
        """(B, L, D) -> (B, L, D). With a cache, x are the tokens from position start on and see all before them too."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = rearrange(
            F.linear(x, self.qkv.weight, bias), "b l (three h d) -> three b h l d", three=3, h=self.heads
        )
        if self.log_scale is None:
            softmax_scale = 0.25 / math.sqrt(q.shape[-1])
        else:
            softmax_scale = 1.0
            temperature = self.log_scale.float().clamp(max=MAX_LOG_SCALE).exp()[:, None, None]
            q = (F.normalize(q.float(), dim=-1) * temperature).to(v.dtype)
            k = F.normalize(k.float(), dim=-1).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(start, k, v)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale)
        return self.proj(rearrange(h, "b h l d -> b l (h d)"))


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class DropPath(nn.Module):
    """Drop a residual branch of a whole sample with the given probability, in training only (arXiv 1603.09382)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < keep
        return x * (kept / keep).to(x.dtype)


class AdaLN(nn.Module):
    """SiLU, then Linear: a condition (B, D) -> `parts` vectors of width D each, (B, parts, 1, D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> Tensor:
        return rearrange(self.linear(F.silu(condition)), "b (parts d) -> b parts 1 d", parts=self.parts)


class AdaLNOffset(nn.Module):
    """A block's own part of an AdaLN that all blocks share: a learned offset to its output (B, 6, 1, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, shared: Tensor) -> Tensor:
        return shared + self.offset[:, None]


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without parameters of its own, then the affine map that the condition asks for."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and MLP, each a modulated, gated residual branch.

    Args:
        shared_adaln: the model has one AdaLN for all blocks, and this one only adds an offset; else it has its own.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, qk_norm: bool, shared_adaln: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.adaln = AdaLNOffset(width) if shared_adaln else AdaLN(width, 6)
        self.attention = Attention(width, heads, qk_norm)
        self.mlp = MLP(width, round(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def modulation(self, condition: Tensor) -> Modulation:
        """From the class embedding (B, D), or from the shared AdaLN's output (B, 6, 1, D)."""
        return Modulation(*self.adaln(condition).unbind(dim=1))

    def forward(
        self, x: Tensor, m: Modulation, mask: Tensor | None = None, cache: LayerCache | None = None, start: int = 0
    ) -> Tensor:
        h = self.attention(modulate(x, m.scale_attention, m.shift_attention), mask, cache, start)
        x = x + self.drop_path(h * m.gate_attention)
        h = self.mlp(modulate(x, m.scale_mlp, m.shift_mlp))
        return x + self.drop_path(h * m.gate_mlp)
