"""The commands that edit a picture without any training: `var edit inpaint|outpaint|class|upscale IMAGE`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokenizer.errors import InputError
from var.cli.run import Group
from var.cli.sample import COLUMNS, GRID_TILE

if TYPE_CHECKING:
    from PIL import Image

    from var.pipeline import EditOutput, VARPipeline

LARGEST_TILE = 512  # of the sheet: larger pictures are reduced on it
LONGEST_STEM = 50  # characters of a picture's name that its results take: file systems end at 255 bytes

# Options that are None when they are not given are left out of the call then: the defaults are the library's.

File = Annotated[Path, typer.Argument(help="The picture, of any size and mode.")]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="Picture of the same size, white where it is filled; black or transparent is kept.",
        metavar="FILE",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        help="In pixels, in place of --mask: from x0,y0 up to, not including, x1,y1. Repeat for several.",
        metavar="x0,y0,x1,y1",
    ),
]
Class = Annotated[
    str, typer.Option("--class", help="Index or name of a class, such as 207 or 'golden retriever'.", metavar="CLASS")
]
MaybeClass = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="Index or name of a class, such as 207 or 'golden retriever'. Default: none, the picture alone counts.",
        metavar="CLASS",
    ),
]
Context = Annotated[
    float | None,
    typer.Option(
        help="Side of the square that the model sees over the hole's longer side, 1 or more. A small one gives a small "
        "hole more detail and less to go by. Default: as much as fits the picture."
    ),
]
Room = Annotated[int, typer.Option(help="Pixels that are added on this side.")]
Method = Annotated[
    Literal["auto", "shrink", "slide"] | None,
    typer.Option(
        help="shrink (shrink-and-place): the extended picture is reduced to the model's size, which draws it in one "
        "piece. slide: a window as large as the picture's shorter side slides outwards by halves, for large extensions "
        "in full detail. auto, the default: shrink up to twice the picture's shorter side, slide beyond."
    ),
]
Scales = Annotated[
    int | None,
    typer.Option(min=1, help="Coarse scales that are kept. Default: as many as the small picture can tell."),
]
Consistent = Annotated[
    bool | None,
    typer.Option("--consistent/--no-consistent", help="Results, when reduced, are the small picture. Default: on."),
]

Num = Annotated[int, typer.Option(min=1, max=100, help="How many results.")]
Model = Annotated[str, typer.Option(help="var-mini, var-d16 ... var-d36, or a model folder.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]

DRAWING = "How it is drawn"
Seed = Annotated[int | None, typer.Option(min=0, help="Fixes the results. Default: 0.", rich_help_panel=DRAWING)]
Cfg = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance, where there is a class; 0 switches it off. Default: the model's, else 4.",
        rich_help_panel=DRAWING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Keep that many of the best tokens; 0 keeps all. Default: the model's, else 900.", rich_help_panel=DRAWING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Keep the best tokens up to that probability; 0 keeps all. Default: the model's, else 0.96.",
        rich_help_panel=DRAWING,
    ),
]
Smooth = Annotated[
    bool | None, typer.Option("--smooth", help="Smoother pictures; not for metrics.", rich_help_panel=DRAWING)
]

EDGE = "Around the hole"
Dilate = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="So many more tokens around the hole are drawn anew, as those beside it know of it. Default: 1.",
        rich_help_panel=EDGE,
    ),
]
Feather = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Pixels outside the hole over which the drawing fades into the picture, also where less than that is kept "
        "between two holes; 0: a hard edge. Default: half a token.",
        rich_help_panel=EDGE,
    ),
]
Hide = Annotated[
    bool | None,
    typer.Option(
        "--hide/--no-hide", help="The model does not see what was in the hole. Default: on.", rich_help_panel=EDGE
    ),
]
Composite = Annotated[
    bool | None,
    typer.Option(
        "--composite/--no-composite",
        help="Outside the hole the picture stays as it is, bit for bit. Default: on.",
        rich_help_panel=EDGE,
    ),
]
Match = Annotated[
    bool | None,
    typer.Option(
        "--match/--no-match",
        help="The drawing's colours are shifted smoothly to meet those around the hole. Default: on.",
        rich_help_panel=EDGE,
    ),
]

NUM = 4
MODEL = "var-mini"
OUT = Path("edits")
AUTO = "auto"


def inpaint(
    image: File,
    mask: MaskFile = None,
    box: Boxes = None,
    label: MaybeClass = None,
    context: Context = None,
    num: Num = NUM,
    model: Model = MODEL,
    out: Out = OUT,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = None,
    cfg: Cfg = None,
    top_k: TopK = None,
    top_p: TopP = None,
    smooth: Smooth = None,
    dilate: Dilate = None,
    feather: Feather = None,
    hide: Hide = None,
    composite: Composite = None,
    match: Match = None,
) -> None:
    """Fill a hole in IMAGE with what goes with the rest of it."""
    drawing = given(label=label, num=num, seed=seed, cfg=cfg, top_k=top_k, top_p=top_p, smooth=smooth)
    hole = given(
        context=context, dilate=dilate, feather=feather, hide_masked=hide, composite=composite, color_match=match
    )
    fill(Job("inpaint", image, model, out, device, dtype, drawing | hole), mask, box)


def outpaint(
    image: File,
    left: Room = 0,
    right: Room = 0,
    top: Room = 0,
    bottom: Room = 0,
    label: MaybeClass = None,
    method: Method = None,
    num: Num = NUM,
    model: Model = MODEL,
    out: Out = OUT,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = None,
    cfg: Cfg = None,
    top_k: TopK = None,
    top_p: TopP = None,
    smooth: Smooth = None,
    dilate: Dilate = None,
    feather: Feather = None,
    composite: Composite = None,
    match: Match = None,
) -> None:
    """Continue IMAGE beyond its edges, by shrink-and-place or, if it grows a lot, by a window that slides outwards."""
    drawing = given(label=label, num=num, seed=seed, cfg=cfg, top_k=top_k, top_p=top_p, smooth=smooth)
    hole = given(method=method, dilate=dilate, feather=feather, composite=composite, color_match=match)
    job = Job("outpaint", image, model, out, device, dtype, drawing | hole)
    picture = job.read()
    from var.editing.windows import outpaint_windows, pad_canvas

    # Room that cannot be had, or not by that method, is refused before the model is loaded.
    outpaint_windows(picture.size, pad_canvas(picture, left, right, top, bottom)[1], job.options.get("method", "auto"))
    job.finish(lambda pipe: pipe.outpaint(picture, left, right, top, bottom, **job.options))


def by_class(
    image: File,
    label: Class,
    mask: MaskFile = None,
    box: Boxes = None,
    context: Context = None,
    num: Num = NUM,
    model: Model = MODEL,
    out: Out = OUT,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = None,
    cfg: Cfg = None,
    top_k: TopK = None,
    top_p: TopP = None,
    smooth: Smooth = None,
    dilate: Dilate = None,
    feather: Feather = None,
    hide: Hide = None,
    composite: Composite = None,
    match: Match = None,
) -> None:
    """Put something of a class into a hole in IMAGE."""
    drawing = given(label=label, num=num, seed=seed, cfg=cfg, top_k=top_k, top_p=top_p, smooth=smooth)
    hole = given(
        context=context, dilate=dilate, feather=feather, hide_masked=hide, composite=composite, color_match=match
    )
    fill(Job("class", image, model, out, device, dtype, drawing | hole), mask, box)


def upscale(
    image: File,
    label: MaybeClass = None,
    scales: Scales = None,
    consistent: Consistent = None,
    num: Num = NUM,
    model: Model = MODEL,
    out: Out = OUT,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = None,
    cfg: Cfg = None,
    top_k: TopK = None,
    top_p: TopP = None,
    smooth: Smooth = None,
) -> None:
    """Draw IMAGE, which is smaller than the model's pictures, in their size."""
    drawing = given(label=label, num=num, seed=seed, cfg=cfg, top_k=top_k, top_p=top_p, smooth=smooth)
    size = given(num_scales=scales, consistent=consistent)
    job = Job("upscale", image, model, out, device, dtype, drawing | size)
    picture = job.read()
    job.finish(lambda pipe: pipe.upscale(picture, **job.options))


