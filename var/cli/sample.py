"""The command that generates images: `python sample.py --class 207 --class "king penguin"`."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from var.cli import options
from var.cli.options import ModelOptions, SamplingOptions, ScaleOptions, collect_options
from var.cli.run import run

if TYPE_CHECKING:
    from PIL import Image

    from var.pipeline import PipelineOutput

MIX = 8  # classes sampled when none is given
COLUMNS = 8  # of the grid, at most
GRID_TILE = 128  # smaller images are enlarged on the grid and in the GIF, to be seen on a screen


def main() -> None:
    """Entry point of sample.py."""
    run(sample)


def sample(
    classes: options.Classes = None,
    num: options.NumPerClass = 4,
    out: options.SampleFolder = Path("samples"),
    scales: options.Intermediates = False,
    *,
    model: ModelOptions,
    sampling: SamplingOptions,
    drawn: ScaleOptions,
) -> None:
    """Generate images scale by scale, coarse to fine, and save them as PNG with a grid of all.

    Examples:
      var sample --class 207 --class "king penguin" --num 8
      var sample --model var-d16 --cfg 2 --top-k 600 --scales
      var sample --model var-d16 --cfg-scales 0:7 --refiner var-d30 --refine-from 8
    """
    began = time.perf_counter()
    from var.hub.refiner import check_refiner_options
    from var.pipeline import VARPipeline
    from var.utils.classes import spread
    from var.utils.paths import check_writable

    check_writable(out)
    check_refiner_options(drawn.refiner, drawn.refine_from)
    pipe = VARPipeline.from_pretrained(model.model, device=model.device, dtype=model.dtype).pack()
    labels: list[int | str] = list(classes) if classes else list(spread(pipe.known_labels(), MIX))
    loaded = time.perf_counter()
    output = pipe(labels, num, intermediates=scales, **collect_options(sampling, drawn))
    seconds = time.perf_counter() - loaded
    for path in save(output, out, columns=min(num, COLUMNS)):
        typer.echo(path)
    typer.echo(f"{len(output.images)} images in {seconds:.1f} s, model loaded in {loaded - began:.1f} s")


def save(output: "PipelineOutput", folder: Path, columns: int) -> list[Path]:
    """Write CLASS_INDEX.png for each image, grid.png, and what was kept of the scales; all paths, the grid last."""
    from var.utils.images import enlarge, image_grid, save_image

    def grid(images: "Iterable[Image.Image]") -> "Image.Image":
        return image_grid([enlarge(image, GRID_TILE) for image in images], columns)

    paths = []
    for i, (label, index, image) in enumerate(zip(output.labels, output.indices, output.images, strict=True)):
        name = f"{label}_{index}"
        save_image(folder / f"{name}.png", image)
        paths.append(folder / f"{name}.png")
        if output.intermediates is not None:
            for k, stage in enumerate(output.intermediates[i]):
                save_image(folder / f"{name}_scale{k}.png", stage)
                paths.append(folder / f"{name}_scale{k}.png")
    if output.intermediates is not None:
        frames = [grid(stages) for stages in zip(*output.intermediates, strict=True)]
        save_image(folder / "growth.gif", frames[0], [*frames[1:], *[frames[-1]] * 3], milliseconds=350)
        paths.append(folder / "growth.gif")
    save_image(folder / "grid.png", grid(output.images))
    return [*paths, folder / "grid.png"]
