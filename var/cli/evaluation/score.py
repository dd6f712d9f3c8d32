"""The command that measures images: `var evaluate score --images DIR|NPZ --reference DIR|NPZ|STATS`."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.errors import InputError, one_line
from var.cli.evaluation import options
from var.cli.evaluation.results import finish, labels_of
from var.cli.options import Batch, Device, JsonFile
from var.cli.progress import progress_bar

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
    """Print FID, sFID, Inception Score, precision, recall, KID and class accuracy, and how each was made.

    Examples:
      var evaluate score --images samples --reference reference.npz
      var evaluate score --images samples.npz --reference photos --extractor efficientnet-lite0 --json score.json
    """
    from var.evaluation.metrics.extractors import open_extractor
    from var.evaluation.metrics.reference import open_reference
    from var.evaluation.metrics.score import score as measure
    from var.evaluation.samples.image_sets import open_image_set
    from var.utils.files import check_target

    if json_file is not None:
        check_target(json_file, "score.json", [images, reference, weights])
    choices = None if among is None else labels_among(among)
    found = open_image_set(images)
    if not reference.exists():  # before weights are loaded, perhaps downloaded
        raise InputError(f"--reference {reference} does not exist: give a folder or an .npz")
    network = open_extractor(extractor, weights, device)
    against = open_reference(reference, network)
    with progress_bar("looked at") as progress:
        report = measure(found, against, network, batch, progress, choices)
    finish(table(report), report.warnings, report.as_json(), json_file)


def labels_among(text: str) -> list[int] | None:
    """`1,145`, or a JSON file whose keys are labels -> the labels."""
    import json

    if not text.endswith(".json"):
        return labels_of(text, "--among")
    try:
        return [int(label) for label in json.loads(Path(text).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--among {text} must hold an object whose keys are labels: {one_line(error)}") from error


def table(report: "Report") -> list[str]:
    """For the eye: what was measured with what, then a line for every number."""
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
        how = f"{number.library}; {number.pictures} images{against}; {number.definition}"
        lines.append(f"{number.title:<{width}} {number.value:12.6g}   {how}")
    return lines
