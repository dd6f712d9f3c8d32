"""Sampling: logits to tokens, and the loop over scales in `var.sampling.generate`."""

from var.sampling.logits import filter_logits

__all__ = [
    "filter_logits",
]
