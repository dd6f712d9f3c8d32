"""Command that writes a reference for metrics: `var evaluate reference SOURCE --out FILE.npz`."""

from pathlib import Path

import typer

from tokenizer.errors import InputError
from var.cli.evaluation import options
from var.cli.evaluation.results import parse_classes
from var.cli.options import Batch, Device
from var.cli.progress import progress_bar


def reference(
    source: options.ReferenceSource,
    out: options.ReferenceFile,
    split: options.ReferenceSplit = None,
    size: options.ReferenceSize = None,
    classes: options.Labels = None,
    num: options.MaxImages = None,
    extractor: options.MaybeExtractor = None,
    weights: options.ExtractorWeights = None,
    batch: Batch = 32,
    device: Device = "auto",
) -> None:
    """Write a reference: validation crops of a split in ADM's form, or the statistics of finished images.

    Examples:
      var evaluate reference imagenet --split validation --size 256 --out reference.npz
      var evaluate reference photos --extractor inception-v3-compat --out statistics.npz
    """
    chosen_classes = parse_classes(classes)
    if split is None:
        extra = {"--size": size, "--classes": classes, "--num": num}
        if any(value is not None for value in extra.values()):
            raise InputError(f"{', '.join(extra)} need --split: without it all images of SOURCE are used as they are")
        if extractor is None:
            raise InputError("give --extractor for the statistics of finished images, or --split for images")
    elif size is None:
        raise InputError("--split needs --size: give the side of the images in pixels, such as --size 256")
    if weights is not None and extractor is None:
        raise InputError(f"--weights {weights} needs --extractor: name the network of these weights")
    from var.evaluation.data import count_requested, image_batches, open_images
    from var.evaluation.metrics.extractors import open_extractor
    from var.evaluation.metrics.reference import write_reference, write_statistics
    from var.evaluation.samples.image_sets import open_image_set
    from var.utils.paths import check_target

    check_target(out, "reference.npz", [source, weights])
    network = None if extractor is None else open_extractor(extractor, weights, device)
    statistics = "" if network is None else f" and statistics of {network.name}"
    with progress_bar("processed") as progress:
        if split is not None and size is not None:
            dataset = open_images(source, split, size, chosen_classes)
            total, batches = count_requested(dataset, num), image_batches(dataset, batch, num)
            count = write_reference(batches, size, out, network, lambda done: progress(done, total))
            content = f"{count} images{statistics}"
        elif network is not None:
            count = write_statistics(open_image_set(Path(source)), network, out, batch, progress)
            content = f"no images{statistics}, from {count} images"
    typer.echo(f"reference: {out} holds {content}")
