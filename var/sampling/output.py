"""The output of a pipeline: images that it generates, classes of images."""

from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class PipelineOutput:
    """Images in the order of the labels, `num` of each.

    Attributes:
        images: RGB images of the model's size.
        labels: label of each image.
        indices: number of each image within its class; with the seed and the label it names the random stream.
        tokens: (B, L) int64 on the CPU.
        intermediates: for each image, what it looks like after each scale; None unless requested.
    """

    images: list[Image.Image]
    labels: list[int]
    indices: list[int]
    tokens: Tensor
    intermediates: list[list[Image.Image]] | None


class ClassScore(NamedTuple):
    """A class of an image."""

    label: int
    name: str
    posterior: float | None  # probability in [0, 1]; None if the class was pruned
    score: float | None  # log-likelihood of all tokens in nats, or a probe's logit; None if the class was pruned
    by_scale: tuple[float, ...] = ()  # log-likelihood of the tokens of each scale up to the one where it was pruned
