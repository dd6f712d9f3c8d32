"""Command that scores images: `var evaluate score --images DIR|NPZ --reference DIR|NPZ|STATS`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tokenizer.errors import InputError, abbreviate, one_line
from var.cli.evaluation import options
from var.cli.evaluation.results import finish
from var.cli.options import Batch, Device, JsonFile, whole_numbers
from var.cli.progress import progress_bar
from var.utils.json_text import parse_json

if TYPE_CHECKING:
    from var.evaluation.metrics.score import Report


def score(
    images: options.Images,
    reference: options.Reference,
    extractor: options.Extractor = "inception-v3-compat",
    weights: options.ExtractorWeights = None,
    among: options.Among = None,
    batch: Batch = 32,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Print FID, sFID, Inception Score, precision, recall, KID and class accuracy, with their definitions.

    Examples:
      var evaluate score --images samples --reference reference.npz
      var evaluate score --images samples.npz --reference photos --extractor efficientnet-lite0 --json score.json
    """
    from var.evaluation.metrics.extractors import open_extractor
    from var.evaluation.metrics.reference import open_reference
    from var.evaluation.metrics.score import score as measure
    from var.evaluation.samples.image_sets import open_image_set
    from var.utils.paths import check_target

    if json_file is not None:
        check_target(json_file, "score.json", [images, reference, weights])
    choices = None if among is None else read_labels(among)
    for option, path in (("--images", images), ("--reference", reference)):
        if not path.exists():  # before weights are loaded, perhaps downloaded
            raise InputError(f"{option} {path} does not exist: give a folder of images or an .npz")
    found = open_image_set(images)
    network = open_extractor(extractor, weights, device)
    against = open_reference(reference, network)
    with progress_bar("processed") as progress:

        def show(done: int, total: int) -> None:
            progress(done, total)
            if done == total:
                typer.echo("computing distances ...", err=True)

        report = measure(found, against, network, batch, show, choices)
    finish(format_table(report), report.warnings, report.to_dict(), json_file)


def read_labels(text: str) -> list[int] | None:
    """Parse `1,145`, or read the keys of a JSON file, as labels."""
    if not text.endswith(".json"):
        return whole_numbers(text, f"--among {abbreviate(text)} must be labels such as 1,145")
    try:
        return [int(label) for label in parse_json(Path(text).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--among {text} must hold an object whose keys are labels: {one_line(error)}") from error


def format_table(report: "Report") -> list[str]:
    """Return images, reference and extractor as lines of text, then a line for every number."""
    extractor, images, reference = report.extractor, report.images, report.reference
    lines = [
        f"images     {images['path']}: {images['count']} images ({images['kind']})",
        f"reference  {reference['path']} ({reference['kind']})",
        f"extractor  {extractor['name']} of {extractor['library']}, weights {extractor['weights']}",
        f"           images resized to {extractor['side']} px: {extractor['resize']}; {extractor['dtype']}",
        "",
    ]
    width = max(len(number.title) for number in report.numbers.values())
    for number in report.numbers.values():
        against = "" if number.reference is None else f" against {number.reference}"
        how = f"{number.library}; {number.num_images} images{against}; {number.definition}"
        lines.append(f"{number.title:<{width}} {number.value:12.6g}   {how}")
    return lines
