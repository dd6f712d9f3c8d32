"""In-painting of parts of each held-out image: `python benchmarks/held_out_inpainting.py`.

Of every validation image of the model's classes a part is hidden and filled, by models and by fills that need none.
Measured are, for each way to fill and each part that is hidden:

- PSNR in dB under the mask, of pixels in [0, 1]: mean over images and its standard error;
- recognition: share of the results whose nearest training image, by the cosine of a network's features, is of the same
  class. The images themselves show how much can be had.

Models that draw in several orders can be compared on several masks: a raster model sees only what comes before.
`--figure FILE` fills and shows ten images instead, evenly spaced in the order of the data.
"""

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from editing import mean_fill, psnr_of_each, reconstruction, telea
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from var import VARPipeline
from var.cli.run import in_columns, run
from var.data.config import DataConfig
from var.data.listing import Split
from var.editing.image_masks import Mask
from var.evaluation.data import image_batches, open_images, restrict_to_labels
from var.evaluation.metrics.extractors import Extractor, open_extractor
from var.utils.classes import spread
from var.utils.images import enlarge, image_grid, save_image, to_pil

PARTS = ("right", "lower", "center", "top")  # that are hidden: halves, and the central quarter
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


def read_split(pipe: VARPipeline, data: str | DataConfig, split: Split) -> tuple[list[Image.Image], Tensor]:
    """The images of a split that are of the model's classes, and their labels (B,)."""
    whole = open_images(data, split, pipe.vqvae.config.image_side)
    batches = list(image_batches(restrict_to_labels(whole, pipe.known_labels()), CHUNK))
    labels = [label for _, part in batches for label in part]
    return [image for images, _ in batches for image in to_pil(images)], torch.tensor(labels)


def hidden_part(name: str, side: int) -> Mask:
    """The mask of a part of a square, by a name in PARTS."""
    mask, half, quarter = np.zeros((side, side), dtype=bool), side // 2, side // 4
    rows, columns = {
        "right": (slice(None), slice(half, None)),
        "lower": (slice(half, None), slice(None)),
        "top": (slice(half), slice(None)),
        "center": (slice(quarter, side - quarter), slice(quarter, side - quarter)),
    }[name]
    mask[rows, columns] = True
    return mask


def hide(image: Image.Image, mask: Mask) -> Image.Image:
    """The image with gray in place of what is hidden."""
    return Image.composite(Image.new("RGB", image.size, "gray"), image, Image.fromarray(mask))


def ways_to_fill(pipes: Mapping[str, VARPipeline], mask: Mask) -> dict[str, Fill]:
    """The rows of the table: the models are named if there are several, and Telea's needs opencv-python-headless."""
    ways: dict[str, Fill] = {
        "the drawing itself": lambda image, *_: image,
        "mean of what is shown": lambda image, *_: mean_fill(image, mask),
    }
    if find_spec("cv2") is not None:
        ways["Telea (OpenCV)"] = lambda image, *_: telea(image, mask)
    for model, pipe in pipes.items():
        ways |= {f"{model}: {name}" if len(pipes) > 1 else name: fill for name, fill in fills_of(pipe, mask).items()}
    return ways


def fills_of(pipe: VARPipeline, mask: Mask) -> dict[str, Fill]:
    """The ways of a model."""
    return {
        "tokenizer's reconstruction (knows what is hidden)": lambda image, *_: reconstruction(pipe, image, mask),
        "in-painting, no class": lambda image, _, i: pipe.inpaint(image, mask, seed=i).images[0],
        "in-painting, with the class": lambda image, label, i: pipe.inpaint(image, mask, label, seed=i).images[0],
    }


@torch.inference_mode()
def directions(images: list[Image.Image], network: Extractor) -> Tensor:
    """Features of unit length, (B, D)."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    return torch.cat([F.normalize(network(part).pool, dim=1) for part in pixels.split(CHUNK)])


def recognition(results: Tensor, labels: Tensor, known: Tensor, known_labels: Tensor) -> float:
    """Share of the results (B, D) whose nearest known image, of (N, D), has their label; all of unit length."""
    return (known_labels[(results @ known.T).argmax(dim=1)] == labels).double().mean().item()


def draw_figure(file: Path, images: list[Image.Image], labels: list[int], fills: dict[str, Fill]) -> None:
    """Save one row for each fill in FIGURED, one column for each image."""
    shown = [fills[name] for name in FIGURED if name in fills]
    rows = [fill(image, labels[i], i) for fill in shown for i, image in enumerate(images)]
    save_image(file, image_grid([enlarge(image, SHOWN_SIDE) for image in rows], len(images)))


def main(
    data: Annotated[
        str, typer.Option(help="What the models were trained on: a source, or its recipe.")
    ] = "data/emoji-64",
    model: Annotated[list[str] | None, typer.Option(help="Name or folder. var-emoji if none.")] = None,
    hidden: Annotated[
        list[str] | None, typer.Option(help=f"Part of the image: {', '.join(PARTS)}. The right half if none.")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Images, evenly spaced. All if not given.", min=2)] = None,
    extractor: Annotated[str, typer.Option(help="Network that recognizes.")] = "efficientnet-lite0",
    figure: Annotated[Path | None, typer.Option(help="PNG with ten examples, in place of the table.")] = None,
) -> None:
    """Print a table of the ways to fill."""
    if unknown := set(hidden or ()) - set(PARTS):
        raise InputError(f"--hidden {min(unknown)!r} is no part of an image: take one of {', '.join(PARTS)}")
    pipes = {name: VARPipeline.from_pretrained(name, dtype="float32") for name in model or ["var-emoji"]}
    first, *others = pipes.values()
    side = first.vqvae.config.image_side
    for name, pipe in pipes.items():
        if pipe.vqvae.config.image_side != side or pipe.known_labels() != first.known_labels():
            raise InputError(f"--model {name} has images of another size or other classes than the first model")
    masks = {part: hidden_part(part, side) for part in hidden or PARTS[:1]}
    images, labels = read_split(first, data, "validation")
    if figure is not None:
        if others or len(masks) > 1:
            raise InputError("--figure shows one model and one hidden part: give one --model and one --hidden")
        (mask,) = masks.values()
        chosen = spread(range(len(images)), EXAMPLES)
        shown = ways_to_fill(pipes, mask) | {"what is shown": lambda image, *_: hide(image, mask)}
        draw_figure(figure, [images[i] for i in chosen], labels[chosen].tolist(), shown)
        return
    taken = spread(range(len(images)), num or len(images))
    images, labels = [images[i] for i in taken], labels[taken]
    network = open_extractor(extractor)
    known, known_labels = read_split(first, data, "train")
    known_directions = directions(known, network)
    fills = {part: ways_to_fill(pipes, mask) for part, mask in masks.items()}
    rows = [("fill", *(f"{part}: {measure}" for part in masks for measure in ("PSNR", "recognized")))]
    for name in fills[next(iter(masks))]:
        cells = []
        for part, mask in masks.items():
            fill = fills[part][name]
            results = [
                fill(image, label, i) for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
            ]
            psnr = psnr_of_each(results, images, mask)
            recognized = recognition(directions(results, network), labels, known_directions, known_labels)
            error = psnr.std().item() / math.sqrt(len(psnr))
            cells += [f"{psnr.mean().item():.2f} ± {error:.2f}", f"{recognized:.1%}"]
        rows.append((name, *cells))
    typer.echo(f"{len(images)} images, {len(known)} to compare with, {network.name}")
    typer.echo("\n".join(in_columns(rows)))


if __name__ == "__main__":
    run(main)
