"""The command that makes what images are compared with: `var evaluate reference SOURCE --out FILE.npz`."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from tokenizer.errors import InputError
from var.cli import options
from var.cli.evaluation.results import labels_of
from var.cli.progress import progress_bar

if TYPE_CHECKING:
    from var.evaluation.metrics.extractors import Extractor


def reference(
    source: options.ReferenceSource,
    out: options.ReferenceFile,
    split: options.ReferenceSplit = None,
    size: options.ReferenceSize = None,
    classes: options.Labels = None,
    num: options.MaxImages = None,
    extractor: options.MaybeExtractor = None,
    weights: options.ExtractorWeights = None,
    batch: options.Batch = 32,
    device: options.Device = "auto",
) -> None:
    """Write a reference: validation crops of a split in ADM's form, or the statistics of finished images.

    Examples:
      var evaluate reference imagenet --split validation --size 256 --out reference.npz
      var evaluate reference photos --extractor inception-v3-compat --out statistics.npz
    """
    labels = None if classes is None else labels_of(classes)
    if split is None:
        extra = {"--size": size, "--classes": classes, "--num": num}
        if any(value is not None for value in extra.values()):
            raise InputError(f"{', '.join(extra)} need --split: without it SOURCE is taken as it is")
        if extractor is None:
            raise InputError("give --extractor for the statistics of finished pictures, or --split for pictures")
    elif size is None or size < 1:
        given = "--split needs --size" if size is None else f"--size {size} is too small"
        raise InputError(f"{given}: give the side of the pictures in pixels, such as --size 256")
    if weights is not None and extractor is None:
        raise InputError(f"--weights {weights} needs --extractor, whose weights they are")
    from var.evaluation.metrics.extractors import open_extractor
    from var.utils.files import check_target

    check_target(out, "reference.npz", [source, weights])
    network = None if extractor is None else open_extractor(extractor, weights, device)
    if split is not None and size is not None:
        count = from_split(source, split, size, labels, num, network, batch, out)
        typer.echo(f"reference: {out} holds {count} pictures{statistics_of(network)}")
    elif network is not None:
        count = from_finished(Path(source), network, batch, out)
        typer.echo(f"reference: {out} holds no pictures{statistics_of(network)}, from {count} pictures")


def from_split(
    source: str,
    split: Literal["train", "validation"],
    size: int,
    labels: list[int] | None,
    num: int | None,
    network: "Extractor | None",
    batch: int,
    out: Path,
) -> int:
    """Write images of a split; return how many."""
    from var.evaluation.data import count_requested, image_batches, open_images
    from var.evaluation.metrics.reference import write_reference

    dataset = open_images(source, split, size, labels)
    total = count_requested(dataset, num)
    with progress_bar("looked at", "pictures", is_main_process=True) as progress:
        batches = image_batches(dataset, batch, num)
        return write_reference(batches, size, out, network, lambda done: progress(done, total))


def from_finished(source: Path, network: "Extractor", batch: int, out: Path) -> int:
    """Write the statistics of a folder's or file's images; return of how many."""
    from var.evaluation.metrics.reference import write_statistics
    from var.evaluation.samples.image_sets import open_image_set

    with progress_bar("looked at", "pictures", is_main_process=True) as progress:
        return write_statistics(open_image_set(source), network, out, batch, progress)


def statistics_of(network: "Extractor | None") -> str:
    """What the file has besides images, in words."""
    return "" if network is None else f" and statistics of {network.name}"
