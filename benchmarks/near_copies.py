"""How many of a model's samples are near copies of training images: `python benchmarks/near_copies.py --data FOLDER`.

The nearest training image of a sample is that of the smallest mean squared difference of pixels, among the images as
training crops them and their mirror images. A sample is a near copy if it is as near to it as the tokenizer's own
reconstruction of that image is, up to 3 dB. The same share of held-out images, sent through the tokenizer, shows how
often images of these data are that near to one another.
"""

from typing import Annotated

import torch
import typer
from torch import Tensor

from var import VARPipeline
from var.cli.run import run
from var.data.listing import Split
from var.evaluation.data import image_batches, open_images, read_source, restrict_to_labels
from var.sampling.generate import generate_batches

TOLERANCE = 2.0  # factor on the squared error of the reconstruction, 3 dB
CHUNK = 64  # samples compared at once


def read_all(pipe: VARPipeline, data: str, overrides: list[str], split: Split) -> Tensor:
    """All images of a split that are of the model's classes, (N, 3, S, S) in [-1, 1]."""
    whole = open_images(read_source(data, overrides), split, pipe.vqvae.config.image_side)
    chosen = restrict_to_labels(whole, pipe.known_labels())
    return torch.cat([images for images, _ in image_batches(chosen, CHUNK)])


@torch.inference_mode()
def reconstruct(pipe: VARPipeline, images: Tensor) -> Tensor:
    """The images through the tokenizer and back."""
    return torch.cat([pipe.vqvae.decode(pipe.vqvae.encode(part)) for part in images.split(CHUNK)])


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each pair of images."""
    return (a - b).square().flatten(1).mean(dim=1)


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared difference of each image to the nearest of the others, and that one's index."""
    flat, size = others.flatten(1), others[0].numel()
    found = [torch.cdist(part.flatten(1), flat).square().div(size).min(dim=1) for part in images.split(CHUNK)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def share_of_copies(images: Tensor, training: Tensor, errors: Tensor) -> float:
    """Share of the images that are as near to a training image as TOLERANCE times its reconstruction's error."""
    mirrored = torch.cat([training, training.flip(-1)])
    distance, index = nearest(images, mirrored)
    return (distance <= TOLERANCE * errors.repeat(2)[index]).double().mean().item()


def main(
    data: Annotated[str, typer.Option(help="What the model was trained on: a source, or its recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes of the recipe, such as data.source=X.")] = None,
    model: Annotated[str, typer.Option(help="Name or folder.")] = "var-emoji",
    num: Annotated[int, typer.Option(help="Samples, spread over the model's classes.", min=1)] = 512,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print the share of near copies among samples, and among held-out images."""
    pipe = VARPipeline.from_pretrained(model, device="cpu", dtype="float32")
    training = read_all(pipe, data, overrides or [], "train")
    errors = squared_error(reconstruct(pipe, training), training)
    labels = pipe.known_labels()
    chosen = [labels[i * len(labels) // num] if num < len(labels) else labels[i % len(labels)] for i in range(num)]
    batches = generate_batches(pipe.model, pipe.vqvae, chosen, CHUNK, pipe.choose_sampling({}), seed)
    samples = torch.cat([batch.images for batch in batches])
    held_out = read_all(pipe, data, overrides or [], "validation")
    typer.echo(f"{model}: {len(training)} training images of its {len(labels)} classes")
    for name, images in (("samples", samples), ("held-out images", reconstruct(pipe, held_out))):
        typer.echo(f"{len(images)} {name}: {share_of_copies(images, training, errors):.1%} are near copies")


if __name__ == "__main__":
    run(main)
