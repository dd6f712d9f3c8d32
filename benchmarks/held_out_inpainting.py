"""In-painting of half of each held-out drawing: `python benchmarks/held_out_inpainting.py`.

The right half of every validation image of the model's classes is hidden and filled, by the model and by fills that
need none. Measured are, for each way to fill:

- PSNR in dB under the mask, of pixels in [0, 1]: mean over images and its standard error;
- recognition: share of the results whose nearest training image, by the cosine of a network's features, is of the same
  class. The images themselves show how much can be had.
"""

import math
from collections.abc import Callable
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
from var.utils.images import to_pil

CHUNK = 64  # images in memory at once

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


def main(
    data: Annotated[
        str, typer.Option(help="What the model was trained on: a source, or its recipe.")
    ] = "data/emoji-64",
    model: Annotated[str, typer.Option(help="Name or folder.")] = "var-emoji",
    extractor: Annotated[str, typer.Option(help="Network that recognizes.")] = "efficientnet-lite0",
) -> None:
    """Print a table of the ways to fill."""
    pipe = VARPipeline.from_pretrained(model, dtype="float32")
    network = open_extractor(extractor)
    mask = right_half(pipe.vqvae.config.image_side)
    known, known_labels = read_split(pipe, data, "train")
    images, labels = read_split(pipe, data, "validation")
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
