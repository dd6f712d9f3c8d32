"""VAR: image generation by next-scale prediction (arXiv 2404.02905)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from var.pipeline import VARPipeline

__all__ = ["VARPipeline"]


def __getattr__(name: str) -> object:
    # Imported on first use: a command that only prints its help should not wait for torch.
    if name == "VARPipeline":
        from var.pipeline import VARPipeline

        return VARPipeline
    raise AttributeError(f"module 'var' has no attribute {name!r}")
