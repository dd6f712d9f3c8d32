"""Objectives that pre-train one encoder, at equal FLOPs: `python benchmarks/encoder_objectives.py --data FOLDER`.

Every objective trains the same encoder on the same images until the products of its steps, counted, have taken the
given FLOPs. The frozen features of its last blocks are then judged by nearest neighbors, logistic regression and an
attentive probe, beside those of the untrained encoder. A result is a file: the same command goes on where it was ended.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from tokenizer.errors import InputError
from var.cli.run import in_columns, run
from var.features.classifiers import linear, nearest_neighbors
from var.features.extract import open_source, write_features
from var.features.feature_file import read_features
from var.features.images import list_split
from var.models.aim import EncoderConfig
from var.training.curves import METRICS
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.stages.probe import SCORES
from var.utils.device import choose_device, choose_dtype
from var.utils.files import atomic_write

NEVER = 10**9  # a step that no run reaches
UNTRAINED = "untrained"
# Recipe in configs, and what differs from it: heads and decoders that fit a small encoder.
OBJECTIVES = {
    "AIM, prefix": ("tiny_imagenet_aim.yaml", ["head={depth: 2, width: 64}"]),
    "AIM, causal": ("tiny_imagenet_aim.yaml", ["head={depth: 2, width: 64}", "attention=causal"]),
    "SemAIM": ("tiny_imagenet_semaim.yaml", ["decoder={depth: 2, width: 64, heads: 2}"]),
    "BEiT": ("tiny_imagenet_beit.yaml", []),
    "MAE": ("tiny_imagenet_mae.yaml", ["decoder={depth: 1, width: 128, heads: 4}"]),
    "SimMIM": ("tiny_imagenet_simmim.yaml", []),
}
SAME_IMAGES = ["data.crop=resized", "data.crop_area=[0.4, 1.0]", "data.flip=true", "data.jitter=null"]
# Keys of the attentive probe. It has outputs for the classes that occur alone: of ImageNet's labels a subset has few.
PROBE = ["probe_layers=last", "num_classes=present"]
CONFIGS = Path(__file__).parents[1] / "configs"
MEASURES = ("nearest neighbors", "linear probe", "attentive probe")


def encoder_objectives(
    data: Annotated[str, typer.Option(help="Images with labels, as data.source of a recipe.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Of BEiT's targets: its last token map has a token a patch.")
    ] = None,
    tflop: Annotated[float, typer.Option(help="Products of each training run.", min=0)] = 8.0,
    seed: Annotated[list[int] | None, typer.Option(help="Of the runs; 0 and 1 if none is given.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.", min=1)] = 32,
    patch_size: Annotated[int, typer.Option(help="Side of the patches in pixels.", min=1)] = 4,
    width: Annotated[int, typer.Option(help="Of the encoder.", min=1)] = 64,
    depth: Annotated[int, typer.Option(help="Blocks of the encoder.", min=1)] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads of a block.", min=1)] = 2,
    probe_steps: Annotated[int, typer.Option(help="Steps of the attentive probe.", min=1)] = 400,
    only: Annotated[
        list[str] | None, typer.Option(help="An objective; several times for several. All if none.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/encoder_objectives"),
    figure: Annotated[Path | None, typer.Option(help="PNG of the accuracies.")] = None,
) -> None:
    """Print a table of what the features of each objective are worth."""
    if unknown := set(only or ()) - OBJECTIVES.keys():
        raise InputError(f"--only {min(unknown)!r} is no objective: take one of {', '.join(map(repr, OBJECTIVES))}")
    if tokenizer is None and "BEiT" in (only or OBJECTIVES):
        raise InputError("BEiT predicts tokens: give --tokenizer, such as var-mini, or leave it out by --only")
    chosen = {name: OBJECTIVES[name] for name in only or OBJECTIVES}
    chosen_sizes = {"image_size": image_size, "patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
    sizes = [f"model.{key}={value}" for key, value in chosen_sizes.items()]
    runs = {}
    for number, (name, (recipe, changes)) in product(seed or (0, 1), chosen.items()):
        given = [f"data.source={data}", fast_precision(), *SAME_IMAGES, *sizes, *changes, f"seed={number}"]
        given += [f"tokenizer={tokenizer}"] if name == "BEiT" else []
        given += [f"mask_size={2 * patch_size}"] if name == "SimMIM" else []
        load_recipe(CONFIGS / recipe, given)  # raises before hours of training
        runs[name, number] = (CONFIGS / recipe, given)
    steps_for(tflop, flops=1e9)

    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (UNTRAINED, *chosen)}
    for (name, number), (file, given) in runs.items():
        folder = out / f"{name.replace(', ', '-')}-{number}"
        way = [*given, f"tflop={tflop}", f"probe_steps={probe_steps}", *PROBE]
        train_encoder = partial(train_and_judge, file, given, folder, data, tflop, probe_steps)
        results[name].append(measure_once(folder, way, train_encoder))
    encoder = load_recipe(CONFIGS / "tiny_imagenet_aim.yaml", sizes).model  # type: ignore[attr-defined]  # an AIMRecipe
    way = [f"data.source={data}", *sizes, f"probe_steps={probe_steps}", *PROBE]
    measure = partial(_measure_features, UNTRAINED, encoder, out / UNTRAINED, data, 0, probe_steps)
    results[UNTRAINED].append(measure_once(out / UNTRAINED, way, measure))
    typer.echo("\n".join(in_columns([HEADER, *(row(name, found) for name, found in results.items())])))
    if figure is not None:
        _draw(figure, results)


def fast_precision() -> str:
    """Return the recipe's key for the type that this machine is fast at: named, as a result depends on it."""
    return f"precision={str(choose_dtype('auto', choose_device())).removeprefix('torch.')}"


