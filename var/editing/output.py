"""The output of a pipeline that edits images."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from var.editing.image_masks import Mask, overlay
from var.utils.images import save_image
from var.utils.paths import check_writable, to_path
from var.utils.sheets import png_bytes, sheet, tile
from var.utils.text import plural


@dataclass(frozen=True, repr=False)
class EditOutput:
    """Results of an edit. A notebook shows them beside the image.

    Attributes:
        images: RGB, all of one size.
        image: what was edited: RGB, upright, with gray room where it was extended.
        mask: (height, width) of `image`, True where it was inpainted.
    """

    images: list[Image.Image]
    image: Image.Image
    mask: Mask

    @property
    def is_upscaled(self) -> bool:
        """Whether the results are larger than the image: all of it was drawn anew."""
        return self.images[0].size != self.image.size

    def grid(self, captions: bool = False) -> Image.Image:
        """Return a sheet of the image, the mask over it (for an upscaled image: it enlarged), and the results.

        Args:
            captions: with a line below each that says what it is.
        """
        tiles = [tile(image) for image in self.images]
        if self.is_upscaled:  # the small image's pixels as they are, and enlarged to the results' size
            smooth = tile(self.image.resize(self.images[0].size, Image.Resampling.BICUBIC))
            first = [self.image.resize(smooth.size, Image.Resampling.NEAREST), smooth]
        else:
            first = [tile(self.image), tile(overlay(self.image, self.mask))]
        texts = ["image", "enlarged" if self.is_upscaled else "mask", *map(str, range(len(tiles)))]
        return sheet([*first, *tiles], captions=texts if captions else ())

    def save(self, folder: str | Path, name: str = "edit") -> list[Path]:
        """Write NAME_0.png, NAME_1.png, ..., NAME_mask.png unless upscaled, and NAME_sheet.png, as `var edit` does.

        Where a file of one of these names exists, NAME-2 is taken, then NAME-3 and so on: nothing is replaced.

        Returns:
            The files, the sheet last.

        Raises:
            InputError: the folder cannot be written.
        """
        target = to_path(folder, "folder")
        check_writable(target)
        return EditFolder(target, name, len(self.images)).finish(self)

    def __repr__(self) -> str:
        (width, height), (before_width, before_height) = self.images[0].size, self.image.size
        of = f" of an image of {before_width}x{before_height} px" if self.is_upscaled else ""
        share = "" if self.is_upscaled else f", {self.mask.mean():.0%} of it inpainted"
        return f"EditOutput({plural(len(self.images), 'result')} of {width}x{height} px{of}{share})"

    def _repr_png_(self) -> bytes:
        return png_bytes(self.grid(captions=True))


class EditFolder:
    """Writes the results of an edit as they come, under the names of `EditOutput.save`.

    Args:
        folder: made with the first image.
        name: what the files' names begin with, unless earlier ones have it.
        num: results that may come.
    """

    def __init__(self, folder: Path, name: str, num: int) -> None:
        free = _free_name(folder, name, [*map(str, range(num)), "mask", "sheet"])
        self.stem = str(folder / free)
        self.paths: list[Path] = []  # of the results that were written

    def add(self, images: Iterable[Image.Image]) -> None:
        """Write the next results."""
        for image in images:
            self.paths.append(self._write(str(len(self.paths)), image))

    def finish(self, output: EditOutput) -> list[Path]:
        """Write what is missing of all results, the mask and the sheet; return all files."""
        self.add(output.images[len(self.paths) :])
        masks = [] if output.is_upscaled else [self._write("mask", overlay(output.image, output.mask))]
        return [*self.paths, *masks, self._write("sheet", output.grid())]

    def _write(self, part: str, image: Image.Image) -> Path:
        path = Path(f"{self.stem}_{part}.png")
        save_image(path, image)
        return path


def _free_name(folder: Path, name: str, parts: list[str]) -> str:
    """Return the name, with a number if files of an earlier edit have it."""
    number, free = 1, name
    while any((folder / f"{free}_{part}.png").exists() for part in parts):
        number += 1
        free = f"{name}-{number}"
    return free
