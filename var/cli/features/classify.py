"""The command that classifies by features: `var features classify TRAIN VALIDATION`."""

import json
from typing import TYPE_CHECKING, Any

import typer

from var.cli import options

if TYPE_CHECKING:
    from var.features.classify import Accuracy, Regression
    from var.features.table import FeatureTable


def classify(
    train: options.TrainFeatures,
    validation: options.ValidationFeatures,
    k: options.Neighbors = 20,
    json_file: options.JsonFile = None,
) -> None:
    """Classify by nearest neighbors and by logistic regression; the files are what `var features extract` wrote.

    Examples:
      var features classify train.parquet validation.parquet
      var features classify train.parquet validation.parquet --k 10 --json accuracy.json
    """
    from var.features.classify import check_comparable, linear, nearest_neighbors
    from var.features.table import read_features
    from var.utils.files import atomic_write, check_target

    if json_file is not None:
        check_target(json_file, "accuracy.json", [train, validation])
    known, asked = read_features(train), read_features(validation)
    check_comparable(known, asked)
    neighbours = nearest_neighbors(known, asked, k)
    typer.echo(heading(known, asked))
    typer.echo(line("k nearest neighbours", neighbours, f"k={k}, cosine"))
    regression = linear(known, asked)
    stopped = "" if regression.converged else ", not converged"
    typer.echo(line("logistic regression", regression.accuracy, f"C={regression.strength:g}{stopped}"))
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(results(known, asked, k, neighbours, regression), indent=2) + "\n")


def results(
    train: "FeatureTable", validation: "FeatureTable", k: int, neighbours: "Accuracy", regression: "Regression"
) -> dict[str, Any]:
    """What is written."""
    settings = train.settings
    return {
        "model": settings.model,
        "layers": settings.layers,
        "pool": settings.pool,
        "length": settings.length,
        "classes": len(set(train.labels.tolist())),
        "train": len(train.labels),
        "validation": len(validation.labels),
        "nearest_neighbours": {"k": k, **neighbours._asdict()},
        "linear": {
            **regression.accuracy._asdict(),
            "strength": regression.strength,
            "held_out": regression.held_out,
            "converged": regression.converged,
        },
    }


def heading(train: "FeatureTable", validation: "FeatureTable") -> str:
    """What was compared, for the eye."""
    settings, classes = train.settings, len(set(train.labels.tolist()))
    layers = ", ".join(map(str, settings.layers))
    return (
        f"{settings.model}, layers {layers}, {settings.length} numbers an image: {len(train.labels)} images of "
        f"{classes} classes in training, {len(validation.labels)} in validation"
    )


def line(name: str, accuracy: "Accuracy", how: str) -> str:
    """One row of the results."""
    return f"{name:<22} top-1 {accuracy.top1:7.2%}   top-5 {accuracy.top5:7.2%}   ({how})"
