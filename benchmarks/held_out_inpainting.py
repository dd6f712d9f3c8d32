"""In-painting of half of each held-out drawing: `python benchmarks/held_out_inpainting.py`.

The right half of every validation image of the model's classes is hidden and filled, by the model and by fills that
need none. Measured are, for each way to fill:

- PSNR in dB under the mask, of pixels in [0, 1]: mean over images and its standard error;
- recognition: share of the results whose nearest training image, by the cosine of a network's features, is of the same
  class. The images themselves show how much can be had.

`--figure FILE` fills and shows ten of them instead, evenly spaced in the order of the data.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from editing import mean_fill, psnr_of_each, reconstruction, telea
from PIL import Image
from torch import Tensor

from var import VARPipeline
from var.cli.run import in_columns, run
from var.data.listing import Split
from var.editing.image_masks import Mask
from var.evaluation.data import image_batches, open_images, read_source, restrict_to_labels
from var.evaluation.metrics.extractors import Extractor, open_extractor
from var.utils.classes import spread
from var.utils.images import enlarge, image_grid, save_image, to_pil

CHUNK = 64  # images in memory at once
EXAMPLES, SHOWN_SIDE = 10, 96  # of the figure: its columns, and the side of an image in pixels
FIGURED = (
    "the drawing itself",
    "what is shown",
    "Telea (OpenCV)",
    "in-painting, no class",
    "in-painting, with the class",
)

Fill = Callable[[Image.Image, int, int], Image.Image]  # image, its label, its number -> result


def read_split(pipe: VARPipeline, data: str, split: Split) -> tuple[list[Image.Image], Tensor]:
    """The images of a split that are of the model's classes, and their labels (B,)."""
    whole = open_images(read_source(data, []), split, pipe.vqvae.config.image_side)
    batches = list(image_batches(restrict_to_labels(whole, pipe.known_labels()), CHUNK))
    labels = [label for _, part in batches for label in part]
    return [image for images, _ in batches for image in to_pil(images)], torch.tensor(labels)


def right_half(side: int) -> Mask:
    """The mask of the right half of a square."""
    mask = np.zeros((side, side), dtype=bool)
    mask[:, side // 2 :] = True
    return mask


def hide(image: Image.Image, mask: Mask) -> Image.Image:
    """The image with gray in place of what is hidden."""
    return Image.composite(Image.new("RGB", image.size, "gray"), image, Image.fromarray(mask))


def ways_to_fill(pipe: VARPipeline, mask: Mask) -> dict[str, Fill]:
    """The rows of the table."""
    return {
        "the drawing itself": lambda image, *_: image,
        "tokenizer's reconstruction (knows what is hidden)": lambda image, *_: reconstruction(pipe, image, mask),
        "mean of the half that is shown": lambda image, *_: mean_fill(image, mask),
        "Telea (OpenCV)": lambda image, *_: telea(image, mask),
        "in-painting, no class": lambda image, _, i: pipe.inpaint(image, mask, seed=i).images[0],
        "in-painting, with the class": lambda image, label, i: pipe.inpaint(image, mask, label, seed=i).images[0],
    }


@torch.inference_mode()
def directions(images: list[Image.Image], network: Extractor) -> Tensor:
    """Features of unit length, (B, D)."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    return torch.cat([F.normalize(network(part).pool, dim=1) for part in pixels.split(CHUNK)])


def draw_figure(file: Path, images: list[Image.Image], labels: list[int], fills: dict[str, Fill]) -> None:
    """Save one row for each name in FIGURED, one column for each image."""
    rows = [fills[name](image, labels[i], i) for name in FIGURED for i, image in enumerate(images)]
    save_image(file, image_grid([enlarge(image, SHOWN_SIDE) for image in rows], len(images)))


def main(
    data: Annotated[
        str, typer.Option(help="What the model was trained on: a source, or its recipe.")
    ] = "data/emoji-64",
    model: Annotated[str, typer.Option(help="Name or folder.")] = "var-emoji",
    extractor: Annotated[str, typer.Option(help="Network that recognizes.")] = "efficientnet-lite0",
    figure: Annotated[Path | None, typer.Option(help="PNG with ten examples, in place of the table.")] = None,
) -> None:
    """Print a table of the ways to fill."""
    pipe = VARPipeline.from_pretrained(model, dtype="float32")
    mask = right_half(pipe.vqvae.config.image_side)
    images, labels = read_split(pipe, data, "validation")
    if figure is not None:
        chosen = spread(range(len(images)), EXAMPLES)
        shown = ways_to_fill(pipe, mask) | {"what is shown": lambda image, *_: hide(image, mask)}
        draw_figure(figure, [images[i] for i in chosen], labels[chosen].tolist(), shown)
        return
    network = open_extractor(extractor)
    known, known_labels = read_split(pipe, data, "train")
    known_directions = directions(known, network)
    rows = [("fill", "PSNR", "recognized")]
    for name, fill in ways_to_fill(pipe, mask).items():
        results = [fill(image, label, i) for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))]
        psnr = psnr_of_each(results, images, mask)
        nearest = (directions(results, network) @ known_directions.T).argmax(dim=1)
        recognized = (known_labels[nearest] == labels).double().mean().item()
        error = psnr.std().item() / math.sqrt(len(psnr))
        rows.append((name, f"{psnr.mean().item():.2f} ± {error:.2f}", f"{recognized:.1%}"))
    typer.echo(f"{len(images)} images, {len(known)} to compare with, {network.name}")
    typer.echo("\n".join(in_columns(rows)))


if __name__ == "__main__":
    run(main)
