"""The four verbs of `var edit`; each hands its options on to the pipeline's method of that name."""

from pathlib import Path

from tokenizer.errors import InputError
from var.cli import options
from var.cli.edit.job import EDITS, EditJob


def inpaint(
    image: options.ImageFile,
    mask: options.MaskFile = None,
    box: options.Boxes = None,
    label: options.MaybeClass = None,
    context: options.Context = None,
    num: options.NumResults = 4,
    out: options.SampleFolder = EDITS,
    *,
    model: options.ModelOptions,
    sampling: options.SamplingOptions,
    blend: options.BlendOptions,
    hide_masked: options.HideMasked = None,
) -> None:
    """Fill a masked part of IMAGE with what goes with the rest of it.

    Examples:
      var edit inpaint photo.jpg --box 80,60,180,200
      var edit inpaint photo.jpg --mask mask.png --class 207 --num 8
    """
    given = options.given(sampling, blend, hide_masked=hide_masked, context=context, label=label, num=num)
    fill(EditJob("inpaint", image, out, model, given), mask, box)


def edit_class(
    image: options.ImageFile,
    label: options.Class,
    mask: options.MaskFile = None,
    box: options.Boxes = None,
    context: options.Context = None,
    num: options.NumResults = 4,
    out: options.SampleFolder = EDITS,
    *,
    model: options.ModelOptions,
    sampling: options.SamplingOptions,
    blend: options.BlendOptions,
    hide_masked: options.HideMasked = None,
) -> None:
    """Put something of a class into a masked part of IMAGE.

    Examples:
      var edit class photo.jpg --mask mask.png --class "king penguin"
      var edit class photo.jpg --box 80,60,180,200 --class 207 --no-color-match
    """
    given = options.given(sampling, blend, hide_masked=hide_masked, context=context, label=label, num=num)
    fill(EditJob("class", image, out, model, given), mask, box)


def outpaint(
    image: options.ImageFile,
    left: options.Room = 0,
    right: options.Room = 0,
    top: options.Room = 0,
    bottom: options.Room = 0,
    label: options.MaybeClass = None,
    method: options.Method = None,
    num: options.NumResults = 4,
    out: options.SampleFolder = EDITS,
    *,
    model: options.ModelOptions,
    sampling: options.SamplingOptions,
    blend: options.BlendOptions,
) -> None:
    """Continue IMAGE beyond its edges, by shrink-and-place or, if it grows a lot, by a window that slides outwards.

    Examples:
      var edit outpaint photo.jpg --left 128 --right 128
      var edit outpaint photo.jpg --top 400 --method slide
    """
    given = options.given(sampling, blend, method=method, label=label, num=num)
    job = EditJob("outpaint", image, out, model, given)
    opened = job.read()
    from var.editing.windows import outpaint_windows, pad_canvas

    # Room that cannot be had, or not by that method, is refused before the model is loaded.
    outpaint_windows(opened.size, pad_canvas(opened, left, right, top, bottom)[1], method or "auto")
    job.finish(lambda pipe: pipe.outpaint(opened, left, right, top, bottom, **job.options))


def upscale(
    image: options.ImageFile,
    label: options.MaybeClass = None,
    scales: options.CoarseScales = None,
    consistent: options.Consistent = None,
    num: options.NumResults = 4,
    out: options.SampleFolder = EDITS,
    *,
    model: options.ModelOptions,
    sampling: options.SamplingOptions,
) -> None:
    """Show IMAGE, which is smaller than the model's images, in their size.

    Examples:
      var edit upscale small.png
      var edit upscale small.png --class 207 --seed 1
    """
    given = options.given(sampling, label=label, num_scales=scales, consistent=consistent, num=num)
    job = EditJob("upscale", image, out, model, given)
    opened = job.read()
    job.finish(lambda pipe: pipe.upscale(opened, **job.options))


def fill(job: EditJob, mask: Path | None, boxes: list[str] | None) -> None:
    """What `inpaint` and `class` share: read image and mask, then inpaint."""
    if (mask is None) == (not boxes):
        raise InputError("give the hole either by --mask FILE or by --box x0,y0,x1,y1")
    corners = [corners_of(box) for box in boxes or ()]
    image = job.read()
    from var.editing.image_masks import mask_from_boxes, mask_from_image
    from var.editing.windows import window_around
    from var.utils.images import open_image

    found = mask_from_boxes(corners, image.size) if mask is None else mask_from_image(open_image(mask), image.size)
    if not found.any():
        raise InputError(f"mask {mask} is empty: white marks what is filled; black and transparent parts are kept")
    window_around(found, job.options.get("context"))  # one that cannot be had is refused before the model is loaded
    job.finish(lambda pipe: pipe.inpaint(image, found, **job.options))


def corners_of(box: str) -> tuple[int, int, int, int]:
    """`x0,y0,x1,y1` -> four numbers."""
    try:
        left, top, right, bottom = map(int, box.split(","))
    except ValueError as error:
        raise InputError(f"--box {box!r} must be four whole numbers x0,y0,x1,y1, such as 16,16,48,48") from error
    return left, top, right, bottom
