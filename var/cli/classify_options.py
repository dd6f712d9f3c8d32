"""Options that only the commands of classification have: `var classify`, `var evaluate classification`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from var.cli.options import CLASS, MODEL, check_range

if TYPE_CHECKING:
    from var.sampling.class_likelihood import Pruning

By = Annotated[
    Literal["likelihood", "probe"] | None,
    Option(
        help="likelihood: of the tokens under every class of a VAR. probe: scores of an attentive probe, on AIM or on "
        "other features. Default: what the model can do."
    ),
]
ClassifierModel = Annotated[str, Option("--model", help=f"{MODEL}; with a probe aim-600M to aim-7B, or its folder.")]
ImageFiles = Annotated[list[Path], Argument(help="Images, of any size and mode.", metavar="IMAGE")]
Candidates = Annotated[
    list[str] | None,
    Option(
        "--class", help=f"{CLASS}; repeat for several: only these. Default: all that the model knows.", metavar="CLASS"
    ),
]
Top = Annotated[int, Option(callback=check_range("top", 1), help="Number of classes printed of an image.")]
ByScale = Annotated[bool, Option("--scales", help="Also the difference in log-likelihood that each scale makes.")]
Keep = Annotated[
    str | None,
    Option(
        help="Classes that are kept after coarse scales, such as 3:25%,5:8: after three scales a quarter, after five "
        "eight; only under these are finer tokens predicted. Default: all.",
        metavar="SCALES:CLASSES,...",
    ),
]
Rows = Annotated[
    int,
    Option(callback=check_range("rows", 1), help="Pairs of an image and a class that are computed at once."),
]


def format_idle_steps(pruning: "Pruning | None", num_scales: int, num_classes: int) -> list[str]:
    """Return a line for each step of --keep that leaves no class out."""
    idle = [] if pruning is None else pruning.idle_steps(num_scales, num_classes)
    return [f"--keep: the step after {scales} scales leaves no class out: {left} left there" for scales, left in idle]
