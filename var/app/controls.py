"""Controls that several tabs have: class, sampling, seed, the settings as commands."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from tokenizer.errors import InputError, check_whole_number
from var.app.errors import in_sentences
from var.app.state import MODEL_QUEUE, AppState
from var.sampling.params import SamplingParams

NO_CLASS = -1  # choice of a dropdown
MAX_SEED = 2**31 - 1  # a browser has no larger whole numbers than 2^53


class SamplingControls(NamedTuple):
    """Controls of guidance and of what is drawn from, in the order of `read_sampling`'s arguments."""

    cfg: gr.Slider
    top_k: gr.Slider
    top_p: gr.Slider
    smooth: gr.Checkbox


def sampling_controls(state: AppState) -> SamplingControls:
    """Add sliders that begin at the model's own sampling."""
    default, vocab_size = state.pipe.choose_sampling({}), state.pipe.vqvae.config.vocab_size
    return SamplingControls(
        gr.Slider(0, 10, default.cfg, step=0.1, label="Guidance (cfg)", info="more: clearer and less varied; 0: off"),
        gr.Slider(
            0, vocab_size, min(default.top_k, vocab_size), step=1, label="top-k", info="best tokens kept; 0: all"
        ),
        gr.Slider(0, 1, default.top_p, step=0.01, label="top-p", info="probability kept; 0: all"),
        gr.Checkbox(default.smooth, label="Smooth", info="softer images"),
    )


def read_sampling(state: AppState, cfg: float, top_k: float, top_p: float, smooth: bool) -> SamplingParams:
    """Return the sampling that the controls show; a top-k at the end of its slider keeps what the model's own does.

    Raises InputError: a value out of range.
    """
    default, vocab_size = state.pipe.choose_sampling({}), state.pipe.vqvae.config.vocab_size
    kept = None if top_k == vocab_size <= default.top_k else int(top_k)
    return state.pipe.choose_sampling({"cfg": float(cfg), "top_k": kept, "top_p": float(top_p), "smooth": smooth})


def class_choices(state: AppState) -> list[tuple[str, int]]:
    """List names and labels of the classes that the model knows."""
    named = state.pipe.known_classes()
    return [(name if name == str(label) else f"{name} ({label})", label) for label, name in sorted(named.items())]


def class_dropdown(state: AppState, label: str = "Class") -> gr.Dropdown:
    """Add a choice of one class or none, found by typing."""
    return gr.Dropdown([("no class", NO_CLASS), *class_choices(state)], value=NO_CLASS, label=label)


def seed_number() -> gr.Number:
    """Add a number that fixes the random draws."""
    return whole_number(0, "Seed")


def check_number(name: str, value: int | None, at_least: int, at_most: int | None = None) -> int:
    """Return what a field of `whole_number` holds. Raises InputError: empty, or out of range."""
    if value is None:
        raise InputError(f"{name} is empty: give a whole number")
    return check_whole_number(name, value, at_least, at_most)


def whole_number(value: int, label: str) -> gr.Number:
    """Add a whole number. Its range is checked where it is used, in a sentence: gradio's own names no field."""
    return gr.Number(value, label=label, precision=0)


def image_gallery(label: str, elem_id: str, columns: int = 4, height: int | None = None) -> gr.Gallery:
    """Add a gallery of images, each as large as its row allows."""
    return gr.Gallery(
        label=label,
        show_label=False,
        format="png",
        columns=columns,
        fit_columns=False,
        object_fit="contain",
        height=height,
        elem_id=elem_id,
    )


def settings_shown(elem_id: str, open: bool = False) -> tuple[gr.Code, gr.Code]:
    """Add the settings as a command line and as Python."""
    with gr.Accordion("The same from a terminal or a script", open=open, elem_id=elem_id):
        return (
            gr.Code(language="shell", label="Command", interactive=False, lines=1, wrap_lines=True),
            gr.Code(language="python", label="Python", interactive=False, lines=1),
        )


def run_on_model(
    button: gr.Button,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    stop: gr.Button,
    state_shown: gr.components.Component,
) -> None:
    """Run a generator function when a button is clicked, after all events that need the model; `stop` ends it.

    That it waits, works or has failed is shown at one of the outputs; the others stay as they are.
    """
    event = button.click(
        in_sentences(function),
        list(inputs),
        list(outputs),
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=1,
        api_visibility="private",
        show_progress="minimal",
        show_progress_on=state_shown,
    )
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
