"""The command that names the classes of images: `var classify IMAGE [IMAGE ...]`."""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tokenizer.errors import InputError
from var.cli import classify_options, options
from var.cli.run import in_columns

if TYPE_CHECKING:
    from PIL import Image

    from var.sampling.output import ClassScore


def classify(
    images: classify_options.ImageFiles,
    model: classify_options.ClassifierModel = "var-mini",
    by: classify_options.By = None,
    classes: classify_options.Candidates = None,
    top: classify_options.Top = 5,
    scales: classify_options.ByScale = False,
    keep: classify_options.Keep = None,
    rows: classify_options.Rows = 64,
    device: options.Device = "auto",
    dtype: options.VARDtype = "auto",
    json_file: options.JsonFile = None,
) -> None:
    """Print the most probable classes of each IMAGE: by the likelihood of its tokens, or by a probe.

    Examples:
      var classify photo.jpg --scales
      var classify photo.jpg other.jpg --model var-d16 --keep 3:25%,5:8 --top 3
      var classify photo.jpg --model aim-600M --json classes.json
    """
    for file in images:
        if file.is_dir():
            raise InputError(
                f"{file} is a folder: give images, or measure on a folder by var evaluate classification --data "
                f"{shlex.quote(str(file))}"
            )
        if not file.exists():  # before a model is loaded, perhaps downloaded
            raise InputError(f"image {file} does not exist: give the path of an image")
    began = time.perf_counter()
    from var.evaluation.image_probe import choose_by, classify_by_probe, load_image_probe
    from var.evaluation.likelihood import load_pipeline
    from var.sampling.class_likelihood import Pruning
    from var.utils.files import atomic_write
    from var.utils.paths import check_target
    from var.utils.provenance import versions
    from var.utils.text import as_unicode, plural

    pruning = None if keep is None else Pruning.parse(keep, "--keep")
    if json_file is not None:
        check_target(json_file, "classes.json", [*images, model])
    chosen = choose_by(model, by)
    if chosen == "likelihood":
        pipe = load_pipeline(model, device, dtype)
        scale_names = [f"{side}x{side}" for side in pipe.model.scales.sides]
        loaded = time.perf_counter()
        ranked = pipe.classify(read_images(images), classes, pruning, rows, progress=True)
        scored, score_name = "log-likelihood in nats", "log_likelihood"
    else:
        for option, given in (("--class", classes), ("--keep", keep), ("--scales", scales)):
            if given:
                raise InputError(f"{option} is of --by likelihood, and {model} classifies by its probe: leave it out")
        probe, scale_names = load_image_probe(model, device, dtype), []
        loaded = time.perf_counter()
        ranked = classify_by_probe(probe, read_images(images))
        scored, score_name = "logit of the probe", "logit"
    seconds = time.perf_counter() - loaded
    if json_file is not None:
        entries = [
            {
                "image": as_unicode(str(file)),
                "classes": [to_dict(each, score_name, scale_names) for each in found[:top]],
            }
            for file, found in zip(images, ranked, strict=True)
        ]
        settings = {"model": model, "by": chosen, "keep": keep, "num_classes": len(ranked[0])}
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps({**settings, "images": entries, "versions": versions()}, indent=2) + "\n")
    for file, found in zip(images, ranked, strict=True):
        typer.echo("\n".join([str(file), *format_classes(found[:top], scale_names, scales), ""]))
    for line in classify_options.format_idle_steps(pruning, len(scale_names), len(ranked[0])):
        typer.echo(line)
    typer.echo(f"{plural(len(ranked[0]), 'class', 'es')} compared; difference: {scored} minus that of the best class")
    typer.echo(f"{plural(len(images), 'image')} in {seconds:.1f} s, model loaded in {loaded - began:.1f} s")


def read_images(files: Sequence[Path]) -> "Iterator[Image.Image]":
    """Read images one after the other. Raises InputError for one that cannot be read."""
    from var.utils.images import open_image

    return map(open_image, files)


def to_dict(found: "ClassScore", score_name: str, scale_names: Sequence[str]) -> dict[str, Any]:
    """Return the entry of a class for the JSON file; posterior and score are null if pruning left the class out."""
    entry = {"label": found.label, "name": found.name, "posterior": found.posterior, score_name: found.score}
    by_scale = dict(zip(scale_names, found.by_scale, strict=False))  # fewer where it was left out
    return {**entry, "scales": by_scale} if by_scale else entry


def format_classes(ranked: "Sequence[ClassScore]", scale_names: Sequence[str], scales: bool) -> list[str]:
    """Return a row for each class: label, name, posterior, and how far its score is from the first one's."""
    best = ranked[0]
    rows = [("label", "class", "posterior", "difference", *(scale_names if scales else ()))]
    for found in ranked:
        if found.score is None or best.score is None:
            difference = f"left out after {scale_names[len(found.by_scale) - 1]}"
        else:
            difference = f"{found.score - best.score:.2f}"
        parts = [f"{ours - theirs:.2f}" for ours, theirs in zip(found.by_scale, best.by_scale, strict=False)]
        parts += [""] * (len(scale_names) - len(parts))
        posterior = "" if found.posterior is None else f"{found.posterior:.4f}"
        rows.append((str(found.label), found.name, posterior, difference, *(parts if scales else ())))
    return in_columns(rows)
