"""How well the shipped model edits: `python benchmarks/editing.py --source FOLDER`.

Every validation image of FOLDER loses its central quarter. What in-painting draws there is compared with what was
there, and with fills that need no model. Then every image is halved and drawn in full size again. Measured are:

- PSNR under the mask, in dB, of pixels in [0, 1]; mean over images;
- a perceptual distance: LPIPS, or its form on the features of EfficientNet-Lite2 without learned weights, of the whole
  results, which differ under the mask alone, enlarged to 128 px.

Without a source the images are drawn by the model itself; `--figure FILE` shows twelve of them, from best to worst.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from var import VARPipeline
from var.cli.run import run
from var.data.config import DataConfig
from var.data.dataset import Unreadable, open_dataset
from var.editing.edit import back_project, encoder_view
from var.editing.image_masks import Mask, pull_push_fill
from var.networks.perceptual import load_perceptual
from var.utils.images import to_pil, to_tensor

PERCEPTUAL_SIDE = 128
TELEA_RADIUS = 3
EXAMPLES = 12
FIGURED = {  # rows of the figure: the method that each shows
    "Telea": "Telea (OpenCV)",
    "null class": "in-painting, null class",
    "true class": "in-painting, true class",
}

Distance = Callable[[Tensor, Tensor], Tensor]
Method = Callable[[Image.Image, int, int], Image.Image]  # image, its label, its number -> result
Drawn = dict[str, list[Image.Image]]  # by method


class Inputs(NamedTuple):
    """What is edited."""

    images: list[Image.Image]
    labels: list[int]


def from_source(source: str, side: int) -> Inputs:
    """The validation images, cropped as in training."""
    dataset = open_dataset(DataConfig(source=source, workers=0), "validation", side, seed=0)
    samples = [dataset[0, index] for index in range(len(dataset))]
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    return Inputs(to_pil(torch.stack([s.content for s in read])), [s.label for s in read])


def from_model(pipe: VARPipeline, num: int) -> Inputs:
    """Images that the model draws, `num` of each class."""
    drawn = pipe(pipe.known_labels(), num=num, seed=1_000)
    return Inputs(drawn.images, drawn.labels)


def central(side: int) -> Mask:
    """The central quarter of a square."""
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    return mask


# --- fills that need no model


def mean_fill(image: Image.Image, mask: Mask) -> Image.Image:
    """The mean of the known pixels."""
    pixels = np.array(image)
    pixels[mask] = pixels[~mask].mean(axis=0).round()
    return Image.fromarray(pixels)


def telea(image: Image.Image, mask: Mask) -> Image.Image:
    """OpenCV's fast marching (Telea, 2004); needs opencv-python-headless."""
    import cv2

    return Image.fromarray(cv2.inpaint(np.array(image), mask.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA))


def smooth_fill(image: Image.Image, mask: Mask) -> Image.Image:
    """What the encoder is shown in place of masked pixels."""
    return to_pil(pull_push_fill(to_tensor(image)[None], torch.from_numpy(mask)))[0]


def reconstruction(pipe: VARPipeline, image: Image.Image, mask: Mask) -> Image.Image:
    """The tokenizer's reconstruction of the image, masked pixels and all: what no editing with it can surpass."""
    return Image.composite(pipe.reconstruct(image), image, Image.fromarray(mask))


# --- measures


class Scores(NamedTuple):
    """Means over images, each with its standard error."""

    psnr: float
    psnr_error: float
    perceptual: float
    perceptual_error: float


def stacked(images: list[Image.Image]) -> Tensor:
    return torch.stack([to_tensor(image) for image in images])


def psnr_of_each(results: list[Image.Image], images: list[Image.Image], mask: Mask) -> Tensor:
    """(B,) dB under the mask."""
    error = ((stacked(results) - stacked(images)) / 2).square()[:, :, torch.from_numpy(mask)].mean(dim=(1, 2))
    return -10 * error.clamp(min=1e-10).log10()


