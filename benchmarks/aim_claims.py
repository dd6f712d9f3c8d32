"""Two claims of AIM (arXiv 2401.08541), tested small: `python benchmarks/aim_claims.py CLAIM --data FOLDER`.

`data-size`: on little data the validation loss rises again while the training loss goes on falling; on more it keeps
falling. `model-size`: of two encoders at equal FLOPs, the smaller one trained longer comes close to the larger one.
A result is a file: the same command goes on where it was ended.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from encoder_objectives import (
    CONFIGS,
    HEADER,
    MEASURES,
    NEVER,
    OBJECTIVES,
    PROBE,
    SAME_IMAGES,
    fast_precision,
    measure_once,
    read_metrics,
    row,
    save_figure,
    steps_for,
    train_and_judge,
)
from matplotlib.figure import Figure

from tokenizer.errors import InputError
from var.cli.run import in_columns, run
from var.data.config import DataConfig
from var.data.sources import list_images
from var.models.aim import Encoder, EncoderConfig
from var.training.loop import train
from var.training.recipe import load_recipe

RECIPE, HEAD = OBJECTIVES["AIM, prefix"]
LOGGED = 20  # training losses between two validations, at most
CENTER = ["data.crop=center", "data.flip=false", "data.jitter=null"]

Data = Annotated[str, typer.Option(help="Images with labels, as data.source of a recipe.")]
Seeds = Annotated[list[int] | None, typer.Option(help="Of the runs; several times for several. 0 if none.")]
Side = Annotated[int, typer.Option(help="Side of the images in pixels.", min=1)]
PatchSide = Annotated[int, typer.Option(help="Side of the patches in pixels.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Images of a step.", min=1)]
Points = Annotated[int, typer.Option(help="Validations during a run.", min=1)]
FigureFile = Annotated[Path | None, typer.Option(help="PNG with the curves.")]


def data_size(
    data: Data,
    steps: Annotated[int, typer.Option(help="Of every run.", min=1)] = 2000,
    fraction: Annotated[list[float] | None, typer.Option(help="Of the data. 0.25, 0.5 and 1 if none.")] = None,
    crops: Annotated[bool, typer.Option(help="Random crops and flips, or the center of each image.")] = True,
    seed: Seeds = None,
    image_size: Side = 32,
    patch_size: PatchSide = 4,
    width: Annotated[int, typer.Option(help="Of the encoder.", min=1)] = 64,
    depth: Annotated[int, typer.Option(help="Blocks of the encoder.", min=1)] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads of a block.", min=1)] = 2,
    batch_size: BatchSize = 128,
    points: Points = 10,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/aim_data"),
    figure: FigureFile = None,
) -> None:
    """Print the losses during runs of equal length on parts of the data.

    The training loss is of prefixes of all lengths and of images as they are augmented, the validation loss of the
    second half of unchanged ones: compare each among the runs, not with the other.
    """
    fractions = fraction or [0.25, 0.5, 1.0]
    if wrong := [each for each in fractions if not 0 < each <= 1]:
        raise InputError(f"--fraction {wrong[0]:g} must be above 0 and at most 1")
    length = len(list_images(DataConfig(source=data), "train").rows)
    sizes = {"image_size": image_size, "patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
    rows, curves = [("images", "step", "epochs", "training loss", "validation loss")], {}
    for images in (max(1, round(each * length)) for each in fractions):
        runs = []
        for number in seed or [0]:
            given = _recipe_keys(data, sizes, number, batch_size) + ([] if crops else CENTER)
            given += [f"data.train_images={images}", f"steps={steps}"]
            folder = out / f"{images}-{number}"
            way = [*given, f"points={points}"]
            runs.append(measure_once(folder, way, partial(_train, given, folder / "run", steps, points))["curve"])
        curve = mean_curve(runs)
        rows += [
            (f"{images:,}", str(step), f"{step * batch_size / images:.3g}", f"{train_loss:.4f}", f"{loss:.4f}")
            for step, train_loss, loss in curve
        ]
        curves[f"{images:,} images ({steps * batch_size / images:.3g} epochs)"] = curve
    typer.echo("\n".join(in_columns(rows)))
    if figure is not None:
        _draw_data(figure, curves)


def model_size(
    data: Data,
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxBLOCKSxHEADS. 32x4x2, 64x4x2 and 128x6x4 if none.")
    ] = None,
    tflop: Annotated[float, typer.Option(help="Products of each training run.", min=0)] = 8.0,
    seed: Seeds = None,
    image_size: Side = 32,
    patch_size: PatchSide = 4,
    batch_size: BatchSize = 128,
    probe_steps: Annotated[int, typer.Option(help="Steps of the attentive probe.", min=1)] = 400,
    points: Points = 10,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/aim_size"),
    figure: FigureFile = None,
) -> None:
    """Print what encoders of several sizes are worth after training of equal cost."""
    steps_for(tflop, flops=1e9)  # this and what follows raises before hours of training
    images = {"image_size": image_size, "patch_size": patch_size}
    all_sizes = {name: images | _parse_size(name) for name in size or ["32x4x2", "64x4x2", "128x6x4"]}
    table, curves, scores = [HEADER], {}, {}
    for name, sizes in all_sizes.items():
        results = []
        for number in seed or [0]:
            given = _recipe_keys(data, sizes, number, batch_size)
            folder = out / f"{name}-{number}"
            way = [*given, f"tflop={tflop}", f"probe_steps={probe_steps}", *PROBE]
            work = partial(train_and_judge, CONFIGS / RECIPE, given, folder, data, tflop, probe_steps, points)
            results.append(measure_once(folder, way, work))
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in Encoder(EncoderConfig(**sizes)).parameters())
        title = f"{name} ({parameters / 1e6:.2f} M)"
        table.append(row(title, results))
        runs = [read_curve(out / f"{name}-{number}" / "run") for number in seed or [0]]
        curves[title] = [(step * results[0]["gflop a step"] / 1e3, *losses) for step, *losses in mean_curve(runs)]
        scores[parameters] = results
    typer.echo("\n".join(in_columns(table)))
    if figure is not None:
        _draw_size(figure, curves, scores)


def _recipe_keys(data: str, sizes: dict[str, int], seed: int, batch_size: int) -> list[str]:
    given = [f"data.source={data}", fast_precision(), *SAME_IMAGES, *HEAD, f"seed={seed}", f"batch_size={batch_size}"]
    return given + [f"model.{key}={value}" for key, value in sizes.items()]


def _parse_size(text: str) -> dict[str, int]:
    try:
        width, depth, heads = map(int, text.split("x"))
    except ValueError as error:
        raise InputError(f"--size {text!r} is no WIDTHxBLOCKSxHEADS, such as 64x4x2") from error
    return {"width": width, "depth": depth, "heads": heads}


def _train(given: list[str], output: Path, steps: int, points: int) -> dict[str, Any]:
    every = math.ceil(steps / points)
    keys = [f"validate_every={every}", f"checkpoint_every={every}", f"log_every={math.ceil(every / LOGGED)}"]
    recipe = load_recipe(CONFIGS / RECIPE, [*given, *keys, "epochs=null", f"sample_every={NEVER}", f"output={output}"])
    train(recipe)
    return {"curve": read_curve(output)}


def read_curve(folder: Path) -> list[tuple[int, float, float]]:
    """Step, mean training loss since the point before, and validation loss, at each validation of a run."""
    curve, since = [], []
    for line in read_metrics(folder):
        if line["split"] == "train":
            since.append(line["loss"])
        else:
            curve.append((line["step"], statistics.mean(since) if since else math.nan, line["loss"]))
            since = []
    return curve


def mean_curve(runs: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, ...]]:
    """The mean of runs of other seeds at each of their points."""
    return [tuple(map(statistics.mean, zip(*points, strict=True))) for points in zip(*runs, strict=True)]


def _draw_data(file: Path, curves: dict[str, list[tuple[float, ...]]]) -> None:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for panel, column, name in zip(figure.subplots(1, 2), (1, 2), ("training loss", "validation loss"), strict=True):
        for title, curve in curves.items():
            panel.plot([point[0] for point in curve], [point[column] for point in curve], ".-", label=title)
        panel.set(xlabel="steps", ylabel=name)
    panel.legend(fontsize=8, frameon=False)
    save_figure(figure, file)


def _draw_size(file: Path, curves: dict[str, list[tuple[float, ...]]], scores: dict[int, list[dict[str, Any]]]) -> None:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for title, curve in curves.items():
        losses.plot([point[0] for point in curve], [point[2] for point in curve], ".-", label=title)
    losses.set(xlabel="training cost, TFLOP", ylabel="validation loss")
    losses.legend(fontsize=8, frameon=False)
    for measure in MEASURES:
        means = [100 * statistics.mean(result[measure] for result in results) for results in scores.values()]
        accuracies.plot(list(scores), means, "o-", label=measure)
    accuracies.set(xscale="log", xlabel="parameters of the encoder", ylabel="top-1, %")
    accuracies.legend(fontsize=8, frameon=False)
    save_figure(figure, file)


if __name__ == "__main__":
    run(data_size, model_size, help="Test claims of AIM on small encoders.")
