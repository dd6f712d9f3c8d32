"""The command that keeps features of images: `var features FOLDER --model MODEL --out FILE`."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tokenizer.errors import InputError
from var.cli.edit import AUTO, Device, Dtype
from var.cli.tokenize import progress_bar, stopping


def features(
    source: Annotated[str, typer.Argument(help="Folder with images at any depth; see --split.", metavar="FOLDER")],
    model: Annotated[
        str, typer.Option(help="aim-600M, aim-1B, aim-3B, aim-7B, or the folder of an encoder, with or without probe.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file: path, label, class_name, feature.")],
    layers: Annotated[
        str,
        typer.Option(
            help="Blocks whose outputs are averaged: last (the last six), best (the paper's choice for its sizes), or "
            "a list such as 0,3,5, counted from 0."
        ),
    ] = "last",
    pool: Annotated[
        Literal["mean", "none"], typer.Option(help="mean: one vector an image. none: all its patches, row by row.")
    ] = "mean",
    split: Annotated[
        Literal["train", "validation"] | None,
        typer.Option(
            help="Read FOLDER as data.source of a recipe is read: a folder with train and val, or with train*.parquet "
            "and validation*.parquet, or a hub dataset."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 32,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
) -> None:
    """Write the features of all images of FOLDER. Run it again to go on where it stopped."""
    blocks = blocks_of(layers)
    from var.features.extract import check_target, open_encoder, write_features
    from var.features.pictures import folder_pictures, split_pictures

    check_target(out)
    pictures = folder_pictures(Path(source)) if split is None else split_pictures(source, split)
    encoder = open_encoder(model, device, dtype)
    tell = partial(typer.echo, err=True)
    began = time.perf_counter()
    with stopping(speaks=True), progress_bar(1, True) as progress:
        done = write_features(encoder, pictures, out, model, blocks, pool, batch, progress, tell)
    rate = done.computed / (time.perf_counter() - began)
    now = f"{done.computed} images now, {rate:.1f} images/s" if done.computed else "all of them there already"
    unreadable = f"; {done.unreadable} images could not be read" if done.unreadable else ""
    labels = f"{done.classes} classes" if done.classes else "no labels"
    typer.echo(f"features: {out} holds {done.features} of {done.length} numbers, {labels}, {now}{unreadable}")


def blocks_of(layers: str) -> str | list[int]:
    """`best`, `last`, or `0,3,5` -> numbers."""
    if layers in ("best", "last"):
        return layers
    try:
        return [int(layer) for layer in layers.split(",")]
    except ValueError as error:
        raise InputError(f"--layers {layers!r} must be last, best, or blocks such as 0,3,5") from error
