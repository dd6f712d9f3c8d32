"""The tab that edits an image: a painted part is filled, or the image is continued or enlarged."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gradio as gr
import numpy as np
from PIL import Image

from tokenizer.errors import InputError
from var.app.commands import changed_options, command_line, python_call
from var.app.controls import (
    MAX_SEED,
    NO_CLASS,
    check_number,
    class_dropdown,
    image_gallery,
    read_sampling,
    run_on_model,
    sampling_controls,
    seed_number,
    settings_shown,
    whole_number,
)
from var.app.state import AppState, as_they_come
from var.app.uploads import open_upload, save_zip, take_drawing
from var.editing.image_masks import Mask
from var.editing.output import EditOutput
from var.editing.windows import outpaint_windows, pad_canvas, warn_if_blurred, window_around
from var.sampling.params import SamplingParams

Verb = Literal["inpaint", "class", "outpaint", "upscale"]
VERBS: dict[Verb, str] = {
    "inpaint": "Fill the painted part",
    "class": "Put a class there",
    "outpaint": "Continue beyond the edges",
    "upscale": "Enlarge a small image",
}
PAINTED = ("inpaint", "class")  # verbs that need a mask
SIDES = ("left", "right", "top", "bottom")
MAX_RESULTS = 8
BRUSH = ("#ff00c8", 0.6)  # color and opacity: seen on white and black alike, and what is below it as well
HALF_PAINTED = round(255 * BRUSH[1] / 2)  # opacity of a stroke's edge
LARGEST_CONTEXT = 8.0  # of the slider, where it stands for as much as fits the image


@dataclass(frozen=True)
class Edit:
    """An edit that is asked for.

    Attributes:
        mask: (height, width) of the image, True where it is painted.
        label: None: no class.
        context: as `VARPipeline.inpaint` takes it.
        room: pixels on each side, by its name.

    Raises:
        InputError: what does not go together.
    """

    verb: Verb
    image: Image.Image
    mask: Mask
    label: int | None
    num: int
    seed: int
    sampling: SamplingParams
    context: float | None
    room: Mapping[str, int]

    def __post_init__(self) -> None:
        check_number("the number of results", self.num, 1, MAX_RESULTS)
        check_number("the seed", self.seed, 0, MAX_SEED)
        if self.verb not in get_args(Verb):
            raise InputError(f"edit {self.verb!r} is unknown: known are {', '.join(get_args(Verb))}")
        if self.verb in PAINTED and not self.mask.any():
            raise InputError("nothing is painted: choose the brush and paint over the part to be filled")
        if self.verb == "class" and self.label is None:
            raise InputError("no class chosen: choose what to put there")


def read_drawing(drawing: Mapping[str, Any] | None) -> tuple[Image.Image, Mask]:
    """Return the image of an editor, RGB, and where any of its layers is painted, (height, width).

    Raises InputError: no image, or one that cannot be read.
    """
    if drawing is None:
        raise InputError("no image given: upload one first")
    image = open_upload(drawing["background"])
    mask = np.zeros(image.size[::-1], dtype=bool)
    for encoded in drawing["layers"]:
        if encoded is not None:
            painted = open_upload(encoded, keep_alpha=True).convert("RGBA").getchannel("A")
            mask |= np.asarray(painted.resize(image.size, Image.Resampling.NEAREST)) > HALF_PAINTED
    return image, mask


def run_edit(state: AppState, edit: Edit) -> Iterator[float | EditOutput]:
    """Edit; yield the share that is done again and again, then the output.

    Raises InputError: what the model or the image does not allow.
    """
    pipe, options = state.pipe, _options(state, edit)
    methods: dict[Verb, Callable[..., EditOutput]] = {"outpaint": pipe.outpaint, "upscale": pipe.upscale}

    def draw(show: Callable[[float | EditOutput], None]) -> float | EditOutput:
        def progress(done: float, total: int) -> None:
            show(done / total)

        with state.lock:
            if edit.verb in PAINTED:
                return pipe.inpaint(edit.image, edit.mask, progress=progress, **options)
            return methods[edit.verb](edit.image, progress=progress, **options)

    yield from as_they_come(draw)


def _options(state: AppState, edit: Edit) -> dict[str, Any]:
    options: dict[str, Any] = {"label": edit.label, "num": edit.num, "seed": edit.seed}
    if edit.verb in PAINTED:
        options["context"] = edit.context
    if edit.verb == "outpaint":
        options |= edit.room
    return options | changed_options(edit.sampling, state.pipe.choose_sampling({}))


def find_warning(state: AppState, edit: Edit) -> str | None:
    """Return a sentence if the model is too small for the edit; None: it is not."""
    side = state.pipe.vqvae.config.image_side
    if edit.verb in PAINTED:
        return warn_if_blurred(edit.mask, [window_around(edit.mask, edit.context)], side)
    if edit.verb == "outpaint":
        mask = pad_canvas(edit.image, **edit.room)[1]
        return warn_if_blurred(mask, outpaint_windows(edit.image.size, mask, "auto"), side)
    return None


def show_settings(state: AppState, edit: Edit) -> tuple[str, str]:
    """Return the command line and the script that do the same with image.png and mask.png of the archive."""
    options = _options(state, edit)
    label = options.pop("label")
    mask = "mask.png" if edit.verb in PAINTED else None
    words = ["var", "edit", edit.verb, "image.png", "--model", state.model]
    command = command_line(words, {"mask": mask, "class": label, **options})
    method = "edit" if edit.verb == "class" else edit.verb
    arguments = ['Image.open("image.png")', *(['Image.open("mask.png")'] if mask else [])]
    script = python_call(state.model, f".{method}", arguments, {"label": label, **options})
    return command, f"from PIL import Image\n{script}"


def build(state: AppState) -> None:
    """Lay out the tab and connect it."""
    with gr.Row():
        with gr.Column(scale=3, min_width=400):
            editor = take_drawing(
                gr.ImageEditor(
                    type="filepath",
                    format="png",
                    label="Image: upload, then paint over the part to be filled",
                    sources=("upload", "clipboard"),
                    transforms=(),
                    brush=gr.Brush(default_size="auto", colors=[BRUSH], color_mode="fixed"),
                    height=430,
                    elem_id="edit-image",
                )
            )
        with gr.Column(scale=2, min_width=300):
            verb = gr.Radio([(text, name) for name, text in VERBS.items()], value="inpaint", label="Edit")
            label = class_dropdown(state)
            with gr.Row():
                num = whole_number(2, f"Results (1 to {MAX_RESULTS})")
                seed = seed_number()
            context = gr.Slider(
                1,
                LARGEST_CONTEXT,
                LARGEST_CONTEXT,
                step=0.1,
                label="Context",
                info="square that the model sees, over the painted part's size; 8: all that fits",
            )
            with gr.Row(visible=False) as room:
                sides = [whole_number(0, f"{side} (px)") for side in SIDES]
            with gr.Row():
                button = gr.Button("Edit", variant="primary", elem_id="edit-button")
                stop = gr.Button("Stop")
            with gr.Accordion("Sampling", open=False):
                sampling = sampling_controls(state)
    status = gr.Markdown("", elem_id="edit-status")
    gallery = image_gallery("Results", "edit-results")
    archive = gr.DownloadButton("Download image, mask and results (zip)", interactive=False)
    command, script = settings_shown("edit-settings")

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        edit = read_edit(state, *values)
        warning = find_warning(state, edit)
        note = f"⚠ {warning}" if warning else ""
        yield gr.skip(), f"drawing … {note}", gr.DownloadButton(interactive=False), *show_settings(state, edit)
        for output in run_edit(state, edit):
            if isinstance(output, float):
                yield gr.skip(), f"drawing: {output:.0%} {note}", gr.skip(), gr.skip(), gr.skip()
                continue
            files = {"image": edit.image, **{f"result_{i}": image for i, image in enumerate(output.images)}}
            if edit.verb in PAINTED:
                files["mask"] = Image.fromarray(edit.mask)
            file = save_zip(state.folder, edit.verb, files)
            yield output.images, note, gr.DownloadButton(value=file, interactive=True), gr.skip(), gr.skip()

    inputs = [editor, verb, label, num, seed, context, *sides, *sampling]
    run_on_model(button, run, inputs, [gallery, status, archive, command, script], stop, status)
    verb.change(
        lambda chosen: (gr.Slider(visible=chosen in PAINTED), gr.Row(visible=chosen == "outpaint")),
        verb,
        [context, room],
        queue=False,
        api_visibility="private",
    )


def read_edit(
    state: AppState,
    drawing: Mapping[str, Any] | None,
    verb: Verb,
    label: int | None,
    num: int,
    seed: int,
    context: float,
    *others: Any,
) -> Edit:
    """Return the edit that the controls show. Raises InputError: what does not go together, or is out of range."""
    image, mask = read_drawing(drawing)
    return Edit(
        verb,
        image,
        mask,
        None if label in (None, NO_CLASS) else label,
        num,
        seed,
        read_sampling(state, *others[len(SIDES) :]),
        None if context >= LARGEST_CONTEXT else context,
        {side: check_number(side, room, 0) for side, room in zip(SIDES, others, strict=False)},
    )
