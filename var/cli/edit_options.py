"""Options that only `var edit` has."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from var.cli.options import CLASS, ModelOptions, SampleFolder, SamplingOptions, check_field, check_range
from var.editing.params import BlendParams

BLENDING = BlendParams()
ON_OFF = {True: "on", False: "off"}

blending_option: Any = partial(Option, rich_help_panel="Blending")


@dataclass(frozen=True)
class EditOptions(ModelOptions, SamplingOptions):
    """Options of every edit: model, sampling, number of results and their folder."""

    num: Annotated[int, Option(callback=check_range("num", 1, 100), help="Number of results, 1 to 100.")] = 4
    out: SampleFolder = Path("edits")


@dataclass(frozen=True)
class BlendOptions:
    """Blending of the results into the image around the mask."""

    dilate: Annotated[
        int | None,
        blending_option(
            callback=check_field(BlendParams, "dilate"),
            help="So many more tokens around the mask are generated too, as those beside it know of it. "
            f"Default: {BLENDING.dilate}.",
        ),
    ] = None
    feather: Annotated[
        float | None,
        blending_option(
            callback=check_field(BlendParams, "feather"),
            help="Pixels outside the mask over which the result fades into the image, also where less than that is "
            "kept between two masks; 0: a hard edge. Default: half a token.",
        ),
    ] = None
    composite: Annotated[
        bool | None,
        blending_option(
            help=f"Outside the mask the image stays as it is, bit for bit. Default: {ON_OFF[BLENDING.composite]}."
        ),
    ] = None
    color_match: Annotated[
        bool | None,
        blending_option(
            help="Colors of the result are shifted smoothly to meet those around the mask. "
            f"Default: {ON_OFF[BLENDING.color_match]}."
        ),
    ] = None


@dataclass(frozen=True)
class MaskOptions(BlendOptions):
    """Mask, context that the model sees around it, and blending of the results into the rest."""

    mask: Annotated[
        Path | None,
        Option(help="Image of the same size, white where it is filled; black or transparent is kept.", metavar="FILE"),
    ] = None
    box: Annotated[
        list[str] | None,
        Option(
            help="In pixels, in place of --mask: from x0,y0 up to, not including, x1,y1. Repeat for several.",
            metavar="x0,y0,x1,y1",
        ),
    ] = None
    context: Annotated[
        float | None,
        Option(
            help="Side of the square that the model sees over the mask's longer side, 1 or more. A small one gives a "
            "small mask more detail and less to go by. Default: as much as fits the image."
        ),
    ] = None
    hide_masked: Annotated[
        bool | None,
        blending_option(
            help=f"The model does not see what is under the mask. Default: {ON_OFF[BLENDING.hide_masked]}."
        ),
    ] = None


ImageFile = Annotated[Path, Argument(help="The image, of any size and mode.", metavar="IMAGE")]
Class = Annotated[str, Option("--class", help=f"{CLASS}.", metavar="CLASS")]
MaybeClass = Annotated[
    str | None, Option("--class", help=f"{CLASS}. Default: none, the image alone counts.", metavar="CLASS")
]
Room = Annotated[int, Option(help="Pixels that are added on this side.")]
Method = Annotated[
    Literal["auto", "shrink", "slide"] | None,
    Option(
        help="shrink (shrink-and-place): the extended image is reduced to the model's size and inpainted in one "
        "piece. slide: a window as large as the image's shorter side slides outwards by halves, for large extensions "
        "in full detail. auto, the default: shrink up to twice the image's shorter side, slide beyond."
    ),
]
CoarseScales = Annotated[
    int | None,
    Option(
        "--scales",
        callback=check_range("num_scales", 1),
        help="Coarse scales that are kept. Default: as many as the small image determines.",
    ),
]
Consistent = Annotated[bool | None, Option(help="Results, when reduced, are the small image. Default: on.")]
