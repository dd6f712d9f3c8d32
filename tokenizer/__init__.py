"""Stage 1 of VAR: images <-> token pyramid."""

from tokenizer.errors import InputError
from tokenizer.scales import SCALES_256, SCALES_512, Scales
from tokenizer.vqvae import VQVAE, TokenizerConfig

__all__ = ["SCALES_256", "SCALES_512", "VQVAE", "InputError", "Scales", "TokenizerConfig"]
