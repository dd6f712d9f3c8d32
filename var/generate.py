"""The loop over scales; the code is in `var.sampling.generate`."""

from var.sampling.generate import generate

__all__ = [
    "generate",
]
