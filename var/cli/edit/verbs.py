"""The four verbs of `var edit`; each hands its options on to the pipeline's method of that name."""

from tokenizer.errors import InputError
from var.cli import options
from var.cli.bundles import BlendOptions, MaskOptions, ModelOptions, ResultOptions, SamplingOptions, given
from var.cli.edit.job import EditJob


def inpaint(
    image: options.ImageFile,
    label: options.MaybeClass = None,
    *,
    masking: MaskOptions,
    results: ResultOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    blend: BlendOptions,
) -> None:
    """Fill a masked part of IMAGE with what goes with the rest of it.

    Examples:
      var edit inpaint photo.jpg --box 80,60,180,200
      var edit inpaint photo.jpg --mask mask.png --class 207 --num 8
    """
    fill(EditJob("inpaint", image, results, model, given(sampling, blend, label=label)), masking)


def edit_class(
    image: options.ImageFile,
    label: options.Class,
    *,
    masking: MaskOptions,
    results: ResultOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    blend: BlendOptions,
) -> None:
    """Put something of a class into a masked part of IMAGE.

    Examples:
      var edit class photo.jpg --mask mask.png --class "king penguin"
      var edit class photo.jpg --box 80,60,180,200 --class 207 --no-color-match
    """
    fill(EditJob("class", image, results, model, given(sampling, blend, label=label)), masking)


def outpaint(
    image: options.ImageFile,
    left: options.Room = 0,
    right: options.Room = 0,
    top: options.Room = 0,
    bottom: options.Room = 0,
    label: options.MaybeClass = None,
    method: options.Method = None,
    *,
    results: ResultOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    blend: BlendOptions,
) -> None:
    """Continue IMAGE beyond its edges, by shrink-and-place or, if it grows a lot, by a window that slides outwards.

    Examples:
      var edit outpaint photo.jpg --left 128 --right 128
      var edit outpaint photo.jpg --top 400 --method slide
    """
    job = EditJob("outpaint", image, results, model, given(sampling, blend, method=method, label=label))
    opened = job.read()
    from var.editing.windows import outpaint_windows, pad_canvas

    # Room that cannot be had, or not by that method, is refused before the model is loaded.
    outpaint_windows(opened.size, pad_canvas(opened, left, right, top, bottom)[1], method or "auto")
    job.finish(lambda pipe, **asked: pipe.outpaint(opened, left, right, top, bottom, **asked))


def upscale(
    image: options.ImageFile,
    label: options.MaybeClass = None,
    scales: options.CoarseScales = None,
    consistent: options.Consistent = None,
    *,
    results: ResultOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
) -> None:
    """Show IMAGE, which is smaller than the model's images, in their size.

    Examples:
      var edit upscale small.png
      var edit upscale small.png --class 207 --seed 1
    """
    asked = given(sampling, label=label, num_scales=scales, consistent=consistent)
    job = EditJob("upscale", image, results, model, asked)
    opened = job.read()
    job.finish(lambda pipe, **asked: pipe.upscale(opened, **asked))


def fill(job: EditJob, masking: MaskOptions) -> None:
    """What `inpaint` and `class` share: read image and mask, then inpaint."""
    if (masking.mask is None) == (not masking.box):
        raise InputError("give the hole either by --mask FILE or by --box x0,y0,x1,y1")
    corners = [corners_of(box) for box in masking.box or ()]
    image = job.read()
    from var.editing.image_masks import mask_from_boxes, mask_from_image
    from var.editing.windows import window_around
    from var.utils.images import open_image

    if masking.mask is None:
        mask = mask_from_boxes(corners, image.size)
    else:
        mask = mask_from_image(open_image(masking.mask), image.size)
    if not mask.any():
        raise InputError(
            f"mask {masking.mask} is empty: white marks what is filled; black and transparent parts are kept"
        )
    window_around(mask, masking.context)  # a context that cannot be had is refused before the model is loaded
    more = given(context=masking.context, hide_masked=masking.hide_masked)
    job.finish(lambda pipe, **asked: pipe.inpaint(image, mask, **asked, **more))


def corners_of(box: str) -> tuple[int, int, int, int]:
    """`x0,y0,x1,y1` -> four numbers."""
    try:
        left, top, right, bottom = map(int, box.split(","))
    except ValueError as error:
        raise InputError(f"--box {box!r} must be four whole numbers x0,y0,x1,y1, such as 16,16,48,48") from error
    return left, top, right, bottom
