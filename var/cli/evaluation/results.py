"""Shared parts of the commands that measure on images: labels, progress, printing and writing of results."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tokenizer.errors import InputError, abbreviate
from var.cli.evaluation.options import DataOptions
from var.cli.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from var.data.dataset import ImageDataset
    from var.evaluation.metrics.stats import MeanStderr


def parse_classes(text: str | None) -> list[str] | None:
    """Parse `1,lemon` into labels and names of classes, which the data tells apart."""
    if text is None:
        return None
    classes = [part.strip() for part in text.split(",")]
    if not all(classes):
        raise InputError(f"--classes {abbreviate(text)} must be labels or names of classes, such as 1,lemon")
    return classes


def read_batches(dataset: "ImageDataset", data: DataOptions, done_word: str) -> "Iterator[tuple[Tensor, list[int]]]":
    """Yield batches of images and labels, with a progress bar."""
    from var.evaluation.data import count_requested, image_batches

    done, total = 0, count_requested(dataset, data.num)
    with progress_bar(done_word) as progress:
        for batch in image_batches(dataset, data.batch, data.num):
            yield batch
            done += len(batch[1])
            progress(done, total)


def data_entry(dataset: "ImageDataset", data: DataOptions, read: int, choice: str) -> dict[str, Any]:
    """Return the JSON entry of the data: `read` is the number of images read, `choice` describes the classes."""
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
    """Return model, data and versions as lines of text."""
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


def format_size(network: Any) -> str:
    """Return the number of weights, as `3.3 M parameters`, whether they are parameters, in int8 or packed."""
    from var.models.int8 import Int8Linear
    from var.models.packed import PackedLinear

    others = [layer for layer in network.modules() if isinstance(layer, Int8Linear | PackedLinear)]
    count = sum(part.numel() for part in network.parameters()) + sum(layer.numel for layer in others)
    return f"{count / 1e6:.1f} M parameters"


def format_mean(value: "MeanStderr", form: str, factor: float = 1) -> str:
    """Format a mean with its standard error."""
    mean = format(value.mean * factor, form)
    return mean if value.error is None else f"{mean} ± {format(value.error * factor, form)}"


def finish(lines: Iterable[str], warnings: Sequence[str], results: Mapping[str, Any], json_file: Path | None) -> None:
    """Write the results, then print the table and the warnings."""
    from var.utils.files import atomic_write

    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps({**results, "warnings": list(warnings)}, indent=2) + "\n")
    typer.echo("\n".join(lines))
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
