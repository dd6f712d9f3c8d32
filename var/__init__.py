"""VAR: image generation by next-scale prediction (arXiv 2404.02905); AIM: image features (arXiv 2401.08541)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from var.aim import AIM, load_pretrained
    from var.pipeline import VARPipeline
    from var.vqvae import VQVAE

    __version__: str

__all__ = ["AIM", "VQVAE", "VARPipeline", "__version__", "load_pretrained"]

if not TYPE_CHECKING:  # type checkers would take it as having every name

    def __getattr__(name: str) -> object:
        # Imported on first use: a command that only prints its help should not wait for torch.
        if name == "VARPipeline":
            from var.pipeline import VARPipeline

            return VARPipeline
        if name == "AIM":
            from var.aim import AIM

            return AIM
        if name == "load_pretrained":
            from var.aim import load_pretrained

            return load_pretrained
        if name == "VQVAE":
            from var.vqvae import VQVAE

            return VQVAE
        if name == "__version__":
            from var.utils.version import version

            return version()
        raise AttributeError(f"module 'var' has no attribute {name!r}")
