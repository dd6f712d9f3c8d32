"""The tab that generates images of classes, which appear scale by scale."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from tokenizer.errors import InputError
from var.app.commands import changed_options, command_line, python_call
from var.app.controls import (
    MAX_SEED,
    check_number,
    class_choices,
    image_gallery,
    read_sampling,
    run_on_model,
    sampling_controls,
    seed_number,
    settings_shown,
    whole_number,
)
from var.app.state import MAX_IMAGES, AppState, as_they_come
from var.app.uploads import save_zip
from var.pipeline import PipelineOutput
from var.sampling.params import SamplingParams
from var.utils.text import plural

Images = list[Image.Image]


def generate(
    state: AppState, labels: Sequence[int], num: int, seed: int, sampling: SamplingParams
) -> Iterator[Images | PipelineOutput]:
    """Draw `num` images of each class; yield all images after every scale, then the output.

    Raises InputError: no class, an unknown one, more than MAX_IMAGES images.
    """
    check_wanted(labels, num, seed)
    pipe = state.pipe
    options = changed_options(sampling, pipe.choose_sampling({}))

    def draw(show: Callable[[Images | PipelineOutput], None]) -> Images | PipelineOutput:
        with state.lock:
            return pipe(
                list(labels),
                num,
                seed=seed,
                batch_size=MAX_IMAGES,
                on_scale=lambda scale: show(scale.images),
                **options,
            )

    yield from as_they_come(draw)


def check_wanted(labels: Sequence[int], num: int, seed: int) -> None:
    """Raise InputError unless 1 to MAX_IMAGES images are asked for, from a seed."""
    check_number("the seed", seed, 0, MAX_SEED)
    if not labels:
        raise InputError("no class chosen: choose one, or several")
    check_number("the number of images", num, 1)
    if len(labels) * num > MAX_IMAGES:
        raise InputError(
            f"{plural(num, 'image')} of {plural(len(labels), 'class', 'es')} are {len(labels) * num}: the page draws "
            f"{MAX_IMAGES} at once; `var sample` draws any number"
        )


def show_settings(
    state: AppState, labels: Sequence[int], num: int, seed: int, sampling: SamplingParams
) -> tuple[str, str]:
    """Return the command line and the script that draw the same images."""
    options = {"seed": seed, **changed_options(sampling, state.pipe.choose_sampling({}))}
    command = command_line(["var", "sample", "--model", state.model], {"class": list(labels), "num": num, **options})
    return command, python_call(state.model, "", [list(labels)], {"num": num, **options})


def build(state: AppState) -> None:
    """Lay out the tab and connect it."""
    choices = class_choices(state)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            labels = gr.Dropdown(
                choices,
                value=[choices[0][1]],
                multiselect=True,
                max_choices=8,
                label="Classes",
                info="type to search",
                elem_id="generate-classes",
            )
            with gr.Row():
                num = whole_number(4, "Images of each")
                seed = seed_number()
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate-button")
                stop = gr.Button("Stop")
            with gr.Accordion("Sampling", open=True):
                sampling = sampling_controls(state)
        with gr.Column(scale=3, min_width=400):
            scale = gr.Markdown("", elem_id="generate-scale")
            gallery = image_gallery("Images", "generate-images")
            archive = gr.DownloadButton("Download all (zip)", interactive=False, elem_id="generate-zip")
            command, script = settings_shown("generate-settings", open=True)

    def draw(*values: Any) -> Iterator[tuple[Any, ...]]:
        chosen, number, start, *others = values
        wanted = ([int(label) for label in chosen or ()], number, start, read_sampling(state, *others))
        check_wanted(*wanted[:3])
        texts = show_settings(state, *wanted)
        yield gr.skip(), "drawing …", gr.DownloadButton(interactive=False), *texts
        sides = state.pipe.vqvae.scales.sides
        sides = tuple(sides[k] for k in wanted[3].kept_scales(sides))
        for k, images in enumerate(generate(state, *wanted)):
            if isinstance(images, PipelineOutput):
                named = list(zip(images.labels, images.indices, images.images, strict=True))
                names = state.pipe.known_classes()
                shown = [(image, names[label]) for label, _, image in named]
                files = {f"{label}_{index}": image for label, index, image in named}
                file = save_zip(state.folder, "images", files)
                yield (
                    shown,
                    plural(len(shown), "image"),
                    gr.DownloadButton(value=file, interactive=True),
                    gr.skip(),
                    gr.skip(),
                )
            else:
                line = f"scale {k + 1} of {len(sides)}: {sides[k]}x{sides[k]} tokens"
                yield images, line, gr.skip(), gr.skip(), gr.skip()

    run_on_model(button, draw, [labels, num, seed, *sampling], [gallery, scale, archive, command, script], stop, scale)
