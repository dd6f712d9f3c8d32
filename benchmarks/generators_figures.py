"""Figures of `benchmarks/generators.py`: loss curves, distances over the sizes, samples."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aim_claims import mean_curve
from encoder_objectives import save_figure
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from var.evaluation.samples.sample_folder import IMAGES
from var.utils.classes import spread
from var.utils.images import enlarge, image_grid, open_image, save_image

Results = dict[tuple[str, str], list[dict[str, Any]]]  # by generator and size, for each seed

COLUMNS, SHOWN_SIDE = 16, 64  # of samples, and the side of one in pixels
LOSSES = {
    "multi-scale": "cross-entropy, tokens of several scales",
    "single-scale": "cross-entropy, tokens of a single map",
    "KL": "squared error of the noise",
}


def best_cfg(results: Sequence[dict[str, Any]]) -> str:
    """Return the strength of guidance with the lowest Frechet distance, the mean over the seeds."""

    def distance(cfg: str) -> float:
        return statistics.mean(result["scores"][cfg]["Frechet distance"] for result in results)

    return min(results[0]["scores"], key=distance)


def draw_curves(file: Path, results: Results, tokenizers: Mapping[str, str]) -> None:
    """Draw losses of the last size over the cost, a panel for each kind of tokens, and distances over the sizes.

    Losses of tokens of different tokenizers say nothing about each other.

    Args:
        tokenizers: the kind of tokens, one of LOSSES, of every generator that there is: its place gives it its color.
    """
    last = list(results)[-1][1]
    colors = {name: f"C{i}" for i, name in enumerate(tokenizers)}
    shown = [key for key in results if key[1] == last]
    kinds = [kind for kind in LOSSES if kind in {tokenizers[name] for name, _ in shown}]
    figure = Figure(figsize=(3.8 * (len(kinds) + 1), 3.8), layout="constrained")
    *panels, distances = figure.subplots(1, len(kinds) + 1)
    for panel, kind in zip(panels, kinds, strict=True):
        for name, size in shown:
            if tokenizers[name] == kind:
                runs = results[name, size]
                cost = runs[0]["gflop a step"] / 1e3
                steps, training, validation = zip(*mean_curve([each["curve"] for each in runs]), strict=True)
                spent = [step * cost for step in steps]
                panel.plot(spent, training, "--", color=colors[name], alpha=0.6)
                panel.plot(spent, validation, ".-", color=colors[name])
        panel.set(xlabel="training cost, TFLOP", ylabel=LOSSES[kind], title=f"loss at {last}; dashed: training")
    for name in dict.fromkeys(name for name, _ in results):
        found = [each for key, each in results.items() if key[0] == name]
        best = [[result["scores"][best_cfg(each)]["Frechet distance"] for result in each] for each in found]
        millions = [each[0]["parameters"] / 1e6 for each in found]
        points = sorted(zip(millions, map(statistics.mean, best), strict=True))
        distances.plot(*zip(*points, strict=True), "o-", color=colors[name], label=name)
    distances.set(xscale="log", xlabel="million parameters", ylabel="Frechet distance", title="samples")
    distances.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    distances.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    distances.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=len(tokenizers), frameon=False)
    save_figure(figure, file)


def draw_samples(file: Path, folders: Sequence[Path]) -> None:
    """Save a row of samples for each folder of them, evenly spaced in the order of classes."""
    rows = [sorted((folder / IMAGES).iterdir()) for folder in folders]
    images = [enlarge(open_image(path), SHOWN_SIDE) for row in rows for path in spread(row, COLUMNS)]
    save_image(file, image_grid(images, min(COLUMNS, len(rows[0]))))
