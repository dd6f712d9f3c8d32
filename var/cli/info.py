"""Commands that say what there is: `var info` of the machine, `var models` of the models."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from var.cli import options
from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.hub.catalog import Entry


def info(device: options.Device = "auto", dtype: options.VARDtype = "auto") -> None:
    """Print versions, the device and dtype that are chosen and why, threads and the cache.

    Examples:
      var info
      var info --device cpu --dtype bfloat16
    """
    import os

    import torch

    from var.utils.device import VAR_DTYPES, choose_device, choose_dtype, has_fast_bfloat16
    from var.utils.paths import cache_folder
    from var.utils.provenance import device_name, versions
    from var.utils.version import version

    target = choose_device(device)
    chosen = str(choose_dtype(dtype, target, VAR_DTYPES)).removeprefix("torch.")
    fast = "has" if has_fast_bfloat16(target) else "has no"
    why = f"{target.type} {fast} fast bfloat16" if dtype == "auto" else "as given"
    packages = ("torchvision", "numpy", "pillow", "accelerate", "matplotlib", "gradio")
    cache = cache_folder()
    rows = [(name, number) for name, number in {**versions(), **{name: version(name) for name in packages}}.items()]
    rows = [(name, "not installed" if number == "unknown" and name in packages else number) for name, number in rows]
    rows += [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("device", f"{target}, {device_name(target)} ({'the best that there is' if device == 'auto' else 'as given'})"),
        ("dtype", f"{chosen} ({why})"),
        ("processor", torch.backends.cpu.get_cpu_capability()),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"),
        ("cache", f"{cache}, {folder_size(cache) / 2**20:,.1f} MiB"),
    ]
    for line in in_columns(rows):
        typer.echo(line)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def models(runs: options.RunsFolder = Path("runs")) -> None:
    """List the models that --model takes: shipped, released, those in the cache and in runs/.

    Examples:
      var models
      var models --runs experiments
    """
    from var.hub.catalog import list_models

    header = ("model", "from", "size", "images", "classes", "license")
    for line in in_columns([header, *map(_row, list_models(runs))]):
        typer.echo(line)


def _row(entry: "Entry") -> tuple[str, ...]:
    size = "" if entry.parameters is None else f"{entry.parameters / 1e6:,.1f} M"
    side = "" if entry.image_side is None else f"{entry.image_side} px"
    classes = "" if entry.num_classes is None else str(entry.num_classes)
    return entry.name, entry.origin, size, side, classes, entry.license