EDIT = Group(
    "edit",
    "Edit a picture: fill a hole, continue it beyond its edges, put something of a class into it, enlarge it.",
    {"inpaint": inpaint, "outpaint": outpaint, "class": by_class, "upscale": upscale},
)


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """One run of a verb: what it reads, what it loads, where its results go."""

    verb: str
    image: Path
    model: str
    out: Path
    device: str
    dtype: str
    options: dict[str, Any]  # as the library's function of that name takes them
    began: float = field(default_factory=time.perf_counter)

    def read(self) -> "Image.Image":
        """The picture, RGB and upright; before that, what can be refused without a look at it is."""
        from var.sampling.params import check_sampling
        from var.utils.files import check_writable
        from var.utils.images import open_image, to_rgb

        check_writable(self.out)
        check_sampling(*(self.options.get(name, 0) for name in ("cfg", "top_k", "top_p")))
        return to_rgb(open_image(self.image))

    def finish(self, draw: "Callable[[VARPipeline], EditOutput]") -> None:
        """Load the model, draw, save and tell what was saved."""
        from var.pipeline import VARPipeline
        from var.utils.images import save_image

        pipe = VARPipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype)
        loaded = time.perf_counter()
        edited = draw(pipe)
        seconds = time.perf_counter() - loaded
        stem = f"{self.image.stem.lstrip('.')[:LONGEST_STEM] or 'picture'}_{self.verb}"
        saved = {self.out / f"{stem}_{name}.png": picture for name, picture in self.pictures(edited).items()}
        for path, picture in saved.items():
            save_image(path, picture)
        for path in saved:
            typer.echo(path)
        count = len(edited.images)
        typer.echo(f"{count} pictures in {seconds:.1f} s, model loaded in {loaded - self.began:.1f} s")

    def pictures(self, edited: "EditOutput") -> "dict[str, Image.Image]":
        """What is saved, by name: the results, the hole and the sheet."""
        from var.editing.image_masks import overlay
        from var.utils.images import image_grid

        tiles = [tile(image) for image in edited.images]
        results = {str(i): image for i, image in enumerate(edited.images)}
        if self.verb == "upscale":
            return results | {"sheet": image_grid([*enlarged(edited), *tiles], COLUMNS)}
        mask = overlay(edited.image, edited.mask)
        return results | {"mask": mask, "sheet": image_grid([tile(edited.image), tile(mask), *tiles], COLUMNS)}


