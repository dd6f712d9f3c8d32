"""The output of a pipeline that edits images."""

from dataclasses import dataclass

from PIL import Image

from var.editing.image_masks import Mask


@dataclass(frozen=True)
class EditOutput:
    """Results of an edit.

    Attributes:
        images: RGB, all of one size.
        image: what was edited: RGB, upright, with gray room where it was extended.
        mask: (height, width) of `image`, True where it was inpainted.
    """

    images: list[Image.Image]
    image: Image.Image
    mask: Mask
