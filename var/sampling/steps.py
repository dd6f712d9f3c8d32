"""Reports of drawing while it runs: how many images there are, and what those at work look like."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tokenizer.vqvae import VQVAE
from var.utils.images import to_pil
from var.utils.progress import Progress


class Step(NamedTuple):
    """How far the images of a batch are: after each scale of a VAR, each token of a Raster, each step of a MAR."""

    share: float  # of their tokens that are drawn, in (0, 1]
    scale: int = 0  # the last one, counted from 0 among those that are drawn
    num_scales: int = 1  # that are drawn
    f_hat: Tensor | None = None  # (B, C, H, H), the sum of the scales so far; None: they are no images yet
    images: range = range(0)  # the batch, among all images that are drawn


OnStep = Callable[[Step], None]


@dataclass(frozen=True, eq=False)
class ScaleOutput:
    """The images of a batch after one of their scales, as `on_scale` is called with them.

    Attributes:
        scale: the last scale that was drawn, counted from 0 among those that are.
        num_scales: scales that are drawn; 1 for a model that draws tokens of a single map.
        start: number of the first of these images among all of the call.
        labels: label of each image.
        indices: number of each image within its class.
    """

    scale: int
    num_scales: int
    start: int
    labels: list[int]
    indices: list[int]
    f_hat: Tensor = field(repr=False)  # (B, C, H, H)
    vqvae: VQVAE = field(repr=False)

    @cached_property
    def images(self) -> list[Image.Image]:
        """RGB images of the model's size, decoded when they are first read, at any time."""
        with torch.inference_mode():
            return to_pil(self.vqvae.pixels(self.f_hat))


def count_images(progress: Progress | None, total: int, passes: int = 1, done: int = 0) -> OnStep | None:
    """Return what calls `progress` with the number of images so far, those at work in part, and the total.

    Args:
        progress: None: nothing is counted.
        total: images.
        passes: draws that each image takes.
        done: those of them that are over.
    """
    if progress is None:
        return None

    def count(step: Step) -> None:
        progress((done * total + step.images.start + len(step.images) * step.share) / passes, total)

    return count