@torch.inference_mode()
def score(results: list[Image.Image], images: list[Image.Image], mask: Mask, distance: Distance) -> Scores:
    """Means over all images."""
    psnr = psnr_of_each(results, images, mask)
    pairs = (stacked(results), stacked(images))
    large = [F.interpolate(x, size=(PERCEPTUAL_SIDE,) * 2, mode="bicubic").clamp(-1, 1) for x in pairs]
    perceptual = torch.cat([distance(a, b) for a, b in zip(*(x.split(32) for x in large), strict=True)])
    root = math.sqrt(len(psnr))
    numbers = (psnr.mean(), psnr.std() / root, perceptual.mean(), perceptual.std() / root)
    return Scores(*(float(number) for number in numbers))


def inpainting(pipe: VARPipeline, mask: Mask, known_classes: bool) -> dict[str, Method]:
    """The rows of the table."""

    def redrawn(with_class: bool, **options: Any) -> Method:
        def method(image: Image.Image, label: int, number: int) -> Image.Image:
            return pipe.inpaint(image, mask, label if with_class else None, seed=number, **options).images[0]

        return method

    leaky = {"hide_masked": False, "dilate": 0, "color_match": False, "feather": 0}
    methods: dict[str, Method] = {
        "mean of the known pixels": lambda image, *_: mean_fill(image, mask),
        "Telea (OpenCV)": lambda image, *_: telea(image, mask),
        "smooth continuation": lambda image, *_: smooth_fill(image, mask),
        "tokenizer's reconstruction (knows what is masked)": lambda image, *_: reconstruction(pipe, image, mask),
        "in-painting, null class": redrawn(False),
        "- mask not dilated": redrawn(False, dilate=0),
        "- colors not matched": redrawn(False, color_match=False),
        "- masked pixels shown to the encoder (leaks)": redrawn(False, hide_masked=False),
        "- none of the three, as the reference does (leaks)": redrawn(False, **leaky),
    }
    if known_classes:
        methods["in-painting, true class"] = redrawn(True)
        methods["- cfg 1.5"] = redrawn(True, cfg=1.5)
        methods["- colors not matched, true class"] = redrawn(True, color_match=False)
    return methods


