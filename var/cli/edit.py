"""The commands that edit an image without any training: `var edit inpaint|outpaint|class|upscale IMAGE`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tokenizer.errors import InputError, abbreviate
from var.cli import edit_options
from var.cli.edit_options import BlendOptions, EditOptions, MaskOptions
from var.cli.options import collect_options, whole_numbers
from var.cli.progress import stopping
from var.cli.run import Group

if TYPE_CHECKING:
    from PIL import Image

    from var.editing.params import OnImages
    from var.pipeline import EditOutput, VARPipeline

LONGEST_STEM = 50  # characters of an image's name that its results take: file systems end at 255 bytes


def inpaint(
    image: edit_options.ImageFile, label: edit_options.MaybeClass = None, *, masking: MaskOptions, edit: EditOptions
) -> None:
    """Fill a masked part of IMAGE so that it fits the rest.

    Examples:
      var edit inpaint photo.jpg --box 80,60,180,200
      var edit inpaint photo.jpg --mask mask.png --class 207 --num 8
    """
    fill("inpaint", image, label, masking, edit)


def edit_class(
    image: edit_options.ImageFile, label: edit_options.Class, *, masking: MaskOptions, edit: EditOptions
) -> None:
    """Put something of a class into a masked part of IMAGE.

    Examples:
      var edit class photo.jpg --mask mask.png --class "king penguin"
      var edit class photo.jpg --box 80,60,180,200 --class 207 --no-color-match
    """
    fill("class", image, label, masking, edit)


def fill(verb: str, file: Path, label: str | None, masking: MaskOptions, edit: EditOptions) -> None:
    """Inpaint a masked part, with or without a class."""
    if (masking.mask is None) == (not masking.box):
        raise InputError("give the mask either by --mask FILE or by --box x0,y0,x1,y1")
    boxes = [corners(box) for box in masking.box or ()]
    image = read_image(file, edit.out)
    from var.editing.image_masks import mask_from_boxes, mask_from_image
    from var.editing.windows import window_around
    from var.utils.images import open_image

    if masking.mask is None:
        mask = mask_from_boxes(boxes, image.size)
    else:
        mask = mask_from_image(open_image(masking.mask), image.size)
    if not mask.any():
        raise InputError(
            f"mask {masking.mask} is empty: white marks what is filled; black and transparent parts are kept"
        )
    window_around(mask, masking.context)  # a context that cannot be had is refused before the model is loaded
    finish(
        verb,
        file,
        edit,
        lambda pipe, show: pipe.inpaint(
            image, mask, **collect_options(edit, masking, label=label, progress=True), on_images=show
        ),
    )


def corners(box: str) -> list[int]:
    """`x0,y0,x1,y1` -> four numbers."""
    refusal = f"--box {abbreviate(box)} must be four whole numbers x0,y0,x1,y1, such as 16,16,48,48"
    numbers = whole_numbers(box, refusal)
    if len(numbers) != 4:
        raise InputError(refusal)
    return numbers


def outpaint(
    image: edit_options.ImageFile,
    left: edit_options.Room = 0,
    right: edit_options.Room = 0,
    top: edit_options.Room = 0,
    bottom: edit_options.Room = 0,
    label: edit_options.MaybeClass = None,
    method: edit_options.Method = None,
    *,
    edit: EditOptions,
    blend: BlendOptions,
) -> None:
    """Continue IMAGE beyond its edges, by shrink-and-place or, if it grows a lot, by a window that slides outwards.

    Examples:
      var edit outpaint photo.jpg --left 128 --right 128
      var edit outpaint photo.jpg --top 400 --method slide
    """
    opened = read_image(image, edit.out)
    from var.editing.windows import outpaint_windows, pad_canvas

    # Room that cannot be had, or not by that method, is refused before the model is loaded.
    outpaint_windows(opened.size, pad_canvas(opened, left, right, top, bottom)[1], method or "auto")
    keywords = collect_options(edit, blend, label=label, method=method, progress=True)
    finish(
        "outpaint",
        image,
        edit,
        lambda pipe, show: pipe.outpaint(opened, left, right, top, bottom, **keywords, on_images=show),
    )


def upscale(
    image: edit_options.ImageFile,
    label: edit_options.MaybeClass = None,
    scales: edit_options.CoarseScales = None,
    consistent: edit_options.Consistent = None,
    *,
    edit: EditOptions,
) -> None:
    """Show IMAGE, which is smaller than the model's images, in their size.

    Examples:
      var edit upscale small.png
      var edit upscale small.png --class 207 --seed 1
    """
    opened = read_image(image, edit.out)
    keywords = collect_options(edit, label=label, num_scales=scales, consistent=consistent, progress=True)
    finish("upscale", image, edit, lambda pipe, show: pipe.upscale(opened, **keywords, on_images=show))


def read_image(file: Path, out: Path) -> "Image.Image":
    """Read the image, RGB and upright; before that, refuse a folder that results cannot be written to."""
    from var.utils.images import open_image, to_rgb
    from var.utils.paths import check_writable

    check_writable(out)
    return to_rgb(open_image(file))


def finish(verb: str, file: Path, edit: EditOptions, method: "Callable[[VARPipeline, OnImages], EditOutput]") -> None:
    """Load the model, edit, save results as they come, and print what was saved."""
    began = time.perf_counter()
    from var.editing.output import EditFolder
    from var.pipeline import VARPipeline
    from var.utils.text import plural

    pipe = VARPipeline.from_pretrained(edit.model, device=edit.device, dtype=edit.dtype).pack()
    loaded = time.perf_counter()
    stem = f"{file.stem.lstrip('.')[:LONGEST_STEM] or 'image'}_{verb}"
    folder = EditFolder(edit.out, stem, edit.num)
    with stopping(lambda: f"{len(folder.paths)} of {edit.num} images are in {edit.out}"):
        output = method(pipe, folder.add)
    seconds = time.perf_counter() - loaded
    for path in folder.finish(output):
        typer.echo(path)
    typer.echo(f"{plural(len(output.images), 'image')} in {seconds:.1f} s, model loaded in {loaded - began:.1f} s")


EDIT = Group(
    "edit",
    """Edit an image: fill a masked part, continue it beyond its edges, put something of a class into it, enlarge it.

    Examples:
      var edit inpaint photo.jpg --box 80,60,180,200
      var edit class photo.jpg --mask mask.png --class "king penguin"
      var edit upscale small.png
    """,
    {"inpaint": inpaint, "outpaint": outpaint, "class": edit_class, "upscale": upscale},
)
