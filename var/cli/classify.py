"""The command that classifies by features: `var classify TRAIN.parquet VALIDATION.parquet`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from var.features.classify import Accuracy, Regression
    from var.features.table import FeatureTable


def classify(
    train: Annotated[Path, typer.Argument(help="Features file of labelled training images.", metavar="TRAIN")],
    validation: Annotated[Path, typer.Argument(help="That of the images to be classified.", metavar="VALIDATION")],
    k: Annotated[int, typer.Option(help="Neighbours that vote.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the results there.", metavar="FILE")
    ] = None,
) -> None:
    """Classify by nearest neighbours and by logistic regression; the files are what `var features` wrote."""
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
