"""Attention masks as pure functions. True where a query (row) may see a key (column)."""

from torch import Tensor

from tokenizer.scales import Scales


def block_causal(scales: Scales) -> Tensor:
    """(L, L) bool: a token sees its own scale and all coarser ones (VAR paper, section 3.2, figure 4)."""
    levels = scales.levels()
    return levels[:, None] >= levels
