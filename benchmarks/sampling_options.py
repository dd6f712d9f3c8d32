"""What each sampling option gains and costs: `python benchmarks/sampling_options.py --reference FOLDER`.

For each option a set of images is generated and scored, all with the same random streams:

- time an image (transformer and tokenizer), relative to the model's own sampling, each the best of several rounds in
  which all options take turns;
- share of the images whose class a classifier recognizes, among the model's classes (of ImageNet's only);
- Frechet distance to the reference, on the classifier's features.

The sets are kept in --out: the same command resumes from them, and measures the time anew.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from var import VARPipeline
from var.cli.run import run
from var.evaluation.metrics.extractors import open_extractor
from var.evaluation.metrics.reference import open_reference
from var.evaluation.metrics.score import score
from var.evaluation.samples.generate import generate_samples
from var.evaluation.samples.image_sets import open_image_set
from var.evaluation.samples.rejection import IMAGENET_CLASSES
from var.evaluation.samples.sample_folder import IMAGES
from var.evaluation.samples.sample_set import Settings, sample_settings
from var.sampling.generate import generate
from var.sampling.refiner import Refiner
from var.utils.paths import check_writable

Row = tuple[dict[str, Any], int | None]  # options of sampling, first scale of the refiner


def rows(num_scales: int, refined: bool) -> dict[str, Row]:
    """Return the rows of the table by name, the model's own sampling first."""
    last = num_scales - 1
    table: dict[str, Row] = {"the model's own": ({}, None), "no guidance": ({"cfg": 0.0}, None)}
    windows = [(0, last - 1), (0, last - 2), (0, last - 3), (1, last - 1), (last // 2, last)]
    for first, stop in windows:
        if first <= stop:
            table[f"cfg_scales={first}:{stop}"] = ({"cfg_scales": (first, stop)}, None)
    for temperature in (0.8, 0.9, 1.1):
        table[f"temperature={temperature}"] = ({"temperature": temperature}, None)
    for name, end in (("falling to 0.8", 0.8), ("rising to 1.2", 1.2)):
        slope = [round(1 + (end - 1) * k / max(last, 1), 3) for k in range(num_scales)]
        table[f"temperature {name}"] = ({"temperature": tuple(slope)}, None)
    if refined:
        for first in range(max(last - 2, 1), num_scales):
            table[f"refiner from scale {first}"] = ({}, first)
    return table


def time_rounds(
    pipe: VARPipeline, prepared: dict[str, tuple[Settings, Refiner | None]], rounds: int
) -> dict[str, float]:
    """Seconds an image of each row, the best of the rounds, in which the rows take turns."""
    best = dict.fromkeys(prepared, float("inf"))
    for _ in range(rounds):
        for name, (settings, refiner) in prepared.items():
            labels = settings.batches[0].labels
            began = time.perf_counter()
            generate(pipe.model, pipe.vqvae, labels, settings.sampling, refiner=refiner).images.sum().item()
            best[name] = min(best[name], (time.perf_counter() - began) / len(labels))
    return best


def main(
    reference: Annotated[
        Path, typer.Option(help="Folder of images, .npz, or what `var evaluate reference` wrote.", exists=True)
    ],
    model: Annotated[str, typer.Option(help="A shipped model or a model folder.")] = "var-mini",
    refiner: Annotated[str | None, typer.Option(help="Model on the same tokenizer: adds its rows.")] = None,
    num_per_class: Annotated[int, typer.Option(help="Images of each class.", min=1)] = 50,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Of timing.", min=1)] = 3,
    extractor: Annotated[str, typer.Option(help="Network that scores.")] = "efficientnet-lite0",
    out: Annotated[Path, typer.Option(help="Folder of the sets.")] = Path("sampling_options"),
) -> None:
    """Print a table of options in Markdown."""
    check_writable(out)
    pipe = VARPipeline.from_pretrained(model, dtype="float32")
    finer = None if refiner is None else VARPipeline.from_pretrained(refiner, dtype="float32")
    network = open_extractor(extractor)
    against = open_reference(reference, network)
    among = pipe.known_labels() if pipe.model.config.num_classes == IMAGENET_CLASSES else None
    prepared = {}
    for name, (options, first) in rows(len(pipe.model.scales), finer is not None).items():
        chosen = pipe.choose_refiner(None if first is None else finer, first)
        named = {"refiner": chosen, "refiner_name": refiner} if chosen else {}
        prepared[name] = sample_settings(pipe, model, None, num_per_class, batch=batch, **options, **named), chosen
    seconds = time_rounds(pipe, prepared, rounds)
    baseline, *_ = seconds.values()
    typer.echo(f"{num_per_class} images of each of {len(pipe.known_labels())} classes; {network.name}; {baseline:.4f}")
    typer.echo("\n| option | time | recognized | Frechet distance |\n|---|---|---|---|")
    for number, (name, (settings, chosen)) in enumerate(prepared.items()):
        folder = out / f"{number:02d}"
        generate_samples(pipe, settings, folder, refiner=chosen)
        numbers = score(open_image_set(folder / IMAGES), against, network, among=among).numbers
        recognized = f"{numbers[f'accuracy_among_{len(among)}'].value:.1%}" if among else "-"
        distance = numbers["frechet_distance"].value
        typer.echo(f"| {name} | {seconds[name] / baseline:.2f} | {recognized} | {distance:.2f} |")


if __name__ == "__main__":
    run(main)
