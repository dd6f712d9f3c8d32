"""The command that generates images: `python sample.py 207 "king penguin"`."""

import time
from pathlib import Path

import typer

from var.cli import options
from var.cli.options import ModelOptions, SamplingOptions, ScaleOptions, collect_options
from var.cli.progress import stopping
from var.cli.run import run

MIX = 8  # classes sampled when none is given
LISTED = 20  # files that are listed, at most


def main() -> None:
    """Entry point of sample.py."""
    run(sample)


def sample(
    named: options.PositionalClasses = None,
    classes: options.Classes = None,
    num: options.NumPerClass = 4,
    out: options.SampleFolder = Path("samples"),
    scales: options.Intermediates = False,
    *,
    model: ModelOptions,
    sampling: SamplingOptions,
    drawn: ScaleOptions,
) -> None:
    """Generate images scale by scale, coarse to fine, and save each as PNG when it is there, and a grid.

    Examples:
      var sample 207 "king penguin" --num 8
      var sample --model var-d16 --cfg 2 --top-k 600 --scales
      var sample --model var-d16 --cfg-scales 0:7 --refiner var-d30 --refine-from 8
    """
    began = time.perf_counter()
    from var.hub.refiner import check_refiner_options
    from var.pipeline import VARPipeline
    from var.sampling.image_folder import GRID, ImageFolder, count_replaced
    from var.utils.classes import spread
    from var.utils.paths import check_writable
    from var.utils.progress import live_bar
    from var.utils.text import plural

    check_writable(out)
    check_refiner_options(drawn.refiner, drawn.refine_from)
    given = [*(named or ()), *(classes or ())]
    options.check_names(given, model.model)
    pipe = VARPipeline.from_pretrained(model.model, device=model.device, dtype=model.dtype).pack()
    labels: list[int | str] = [*options.read_classes(given, pipe)] or [*spread(pipe.known_labels(), MIX)]
    rows = [label for label in map(pipe.label, labels) for _ in range(num)]
    loaded = time.perf_counter()
    if replaced := count_replaced(out, rows):
        kept = "it" if replaced == 1 else "them"
        typer.echo(f"{plural(replaced, 'image')} in {out} will be replaced; another --out keeps {kept}", err=True)
    written, folder = [], ImageFolder(out, rows)
    with stopping(lambda: f"{folder.count} of {len(rows)} images are in {out}"):
        try:
            with live_bar() as progress:
                keywords = collect_options(sampling, drawn, intermediates=scales, progress=progress)
                for batch in pipe.batches(labels, num, **keywords):
                    stages = batch.intermediates or [[]] * len(batch.images)
                    for image in zip(batch.labels, batch.indices, batch.images, stages, strict=True):
                        written += folder.add(*image)
        finally:  # also of what there is when it is stopped
            written += folder.finish()
    seconds = time.perf_counter() - loaded
    if len(written) <= LISTED:
        for path in written:
            typer.echo(path)
    else:
        typer.echo(f"{len(rows):,} images in {out}; {GRID} shows {describe_share(folder.shown, len(rows))}")
    typer.echo(f"{plural(len(rows), 'image')} in {seconds:.1f} s, model loaded in {loaded - began:.1f} s")


def describe_share(part: int, total: int) -> str:
    """`them all`, or `64 of them`."""
    return "them all" if part == total else f"{part} of them"
