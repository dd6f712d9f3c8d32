"""The output of a pipeline: images that it generates, classes of images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from var.sampling.image_folder import ImageFolder
from var.utils.classes import imagenet_names
from var.utils.images import enlarge
from var.utils.paths import check_writable, to_path
from var.utils.sheets import SMALLEST_TILE, choose_tiles, png_bytes, sheet
from var.utils.text import plural


@dataclass(frozen=True, repr=False)
class PipelineOutput:
    """Images in the order of the labels, `num` of each. A notebook shows them with their classes.

    Attributes:
        images: RGB images of the model's size.
        labels: label of each image.
        indices: number of each image within its class; with the seed and the label it names the random stream.
        tokens: (B, L) int64 on the CPU; continuous ones of a MAR, (B, L, C) float32.
        intermediates: for each image, what it looks like after each scale; None unless requested.
        names: of the classes, for captions; None: those of ImageNet.
    """

    images: list[Image.Image]
    labels: list[int]
    indices: list[int]
    tokens: Tensor
    intermediates: list[list[Image.Image]] | None
    names: Mapping[int, str] | None = field(default_factory=dict)

    def grid(self, captions: bool = False) -> Image.Image:
        """Return the images side by side, small ones enlarged: all, or 64 spread over the classes.

        Args:
            captions: with the class below each.
        """
        shown, columns = choose_tiles(self.labels)
        texts = [self._class(self.labels[i]) for i in shown] if captions else []
        return sheet([enlarge(self.images[i], SMALLEST_TILE) for i in shown], columns, texts)

    def save(self, folder: str | Path) -> list[Path]:
        """Write LABEL_INDEX.png for each image, what was kept of the scales, and grid.png, as `var sample` does.

        Returns:
            The files, the grid last.

        Raises:
            InputError: the folder cannot be written.
        """
        target = to_path(folder, "folder")
        check_writable(target)
        files, writer = [], ImageFolder(target, self.labels)
        for i, (label, index, image) in enumerate(zip(self.labels, self.indices, self.images, strict=True)):
            files += writer.add(label, index, image, self.intermediates[i] if self.intermediates else ())
        return files + writer.finish()

    def __repr__(self) -> str:
        width, height = self.images[0].size
        counts = [f"{number} of {self._class(label)}" for label, number in Counter(self.labels).items()]
        listed = ", ".join(counts[:4]) + (f", and {len(counts) - 4} classes more" if len(counts) > 4 else "")
        return f"PipelineOutput({plural(len(self.images), 'image')} of {width}x{height} px: {listed})"

    def _repr_png_(self) -> bytes:
        return png_bytes(self.grid(captions=True))

    def _class(self, label: int) -> str:
        name = (imagenet_names() if self.names is None else self.names).get(label, "")
        return f"{label} {name}" if name not in ("", str(label)) else str(label)


class ClassScore(NamedTuple):
    """A class of an image."""

    label: int
    name: str
    posterior: float | None  # probability in [0, 1]; None if the class was pruned
    score: float | None  # log-likelihood of all tokens in nats, or a probe's logit; None if the class was pruned
    by_scale: tuple[float, ...] = ()  # log-likelihood of the tokens of each scale up to the one where it was pruned