def upscaling(pipe: VARPipeline, known_classes: bool) -> dict[str, Method]:
    """Halved images, enlarged."""
    side = pipe.vqvae.config.image_side

    def halved(image: Image.Image) -> Image.Image:
        return image.resize((side // 2, side // 2), Image.Resampling.BICUBIC)

    def enlarged(kind: Image.Resampling) -> Method:
        return lambda image, *_: halved(image).resize((side, side), kind)

    def consistent(kind: Image.Resampling) -> Method:
        def method(image: Image.Image, *_: int) -> Image.Image:
            small = halved(image)
            return to_pil(back_project(to_tensor(small.resize((side, side), kind))[None], to_tensor(small)[None]))[0]

        return method

    def drawn(with_class: bool, **options: Any) -> Method:
        def method(image: Image.Image, label: int, number: int) -> Image.Image:
            return pipe.upscale(halved(image), label if with_class else None, seed=number, **options).images[0]

        return method

    kinds = {"bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}
    methods = {name: enlarged(kind) for name, kind in kinds.items()}
    methods |= {f"{name}, consistent": consistent(kind) for name, kind in kinds.items()}
    for count in range(1, len(pipe.vqvae.scales) + 1):
        methods[f"upscale, {count} scales kept"] = drawn(False, num_scales=count)
        methods[f"- not consistent, {count}"] = drawn(False, num_scales=count, consistent=False)
    if known_classes:
        methods["upscale, true class"] = drawn(True)
    return methods


@torch.inference_mode()
def agreement(pipe: VARPipeline, images: list[Image.Image]) -> Iterator[dict[str, object]]:
    """How far the tokens of a halved image are those of the image, scale by scale: enlarged first, or as it is."""
    vqvae, side, device = pipe.vqvae, pipe.vqvae.config.image_side, pipe.model.position.device
    nothing = np.zeros((side // 2, side // 2), dtype=bool)
    for kind in ("enlarged, then encoded", "encoded at its own size"):
        shares = []
        for first in range(0, len(images), 50):
            part = images[first : first + 50]
            halves = [image.resize((side // 2, side // 2), Image.Resampling.BICUBIC) for image in part]
            truth = vqvae.features(stacked(part).to(device))
            if kind == "enlarged, then encoded":
                enlarged = torch.stack([encoder_view(half, nothing, side) for half in halves])
                features = vqvae.features(enlarged.to(device))
            else:
                small = vqvae.quant_conv(vqvae.encoder(stacked(halves).to(device)))
                features = F.interpolate(small, size=truth.shape[-2:], mode="bicubic")
            same = vqvae.quantizer.encode(features) == vqvae.quantizer.encode(truth)
            shares.append(torch.stack([level.float().mean(dim=1) for level in vqvae.scales.split(same)], dim=1))
        yield {"tokens": kind, "agreement": [round(share, 3) for share in torch.cat(shares).mean(dim=0).tolist()]}


def measure(inputs: Inputs, methods: dict[str, Method], mask: Mask, distance: Distance) -> Drawn:
    """Print the scores of each method, a JSON line each; what they drew."""
    everything = {}
    for name, method in methods.items():
        results = [method(image, label, i) for i, (image, label) in enumerate(zip(*inputs, strict=True))]
        scores = score(results, inputs.images, mask, distance)
        rounded = {key: round(value, 4) for key, value in scores._asdict().items()}
        typer.echo(json.dumps({"method": name, "images": len(results), **rounded}))
        everything[name] = results
    return everything


def draw_figure(path: Path, inputs: Inputs, drawn: Drawn, mask: Mask) -> None:
    """Twelve images, evenly spaced from the best in-painting (null class) to the worst by PSNR under the mask."""
    psnr = psnr_of_each(drawn["in-painting, null class"], inputs.images, mask)
    order = psnr.argsort(descending=True).tolist()
    chosen = [order[round(i * (len(order) - 1) / (EXAMPLES - 1))] for i in range(EXAMPLES)]
    gray = [
        Image.composite(Image.new("RGB", image.size, "gray"), image, Image.fromarray(mask)) for image in inputs.images
    ]
    rows = {"image": inputs.images, "masked": gray} | {name: drawn[method] for name, method in FIGURED.items()}
    figure, axes = plt.subplots(len(rows), EXAMPLES, figsize=(EXAMPLES, len(rows) * 1.08), layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, index in zip(line, chosen, strict=True):
            axis.imshow(np.asarray(images[index]), interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name)
    for axis, index in zip(axes[0], chosen, strict=True):
        axis.set_title(f"{psnr[index]:.1f} dB", fontsize=9)
    figure.savefig(path, dpi=100)


def main(
    source: Annotated[str | None, typer.Option(help="Validation images, as data.source in a recipe.")] = None,
    model: Annotated[str, typer.Option(help="A shipped model or a model folder.")] = "var-mini",
    num: Annotated[int, typer.Option(help="Images a class, where the model draws them.", min=1)] = 8,
    network: Annotated[str, typer.Option(help="Of the perceptual distance.")] = "efficientnet-lite2",
    figure: Annotated[Path | None, typer.Option(help="PNG with twelve of the model's own images.")] = None,
) -> None:
    """Measure in-painting and super-resolution."""
    pipe = VARPipeline.from_pretrained(model, dtype="float32")
    distance = load_perceptual(network)
    side = pipe.vqvae.config.image_side
    everything = np.ones((side, side), dtype=bool)
    inputs = from_model(pipe, num) if source is None else from_source(source, side)
    if figure is not None and source is not None:
        raise InputError("--figure shows images that the model draws: leave --source away")
    typer.echo(f"{len(inputs.images)} images of {side} px, float32, {torch.get_num_threads()} threads")
    known = [label in pipe.known_classes() for label in inputs.labels]
    for is_known in (True, False):
        chosen = [i for i, k in enumerate(known) if k == is_known]
        if not chosen:
            continue
        part = Inputs([inputs.images[i] for i in chosen], [inputs.labels[i] for i in chosen])
        typer.echo(f"{len(chosen)} of classes that the model {'was' if is_known else 'was not'} trained on")
        methods = inpainting(pipe, central(side), is_known)
        if figure is not None:
            shown_in = {name: method for name, method in methods.items() if name in FIGURED.values()}
            draw_figure(figure, part, measure(part, shown_in, central(side), distance), central(side))
            return
        measure(part, methods, central(side), distance)
        if is_known:
            measure(part, upscaling(pipe, is_known), everything, distance)
            for line in agreement(pipe, part.images):
                typer.echo(json.dumps(line))


if __name__ == "__main__":
    run(main)
