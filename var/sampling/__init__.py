"""Sampling: logits to tokens, and the loop over scales in `var.sampling.scales`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from var.sampling.logits import filter_logits

__all__ = ["filter_logits"]


def __getattr__(name: str) -> object:
    # Imported on first use: a command that only prints its help takes defaults from here, without torch.
    if name == "filter_logits":
        from var.sampling.logits import filter_logits

        return filter_logits
    raise AttributeError(f"module 'var.sampling' has no attribute {name!r}")
