"""The command that measures speed: `var bench sample --model var-d16`."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from tokenizer.errors import LARGEST, abbreviate, check_whole_number
from var.cli import options
from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.bench.measure import Result

Works = Annotated[
    list[str],
    Argument(
        help="sample (guided, decoded), encode, decode, train (a step of the transformer from tokens), "
        "train-tokenizer (a step of the tokenizer); features (of an AIM); or all that the model does.",
        metavar="WORK...",
    ),
]
Model = Annotated[
    str,
    Option(
        help="var-d16 ... var-d36, var-mini, aim-600M ... aim-7B, aim-tiny, or a model folder: of its sizes, with "
        "random weights; nothing is downloaded for a name."
    ),
]
Batches = Annotated[str, Option(help="Images at once; several with commas, such as 1,4, are compared.")]
Dtypes = Annotated[str, Option(help="auto, float32, bfloat16, or int8 for sample; several with commas are compared.")]
Compile = Annotated[Literal["no", "yes", "both"], Option(help="Measure with torch.compile, without it, or compare.")]
Threads = Annotated[
    int | None, Option(callback=options.check_range("threads", 1, 1024), help="Of the CPU. Default: torch's.")
]
Repeats = Annotated[
    int, Option(callback=options.check_range("repeats", 1, 10**6), help="Times that are measured, after a warm-up.")
]

VARIANTS = {"no": (False,), "yes": (True,), "both": (False, True)}


def bench(
    works: Works,
    model: Model = "var-mini",
    batch: Batches = "1",
    dtype: Dtypes = "auto",
    device: options.Device = "auto",
    compile: Compile = "no",
    threads: Threads = None,
    repeats: Repeats = 5,
    json_file: options.JsonFile = None,
) -> None:
    """Measure time and memory of a model's works beside what the machine can do at best.

    The floor of a work is the time of its matrix products and convolutions at the speed of one large product and one
    large convolution, which are measured in turns with it.

    Examples:
      var bench sample --model var-d16 --batch 1,4
      var bench train --model var-d16 --batch 4 --compile both --json train.json
      var bench features --model aim-600M --dtype float32,bfloat16
    """
    refusal = f"--batch {abbreviate(batch)} must be a number of images, or several with commas, such as 1,4"
    batches = [check_whole_number("batch", number, 1, LARGEST) for number in options.whole_numbers(batch, refusal)]

    import torch

    from var.bench.measure import describe_machine, measure
    from var.bench.sizes import find_sizes
    from var.bench.works import Setting, check_work, works_of
    from var.utils.device import VAR_DTYPES, choose_device, choose_dtype
    from var.utils.files import atomic_write
    from var.utils.paths import check_target

    if json_file is not None:
        check_target(json_file, "bench.json")
    target = choose_device(device)
    dtypes = [choose_dtype(name.strip(), target, VAR_DTYPES) for name in dtype.split(",")]
    sizes = find_sizes(model)
    named = works_of(sizes) if "all" in works else list(dict.fromkeys(works))
    for work in named:
        check_work(work, sizes, dtypes, VARIANTS[compile])
    if threads is not None:
        torch.set_num_threads(threads)
    if target.type == "cuda":
        torch.cuda.set_device(target)

    machine = describe_machine(target)
    typer.echo(heading(model, machine))
    results: list[Result] = []
    for work in named:
        found: list[Result] = []
        for number in dtypes:
            settings = [Setting(size, number, target, way) for size in batches for way in VARIANTS[compile]]
            found += measure(work, sizes, settings, repeats)
        for line in table(found):
            typer.echo(line)
        results += found
    if json_file is not None:
        content = {"model": model, "machine": machine, "results": [result.to_dict() for result in results]}
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n")


def heading(model: str, machine: Mapping[str, Any]) -> str:
    """Return the line that says what was measured where."""
    flags = " ".join(machine["flags"]) or "none of the flags that matter"
    place = "" if machine["device"].startswith("cpu") else f"{machine['device']}, "
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{model}, random weights; {place}{machine['processor']} ({flags}), {threads}, torch {machine['torch']}"


def table(results: Sequence["Result"]) -> list[str]:
    """Return the lines of one work: the ceilings at each dtype, and a row for each setting."""
    from var.bench.ceilings import COPY
    from var.bench.measure import dtype_name

    speeds = {dtype_name(result.setting.dtype): result.ceilings for result in results}
    ceilings = [("ceiling", "dtype", "of", "median", "lowest to highest")]
    for dtype, found in speeds.items():
        for name, (size, speed) in found.items():
            unit = "GB/s" if name == COPY else "GFLOP/s"
            around = f"{speed.lowest / 1e9:.1f} to {speed.highest / 1e9:.1f}"
            ceilings.append((name, dtype, size, f"{speed.median / 1e9:.1f} {unit}", around))
    header = ("batch", "dtype", "compiled", "time", "lowest to highest", "images/s", "memory")
    counted = ("product GFLOP", "convolution GFLOP", "floor", "time / floor", "an image / first")
    rows = [(results[0].work, *header, *counted)]
    for result in results:
        setting, seconds, first = result.setting, result.seconds, results[0].images_per_second
        rows.append(
            (
                "",
                str(setting.batch),
                dtype_name(setting.dtype),
                "yes" if setting.compiled else "no",
                f"{seconds.median:.4g} s",
                f"{seconds.lowest:.4g} to {seconds.highest:.4g}",
                f"{result.images_per_second:.4g}",
                f"{result.peak_memory / 2**30:.2f} GiB",
                f"{(result.operations.products + result.operations.int8_products) / 1e9:.4g}",
                f"{result.operations.convolutions / 1e9:.4g}",
                f"{result.floor:.4g} s",
                f"{result.time_over_floor:.3f}",
                f"{first / result.images_per_second:.3f}",
            )
        )
    return ["", *in_columns(ceilings), "", *in_columns(rows)]
