"""One run of an edit: read the image, load the model, edit, save the results with a sheet of them all."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from var.cli.bundles import ModelOptions, ResultOptions
from var.cli.sample import COLUMNS, GRID_TILE

if TYPE_CHECKING:
    from PIL import Image

    from var.pipeline import EditOutput

LARGEST_TILE = 512  # of the sheet: larger images are reduced on it
LONGEST_STEM = 50  # characters of an image's name that its results take: file systems end at 255 bytes


@dataclass(frozen=True)
class EditJob:
    """One run of a verb: what it reads, what it loads, where its results go."""

    verb: str
    image: Path
    results: ResultOptions
    model: ModelOptions
    options: dict[str, Any]  # as the pipeline's method takes them
    began: float = field(default_factory=time.perf_counter)

    def read(self) -> "Image.Image":
        """The image, RGB and upright; before that, what can be refused without a look at it is."""
        from var.sampling.params import SamplingParams, with_options
        from var.utils.files import check_writable
        from var.utils.images import open_image, to_rgb

        check_writable(self.results.out)
        with_options(SamplingParams(), self.options)
        return to_rgb(open_image(self.image))

    def finish(self, edit: "Callable[..., EditOutput]") -> None:
        """Load the model, edit, save and print what was saved."""
        from var.pipeline import VARPipeline
        from var.utils.images import save_image

        pipe = VARPipeline.from_pretrained(self.model.model, device=self.model.device, dtype=self.model.dtype)
        loaded = time.perf_counter()
        output = edit(pipe, num=self.results.num, **self.options)
        seconds = time.perf_counter() - loaded
        stem = f"{self.image.stem.lstrip('.')[:LONGEST_STEM] or 'picture'}_{self.verb}"
        saved = {self.results.out / f"{stem}_{name}.png": image for name, image in self.files(output).items()}
        for path, image in saved.items():
            save_image(path, image)
        for path in saved:
            typer.echo(path)
        count = len(output.images)
        typer.echo(f"{count} pictures in {seconds:.1f} s, model loaded in {loaded - self.began:.1f} s")

    def files(self, output: "EditOutput") -> "dict[str, Image.Image]":
        """What is saved, by name: the results, the mask and the sheet."""
        from var.editing.image_masks import overlay
        from var.utils.images import image_grid

        tiles = [tile(image) for image in output.images]
        results = {str(i): image for i, image in enumerate(output.images)}
        if self.verb == "upscale":
            return results | {"sheet": image_grid([*enlarged(output), *tiles], COLUMNS)}
        mask = overlay(output.image, output.mask)
        return results | {"mask": mask, "sheet": image_grid([tile(output.image), tile(mask), *tiles], COLUMNS)}


def enlarged(output: "EditOutput") -> "list[Image.Image]":
    """Tiles of a small image: its pixels as they are, and the image in the results' size (bicubic)."""
    from PIL.Image import Resampling

    smooth = tile(output.image.resize(output.images[0].size, Resampling.BICUBIC))
    return [output.image.resize(smooth.size, Resampling.NEAREST), smooth]


def tile(image: "Image.Image") -> "Image.Image":
    """An image as the sheet shows it: large enough to be seen and small enough to go with others."""
    from var.utils.images import enlarge

    seen = enlarge(image, GRID_TILE) if max(image.size) < GRID_TILE else image.copy()
    seen.thumbnail((LARGEST_TILE, LARGEST_TILE))
    return seen
