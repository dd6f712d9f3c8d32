"""The command that writes features of images: `var features extract FOLDER --model MODEL --out FILE`."""

import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tokenizer.errors import InputError
from var.cli import options
from var.cli.progress import progress_bar, stopping

if TYPE_CHECKING:
    from var.models.aim import EncoderConfig


def extract(
    source: options.ImageSource,
    model: options.FeatureModel,
    out: options.FeaturesFile,
    sizes: options.Sizes = None,
    layers: options.Layers = None,
    pool: options.Pool = "mean",
    split: options.FeatureSplit = None,
    batch: options.Batch = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Write the features of all images of FOLDER. Run the same command again to go on where it stopped.

    Examples:
      var features extract photos --model var-mini --out photos.parquet
      var features extract imagenet --split validation --model aim-600M --layers best --out validation.parquet
    """
    blocks = None if layers is None else blocks_of(layers)
    from var.features.extract import EXAMPLE, open_source, write_features
    from var.features.images import list_folder, list_split
    from var.utils.files import check_target

    check_target(out, EXAMPLE)
    pictures = list_folder(Path(source)) if split is None else list_split(source, split)
    found = open_source(model, None if sizes is None else read_sizes(sizes), device, dtype)
    tell = partial(typer.echo, err=True)
    began = time.perf_counter()
    with stopping(is_main_process=True), progress_bar("encoded", "images", is_main_process=True) as progress:
        done = write_features(found, pictures, out, model, blocks, pool, batch, progress, tell)
    rate = done.computed / (time.perf_counter() - began)
    now = f"{done.computed} images now, {rate:.1f} images/s" if done.computed else "all of them there already"
    unreadable = f"; {done.unreadable} images could not be read" if done.unreadable else ""
    labels = f"{done.classes} classes" if done.classes else "no labels"
    typer.echo(
        f"features: {out} holds {done.features} features, {done.length} numbers each, {labels}, {now}{unreadable}"
    )


def blocks_of(layers: str) -> str | list[int]:
    """`best`, `last`, or `0,3,5` -> numbers."""
    if layers in ("best", "last"):
        return layers
    try:
        return [int(layer) for layer in layers.split(",")]
    except ValueError as error:
        raise InputError(f"--layers {layers!r} must be last, best, or blocks such as 0,3,5") from error


def read_sizes(given: str) -> "EncoderConfig":
    """`aim-tiny`, `image_size=48,patch_size=8`, or a name and then single sizes -> sizes of an encoder."""
    from var.hub.presets import encoder_sizes
    from var.models.aim import EncoderConfig

    values: dict[str, str | float] = {}
    for i, part in enumerate(given.split(",")):
        name, equals, value = part.strip().partition("=")
        if not equals and i > 0:
            raise InputError(f"--sizes {given!r}: {part!r} must be a size, such as image_size=48")
        try:
            values[name if equals else "preset"] = (float if "." in value else int)(value) if equals else name
        except ValueError as error:
            raise InputError(f"--sizes {given!r}: {name}={value} must be a number") from error
    try:
        return EncoderConfig(**encoder_sizes(values))  # type: ignore[arg-type]  # it checks their types
    except TypeError as error:  # a name that it does not know
        known = ", ".join(field.name for field in fields(EncoderConfig))
        raise InputError(f"--sizes {given!r} holds a size that there is not: known are {known}") from error
    except InputError as error:
        raise InputError(f"--sizes {given!r}: {error}") from error
