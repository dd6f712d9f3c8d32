"""The curves of a run: what metrics.jsonl holds, against the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizer.errors import InputError, one_line
from var.utils.files import atomic_write
from var.utils.json_text import parse_json

METRICS, RECIPE = "metrics.jsonl", "recipe.yaml"  # of a run's output folder
COLUMNS = 3
MOST_PANELS = 12

Curve = tuple[list[int], list[float]]  # steps and values


def read_metrics(run: Path) -> dict[str, dict[str, Curve]]:
    """Return the curves by the name of the number, then by split.

    Raises InputError: no run's folder, or one without numbers so far.
    """
    file = run / METRICS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        if (run / RECIPE).exists():
            raise InputError(f"{run} has no numbers yet: wait for the first step that is logged") from error
        raise InputError(f"{run} is no run: it has no {METRICS}; give the output folder of a run") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): give the output folder of a run") from error
    curves: dict[str, dict[str, Curve]] = {}
    for line in lines:
        try:
            entry = parse_json(line)
            step, split = int(entry.pop("step")), str(entry.pop("split"))
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off by a kill
            continue
        for name, value in entry.items():
            if isinstance(value, int | float):
                steps, values = curves.setdefault(name, {}).setdefault(split, ([], []))
                steps.append(step)
                values.append(value)
    if not curves:
        raise InputError(f"{file} has no numbers yet: wait for the first step that is logged")
    return curves


def draw_curves(curves: Mapping[str, Mapping[str, Curve]], file: Path, title: str) -> None:
    """Draw a panel for each number that changes, training and validation in one; numbers of single scales are left out.

    Raises InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    names = _choose(curves)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4 * min(len(names), COLUMNS), 3 * rows), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, min(len(names), COLUMNS), i + 1)
        for split, (steps, values) in curves[name].items():
            axes.plot(steps, values, marker="o" if len(steps) < 20 else "", markersize=3, label=split)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        if len(curves[name]) > 1:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    with atomic_write(file) as beside:
        figure.savefig(beside, format=file.suffix[1:] or "png", dpi=120)


def is_of_whole(name: str) -> bool:
    """Return whether a number is of whole images, not of a scale or layer; lpips/... names its network."""
    return "/" not in name or name.startswith("lpips/")


def _choose(curves: Mapping[str, Mapping[str, Curve]]) -> Sequence[str]:
    """Return the numbers to draw: the loss first, what validation measures before the rest."""
    names = [name for name in curves if is_of_whole(name)] or list(curves)
    order = {name: (name != "loss", "validation" not in curves[name], i) for i, name in enumerate(names)}
    return sorted(names, key=order.__getitem__)[:MOST_PANELS]
