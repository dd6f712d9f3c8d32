"""Class labels to images; the code is in `var.sampling.generate`."""

from var.sampling.generate import generate

__all__ = [
    "generate",
]
