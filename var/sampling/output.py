"""The output of a pipeline that generates images."""

from dataclasses import dataclass

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