def fill(job: Job, mask: Path | None, boxes: list[str] | None) -> None:
    """What `inpaint` and `class` share."""
    if (mask is None) == (not boxes):
        raise InputError("give the hole either by --mask FILE or by --box x0,y0,x1,y1")
    corners = [corners_of(box) for box in boxes or ()]
    picture = job.read()
    from var.editing.image_masks import mask_from_boxes, mask_from_image
    from var.editing.windows import window_around
    from var.utils.images import open_image

    hole = mask_from_boxes(corners, picture.size) if mask is None else mask_from_image(open_image(mask), picture.size)
    if not hole.any():
        raise InputError(f"mask {mask} is empty: white marks what is filled; black and transparent parts are kept")
    window_around(
        hole, job.options.get("context")
    )  # a context that cannot be had is refused before the model is loaded
    job.finish(lambda pipe: pipe.inpaint(picture, hole, **job.options))


def corners_of(box: str) -> tuple[int, int, int, int]:
    """`x0,y0,x1,y1` -> four numbers."""
    try:
        left, top, right, bottom = map(int, box.split(","))
    except ValueError as error:
        raise InputError(f"--box {box!r} must be four whole numbers x0,y0,x1,y1, such as 16,16,48,48") from error
    return left, top, right, bottom


def enlarged(edited: "EditOutput") -> "list[Image.Image]":
    """Tiles of a small picture: its pixels as they are, and the picture in the results' size (bicubic)."""
    from PIL.Image import Resampling

    result = edited.images[0]
    smooth = tile(edited.image.resize(result.size, Resampling.BICUBIC))
    return [edited.image.resize(smooth.size, Resampling.NEAREST), smooth]


def tile(image: "Image.Image") -> "Image.Image":
    """A picture as the sheet shows it: large enough to be seen and small enough to go with others."""
    from var.utils.images import enlarge

    seen = enlarge(image, GRID_TILE) if max(image.size) < GRID_TILE else image.copy()
    seen.thumbnail((LARGEST_TILE, LARGEST_TILE))
    return seen
