"""What the commands share that measure on images: labels, progress, and how results are printed and written."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from var.cli.evaluation.options import DataOptions
from var.cli.options import whole_numbers
from var.cli.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from var.data.dataset import ImageDataset
    from var.evaluation.metrics.stats import MeanStderr


def labels_of(classes: str | None, option: str = "--classes") -> list[int] | None:
    """`1,145` -> numbers."""
    return None if classes is None else whole_numbers(classes, f"{option} {classes!r} must be labels such as 1,145")


def read_batches(dataset: "ImageDataset", data: DataOptions, done_word: str) -> "Iterator[tuple[Tensor, list[int]]]":
    """Images and labels, while a progress bar shows how many were worked on."""
    from var.evaluation.data import count_requested, image_batches

    done, total = 0, count_requested(dataset, data.num)
    with progress_bar(done_word) as progress:
        for batch in image_batches(dataset, data.batch, data.num):
            yield batch
            done += len(batch[1])
            progress(done, total)


def data_entry(dataset: "ImageDataset", data: DataOptions, read: int, choice: str) -> dict[str, Any]:
    """Which images were measured on, for a file: how many could be read, and in words how their classes were chosen."""
    from var.evaluation.data import count_requested

    return {
        "source": dataset.config.source,
        "split": data.split,
        "classes": choice,
        "images": read,
        "unreadable": count_requested(dataset, data.num) - read,
        "in_split": len(dataset),
        "crop": f"short side to {dataset.short_side} px (Lanczos), center {dataset.side}x{dataset.side}",
    }


def heading(results: Mapping[str, Any]) -> list[str]:
    """Model, data and versions in lines, for the eye."""
    model, data = results["model"], results["data"]
    unreadable = f"; {data['unreadable']} could not be read" if data["unreadable"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    return [
        f"model      {model['name']}: {model['parts']}; weights sha256:{model['weights'][:16]}",
        f"           {model['dtype']}, on {model['device']}",
        f"data       {data['source']}, {data['split']}: {data['images']} images of {data['in_split']}{unreadable}",
        f"           {data['classes']}; {data['crop']}",
        f"versions   {versions}",
    ]


def millions(network: Any) -> str:
    """`3.3 M parameters`."""
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} M parameters"


def spread(value: "MeanStderr", form: str, factor: float = 1) -> str:
    """A mean with its standard error."""
    mean = format(value.mean * factor, form)
    return mean if value.error is None else f"{mean} ± {format(value.error * factor, form)}"


def finish(lines: Iterable[str], warnings: Iterable[str], results: Mapping[str, Any], json_file: Path | None) -> None:
    """Print a table and warnings, and write the results."""
    from var.utils.files import atomic_write

    typer.echo("\n".join(lines))
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps({**results, "warnings": list(warnings)}, indent=2) + "\n")
