"""Blending options as a value that checks itself. Imports no torch: the commands take their defaults from here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizer.errors import InputError, check_types
from var.sampling.params import SamplingKeywords
from var.utils.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

OnImages = Callable[[list["Image.Image"]], object]  # called with results as they are finished


@dataclass(frozen=True)
class BlendParams:
    """Blending of what is inpainted into the image around it.

    Attributes:
        dilate: so many more tokens around the mask are generated too: the encoder looks beyond a token's pixels, so
            those beside the mask describe what is under it too.
        hide_masked: masked pixels are hidden before encoding, by a smooth continuation of those around them.
        composite: the result is the image itself outside the mask; without it, all that the model generated.
        color_match: shift the colors of what was generated smoothly so that they meet those around the mask. Only
            with composite.
        feather: over so many pixels outside the mask the result fades into the image; None: half a token.

    Raises:
        InputError: a value of another type or out of range.
    """

    dilate: int = 1
    hide_masked: bool = True
    composite: bool = True
    color_match: bool = True
    feather: float | None = None

    def __post_init__(self) -> None:
        check_types(self, bounded=("feather",))
        check_dilate(self.dilate)
        if self.feather is not None and not 0 <= self.feather < float("inf"):
            raise InputError(f"feather={self.feather} must be 0 (a hard edge) or more pixels")


def check_dilate(dilate: int) -> None:
    """Raise InputError for a band of less than nothing."""
    if dilate < 0:
        raise InputError(f"dilate={dilate} must be 0 or more tokens")


class EditKeywords(SamplingKeywords, total=False):
    """Keywords of an edit with a mask: those of sampling, and the fields of BlendParams."""

    seed: int
    batch_size: int
    progress: bool | Progress
    on_images: OnImages | None
    dilate: int
    hide_masked: bool
    composite: bool
    color_match: bool
    feather: float | None