def measure_once(folder: Path, way: list[str], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, and keep the result in the folder; what was measured before in the same way is read from there.

    Args:
        way: all options that the result depends on, kept beside it.

    Raises InputError: the folder has a result of other options.
    """
    done = folder / "result.json"
    if done.exists():
        known = dict(json.loads(done.read_text()))
        if known.pop("way") != way:
            raise InputError(f"{folder} was measured with other options: give another --out")
        return known
    result = measure()
    with atomic_write(done) as beside:
        beside.write_text(json.dumps(result | {"way": way}, indent=2) + "\n")
    return result


def steps_for(tflop: float, flops: float) -> int:
    """Return the number of steps of `flops` each that take about `tflop` together; at least one.

    Raises InputError: more steps than anyone trains.
    """
    if tflop * 1e12 > NEVER * flops:
        raise InputError(f"--tflop {tflop:g} is more than {NEVER:,} steps: give what a run can take")
    return max(1, round(tflop * 1e12 / flops))


def train_and_judge(
    recipe: Path, given: list[str], folder: Path, data: str, tflop: float, probe_steps: int, points: int = 1
) -> dict[str, Any]:
    """Train at that cost, validating about so many times, and judge the features.

    Args:
        recipe: file of the objective's recipe; `given` are keys that replace some of its own.
        folder: of the run, the features and the probe.
        tflop: products of the training, at least one step's.
        points: validations during the training.

    Returns:
        MEASURES as shares of the validation images, and numbers of the training: those of HEADER.

    Raises InputError: a recipe or data that cannot work, more steps than anyone trains. SystemExit: a signal
    stopped the run, which was saved and is not measured: the same command goes on with it.
    """
    given = [*given, "epochs=null", f"output={folder / 'run'}", f"sample_every={NEVER}"]
    flops = estimate(load_recipe(recipe, [*given, "steps=1"])).flops
    steps = steps_for(tflop, flops)
    validated = math.ceil(steps / points)
    loaded = load_recipe(recipe, [*given, f"steps={steps}", f"validate_every={validated}", f"checkpoint_every={steps}"])
    train(loaded)
    lines = read_metrics(loaded.output)
    speeds = [line["images_per_second"] for line in lines if line["split"] == "train"]
    encoder, seed = loaded.model, loaded.seed  # type: ignore[attr-defined]  # recipes of encoders have one
    found = _measure_features(str(loaded.output / "model"), encoder, folder, data, seed, probe_steps)
    return found | {
        "steps": steps,
        "gflop a step": flops / 1e9,
        "images": steps * loaded.batch_size,
        "seconds": steps * loaded.batch_size / statistics.median(speeds),
        "validation loss": [line["loss"] for line in lines if line["split"] == "validation"][-1],
    }


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the numbers that a run logged."""
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


def _measure_features(
    model: str, encoder: EncoderConfig, folder: Path, data: str, seed: int, probe_steps: int
) -> dict[str, Any]:
    """Return top-1 on the validation images by three classifiers of the last blocks' features."""
    began = time.perf_counter()
    source = open_source(model, encoder if model == UNTRAINED else None)
    tables = []
    for split in ("train", "validation"):
        path = folder / f"{split}.parquet"
        write_features(source, list_split(data, split), path, model, "last", batch=128)
        tables.append(read_features(path))
    given = [f"model={model}", f"data.source={data}", f"output={folder / 'probe'}", f"seed={seed}", *PROBE]
    given += [f"sizes.{name}={value}" for name, value in encoder.to_dict().items()]
    given += [f"steps={probe_steps}", f"validate_every={probe_steps}", f"sample_every={NEVER}"]
    probe = load_recipe(CONFIGS / "tiny_imagenet_probe.yaml", given)
    train(probe)
    (scored,) = json.loads((probe.output / "model" / SCORES).read_text())["probes"]
    top1 = (nearest_neighbors(*tables).top1, linear(*tables).accuracy.top1, scored["top1"])
    return dict(zip(MEASURES, top1, strict=True)) | {"seconds of measuring": time.perf_counter() - began}


HEADER = ("objective", "steps", "GFLOP a step", "images", "seconds", "validation loss", *MEASURES)


def row(name: str, results: list[dict[str, Any]]) -> tuple[str, ...]:
    """Means over the seeds, and the accuracies of each seed."""
    first = results[0]
    cost = [f"{first[key]:.4g}" if key in first else "" for key in ("steps", "gflop a step", "images")]
    means = [
        f"{statistics.mean(result[key] for result in results):.4g}" if key in first else ""
        for key in ("seconds", "validation loss")
    ]
    accuracies = [" / ".join(f"{result[measure]:.1%}" for result in results) for measure in MEASURES]
    return (name, *cost, *means, *accuracies)


def _draw(file: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """Draw bars of the means over the seeds, a point for each seed, and lines at the untrained encoder's accuracies."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panel = figure.subplots()
    trained = {name: found for name, found in results.items() if name != UNTRAINED}
    width = 0.8 / len(trained)
    for i, (name, found) in enumerate(trained.items()):
        places = [j + (i + 0.5) * width - 0.4 for j in range(len(MEASURES))]
        scores = [[100 * result[measure] for result in found] for measure in MEASURES]
        panel.bar(places, [statistics.mean(each) for each in scores], width * 0.9, label=name)
        for place, each in zip(places, scores, strict=True):
            panel.plot([place] * len(each), each, ".", color="black", markersize=5)
    untrained = [100 * results[UNTRAINED][0][measure] for measure in MEASURES]
    starts = [j - 0.4 for j in range(len(MEASURES))]
    panel.hlines(untrained, starts, [each + 0.8 for each in starts], color="black", linestyle="--", label=UNTRAINED)
    panel.set_xticks(range(len(MEASURES)), MEASURES)
    panel.set_ylabel("top-1, %")
    figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, file)


def save_figure(figure: Figure, file: Path) -> None:
    """Write the figure as PNG."""
    with atomic_write(file) as beside:
        figure.savefig(beside, format="png", dpi=130)


if __name__ == "__main__":
    run(encoder_objectives)
