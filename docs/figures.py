"""Figures of docs/concepts.md: `python docs/figures.py`, as `make figures` calls it.

K scales, V codebook size.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenizer.scales import Scales
from var import VARPipeline
from var.models.masks import block_causal, causal

OUT = Path(__file__).parent
CONCEPT, SEED = "red apple", 0


def draw_pyramid(pipe: VARPipeline, path: Path) -> None:
    """Draw an image of the model as its token maps, and what the tokenizer decodes from each with all coarser ones."""
    drawn = pipe(CONCEPT, seed=SEED, intermediates=True)
    assert drawn.intermediates is not None  # they were requested
    scales = pipe.vqvae.scales
    colors = _code_colors(pipe.vqvae.quantizer.codebook.weight.detach().float())
    figure = Figure(figsize=(1.5 * len(scales), 3.4), layout="constrained")
    rows = figure.subplots(2, len(scales))
    each = zip(scales.sides, scales.split(drawn.tokens), drawn.intermediates[0], strict=True)
    for k, (side, tokens, image) in enumerate(each):
        rows[0, k].imshow(colors[tokens[0].reshape(side, side).numpy()])
        rows[0, k].set_title(f"{side} x {side}", fontsize=11)
        rows[1, k].imshow(image, interpolation="nearest")
    for axes, text in zip(rows[:, 0], ("token map", "decoded so far"), strict=True):
        axes.set_ylabel(text, fontsize=11)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def _code_colors(codebook: torch.Tensor) -> np.ndarray:
    """(V, C) -> (V, 3) in [0, 1]: the three principal components of the codewords, each by rank."""
    centered = codebook - codebook.mean(dim=0)
    components = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:3].T
    return (components.argsort(dim=0).argsort(dim=0) / (len(codebook) - 1)).numpy()


def draw_masks(path: Path) -> None:
    """Draw which tokens (columns) each token (row) sees: by scales and, of a single map of as many tokens, in turn."""
    scales = Scales((1, 2, 3, 4))
    figure = Figure(figsize=(7, 4), layout="constrained")
    by_scale, in_turn = figure.subplots(1, 2)
    _show(by_scale.imshow, block_causal(scales))
    by_scale.set_title("next scale: 4 steps for 30 tokens")
    middles = [(start + end - 1) / 2 for start, end in pairwise(scales.offsets)]
    sides = [f"{side} x {side}" for side in scales.sides]
    by_scale.set(xticks=[], yticks=middles, yticklabels=sides)
    _show(in_turn.imshow, causal(scales.total))
    in_turn.set_title("next token: 30 steps")
    in_turn.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def _show(imshow: Callable[..., AxesImage], mask: torch.Tensor) -> None:
    imshow(mask, cmap="Blues", vmin=0, vmax=1.4)


if __name__ == "__main__":
    mpl.rcParams["font.size"] = 10
    draw_pyramid(VARPipeline.from_pretrained("var-emoji"), OUT / "pyramid.png")
    draw_masks(OUT / "masks.png")
