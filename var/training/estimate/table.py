"""An estimate as a table for the terminal."""

import math
from typing import Any

import torch

from var.training.estimate.cost import SHARE_OF_PRODUCT, Estimate, Network
from var.utils.text import plural


def show(found: Estimate) -> Any:
    """Lay out the estimate as a table and notes, for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, show_header=False, pad_edge=False, title="dry run: nothing was written", title_justify="left"
    )
    for group in (_of_networks(found), _of_a_step(found), _of_memory(found), _of_the_run(found)):
        for name, value in group:
            table.add_row(Text(name), Text(value))
        table.add_row()
    return Group(table, *(Text(f"note: {note}") for note in found.notes))


Rows = list[tuple[str, str]]


def _of_networks(found: Estimate) -> Rows:
    return [
        (network.name, f"{amount(network.parameters)} parameters, {_describe_trained(network)}")
        for network in found.networks
    ]


def _describe_trained(network: Network) -> str:
    if 0 < network.trained < network.parameters:
        return f"trained ({amount(network.trained).strip()} of them)"
    return "trained" if network.trained else "frozen"


def _of_a_step(found: Estimate) -> Rows:
    rows = [
        ("a step", f"{found.images:,} images, {found.tokens:,} tokens"),
        ("  among", f"{plural(found.world_size, 'process', 'es')}, {plural(found.parts, 'part')} each"),
    ]
    for part in found.passes:
        share = "" if math.isclose(part.share, 1) else f", in {part.share:.0%} of the steps"
        rows.append((f"  {part.name}", f"{amount(part.flops)}FLOP in {_name(part.dtype)}{share}"))
    return [*rows, ("  the mean step", f"{amount(found.flops)}FLOP, forward and backward")]


def _of_memory(found: Estimate) -> Rows:
    names = ("weights", "gradients", "AdamW", "average of weights", "frozen networks", "activations")
    rows = [(f"  {name}", f"{amount(size)}B") for name, size in zip(names, found.memory, strict=True) if size]
    spread = ", parameters sharded" if found.sharded else ""
    whole = f"about {amount(found.memory.total)}B{spread}; passing buffers come on top"
    return [("memory of a process", whole), *rows]


def _of_the_run(found: Estimate) -> Rows:
    epochs = "" if found.epochs is None else f" ({found.epochs:.4g} epochs of {found.length:,} images)"
    rows = [("steps", "unknown" if found.steps is None else f"{found.steps:,}{epochs}")]
    if found.preparation:
        rows.append((f"{found.prepared}, once", f"{amount(found.preparation)}FLOP"))
    for dtype, speed in found.speeds.items():
        speed_there = f"{amount(speed)}FLOP/s, a matrix product in {_name(dtype)} on {found.device}"
        rows.append(("speed measured", speed_there))
    if found.seconds_a_step is not None:
        rows.append(("speed assumed", f"{SHARE_OF_PRODUCT:.0%} of that, on every process"))
        whole = "" if found.seconds is None else f"{duration(found.seconds)}, "
        rows.append(("time expected", f"{whole}{duration(found.seconds_a_step)} a step"))
    several = amount(found.checkpoint * found.checkpoints)
    kept = f"{amount(found.checkpoint)}B, at most {found.checkpoints} kept: {several}B"
    return [*rows, ("a checkpoint", kept)]


def amount(number: float) -> str:
    """Format with three digits and a prefix: 1234567 -> "1.23 M"."""
    prefixes = ("", *"kMGTPEZ")
    power = min(max(int(math.log10(number)) // 3, 0), len(prefixes) - 1) if number else 0
    return f"{number / 1000**power:.3g} {prefixes[power]}"


def duration(seconds: float) -> str:
    """Format with three digits in the largest unit of which there are at least two; below 2 s with two digits."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
