"""A folder of drawn images: LABEL_INDEX.png, written as they come, and a sheet and a GIF of the scales at the end."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from var.sampling.drawing import index_within_class
from var.utils.images import enlarge, image_grid, save_image
from var.utils.sheets import SMALLEST_TILE, choose_tiles

GRID, GROWTH = "grid.png", "growth.gif"


def count_replaced(folder: Path, labels: Sequence[int]) -> int:
    """Return how many images of a folder have the names of those with these labels, or of their sheet."""
    names = [*map(image_stem, labels, index_within_class(list(labels))), Path(GRID).stem]
    return sum((folder / f"{name}.png").exists() for name in names)


def image_stem(label: int, index: int) -> str:
    """Return the name of an image's file, without its suffix."""
    return f"{label}_{index}"


class ImageFolder:
    """Writes images to a folder; of those for the sheet, a bounded number, it keeps small copies.

    Args:
        folder: made with the first image.
        labels: of all images that may come, in their order.
    """

    def __init__(self, folder: Path, labels: Sequence[int]) -> None:
        self.folder = folder
        self.count = 0  # images that were written
        self._shown, self._columns = choose_tiles(labels)
        self._tiles: list[Image.Image] = []
        self._growth: list[list[Image.Image]] = []

    @property
    def shown(self) -> int:
        """Number of images on the sheet."""
        return len(self._tiles)

    def add(self, label: int, index: int, image: Image.Image, stages: Sequence[Image.Image] = ()) -> list[Path]:
        """Write the next image, and what it looked like after each scale; return the files."""
        name = image_stem(label, index)
        files = {f"{name}.png": image} | {f"{name}_scale{k}.png": stage for k, stage in enumerate(stages)}
        for file, content in files.items():
            save_image(self.folder / file, content)
        if self.count in self._shown:
            self._tiles.append(enlarge(image, SMALLEST_TILE))
            if stages:
                self._growth.append([enlarge(stage, SMALLEST_TILE) for stage in stages])
        self.count += 1
        return [self.folder / file for file in files]

    def finish(self) -> list[Path]:
        """Write the GIF, if there are scales, and the sheet of the images so far; return the files."""
        paths = []
        if self._growth:
            frames = [image_grid(stages, self._columns) for stages in zip(*self._growth, strict=True)]
            save_image(self.folder / GROWTH, frames[0], [*frames[1:], *[frames[-1]] * 3], milliseconds=350)
            paths.append(self.folder / GROWTH)
        if self._tiles:
            save_image(self.folder / GRID, image_grid(self._tiles, self._columns))
            paths.append(self.folder / GRID)
        return paths
