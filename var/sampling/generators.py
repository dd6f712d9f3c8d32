"""The kinds of transformers that draw images, by their sizes: another kind is one more entry here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from var.models.conditional import ConditionalTransformer, TransformerConfig
from var.models.mar import MAR, MARConfig
from var.models.raster import Raster, RasterConfig
from var.models.var import VAR, VARConfig
from var.sampling import mar, raster, scales
from var.sampling.drawing import Drawn
from var.sampling.params import SamplingParams


class Generator(NamedTuple):
    """A kind of transformer, and its way to draw tokens."""

    model: type[ConditionalTransformer]
    config: type[TransformerConfig]
    check_sampling: Callable[[SamplingParams, Any], None]  # raises InputError for options that do not fit a config
    draw: Callable[..., Drawn]  # with the arguments of `scales.draw_scales`; it calls on_step as Step says
    about: str  # for its card
    tag: str  # on the Hugging Face hub


GENERATORS = (
    Generator(
        VAR,
        VARConfig,
        scales.check_sampling,
        scales.draw_scales,
        "A VAR (arXiv 2404.02905): draws images of a class by next-scale prediction.",
        "next-scale-prediction",
    ),
    Generator(
        Raster,
        RasterConfig,
        raster.check_sampling,
        raster.draw_raster,
        "The baseline of VAR (arXiv 2404.02905): draws images of a class by next-token prediction.",
        "next-token-prediction",
    ),
    Generator(
        MAR,
        MARConfig,
        mar.check_sampling,
        mar.draw_mar,
        "A MAR (arXiv 2406.11838): draws images of a class by continuous tokens, masked ones in a random order.",
        "masked-autoregression",
    ),
)


def find_generator(config: TransformerConfig) -> Generator:
    """Return the generator of a model with this config."""
    return next(generator for generator in GENERATORS if type(config) is generator.config)


def check_sampling(sampling: SamplingParams, config: TransformerConfig) -> None:
    """Raise InputError for options that do not fit a model with this config."""
    find_generator(config).check_sampling(sampling, config)
