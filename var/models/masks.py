"""Attention masks: dense ones, True where a query (row) may see a key (column), and spans of queries.

B batch, L tokens of all scales (queries), T keys, H heads, N patches.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.scales import Scales

MAX_FIRST_SPAN_SHARE = 1 / 4  # largest share of the tokens in the first span: four spans on the schedules of the paper
SPANS_FROM = 256  # L: with fewer tokens, one masked call on the CPU is as fast as several without a mask


class Spans(NamedTuple):
    """A block-causal mask as spans of queries: those of start..stop see all keys before stop, so they need no mask.

    Hidden products are never computed (a third of all at 256 px), and attention without a mask uses the fastest
    kernels. The small coarse scales share the first span, which has a mask of its own.
    """

    bounds: tuple[tuple[int, int], ...]  # (start, stop) of each span; they follow one another from 0 to L
    coarse: Tensor  # (stop, stop) bool, the mask within the first span


Mask = Tensor | Spans | None  # a dense one broadcasts to (B, H, L, T); None: every query sees every key


def block_causal(scales: Scales) -> Tensor:
    """(L, L) bool: a token sees its own scale and all coarser ones (VAR paper, section 3.2, figure 4)."""
    levels = scales.levels()
    return levels[:, None] >= levels


def causal(length: int) -> Tensor:
    """(L, L) bool on the CPU: a token sees itself and all earlier ones."""
    index = torch.arange(length, device="cpu")
    return index[:, None] >= index


def prefix_causal(prefix: Tensor, length: int) -> Tensor:
    """Mask in which patches of a prefix see one another, later ones all up to themselves (AIM, arXiv 2401.08541, 3.2).

    Args:
        prefix: (B,) int64 in 0..length, number of patches in each sample's prefix; 0 is the causal mask.
        length: N patches.

    Returns:
        (B, 1, N, N) bool.
    """
    index = torch.arange(length, device=prefix.device)
    return (index <= index[:, None]) | (index < prefix[:, None, None, None])


def spans(scales: Scales, mask: Tensor) -> Spans:
    """Divide block_causal(scales) into spans: one of the coarse scales, then one for each finer scale.

    Args:
        scales: the scale schedule.
        mask: block_causal(scales), on the device of the attention; the first span's part of it is shared, not copied.
    """
    first = max(stop for stop in scales.offsets if stop <= max(MAX_FIRST_SPAN_SHARE * scales.total, scales.offsets[1]))
    stops = [first, *(stop for stop in scales.offsets if stop > first)]
    return Spans(tuple(zip([0, *stops], stops, strict=False)), mask[:first, :first])


def fastest(scales: Scales, mask: Tensor) -> Mask:
    """Choose the form of block_causal(scales) whose attention is fastest on the mask's device, backward included."""
    return spans(scales, mask) if mask.is_cuda or scales.total >= SPANS_FROM else mask
