"""The tab that shows a training run: its curves and the sheets that it made, while it goes on."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from tokenizer.errors import InputError
from var.app.controls import image_gallery
from var.app.errors import in_sentences
from var.app.folders import choose_folder, inside, list_folders
from var.app.state import AppState
from var.training.curves import METRICS, is_of_whole
from var.utils.images import open_image
from var.utils.paths import is_hidden

SHEETS = "pictures"  # in a run's folder
MAX_BYTES = 2**26  # of the metrics that are read, the last ones
MAX_POINTS = 500  # of a curve
SHOWN_SHEETS, SHEET_SIDE = 4, 1024
SECONDS = 5  # between two looks

Line = dict[str, Any]


@dataclass(frozen=True)
class Curves:
    """Numbers of a run.

    Attributes:
        points: by columns: step, value, split (train or validation).
        names: of all numbers that the run has logged.
        last: the last lines in words.
    """

    points: pd.DataFrame
    names: list[str]
    last: str


def list_runs(root: Path) -> list[str]:
    """List the folders of runs in a folder."""
    return list_folders(root, lambda folder: (folder / METRICS).is_file() and inside(root, folder / METRICS))


def read_lines(file: Path) -> list[Line]:
    """Read the metrics of a run, the last MAX_BYTES of them; lines that are cut off are left out.

    Raises InputError: the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(max(os.fstat(opened.fileno()).st_size - MAX_BYTES, 0))
            content = opened.read(MAX_BYTES)
    except OSError as error:
        raise InputError(f"the numbers of this run cannot be read: {error.strerror}") from error
    found = []
    for line in content.splitlines():
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict) and isinstance(parsed.get("step"), int) and isinstance(parsed.get("split"), str):
            found.append(parsed)
    return found


def read_curves(file: Path, name: str = "loss") -> Curves:
    """Read one number of a run as curves, thinned to MAX_POINTS each."""
    lines = read_lines(file)
    points = []
    for split in sorted({line["split"] for line in lines}):
        rows = [
            (line["step"], float(line[name]), split)
            for line in lines
            if line["split"] == split and _is_number(line.get(name))
        ]
        every = math.ceil(len(rows) / MAX_POINTS) or 1
        points += rows[(len(rows) - 1) % every :: every]  # the last one among them
    names = sorted({key for line in lines for key, value in line.items() if key != "step" and _is_number(value)})
    latest = {line["split"]: line for line in lines}
    words = [f"{split}, step {line['step']}: " + _in_words(line) for split, line in latest.items()]
    return Curves(pd.DataFrame(points, columns=["step", "value", "split"]), names, "\n\n".join(words))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_words(line: Line) -> str:
    shown = {key: value for key, value in line.items() if key != "step" and is_of_whole(key) and _is_number(value)}
    return ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())


def newest_sheets(root: Path, run: Path) -> list[tuple[Image.Image, str]]:
    """Return the newest sheets of a run with their names, reduced to SHEET_SIDE; damaged ones are left out."""
    folder = run / SHEETS
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.glob("*.png") if not is_hidden(file.name) and inside(root, file))
    found = []
    for file in files[-SHOWN_SHEETS:]:
        try:
            sheet = open_image(file)
        except InputError:  # it is being written, or was removed meanwhile
            continue
        sheet.thumbnail((SHEET_SIDE, SHEET_SIDE))
        found.append((sheet, file.stem))
    return found


def state_of(run: Path) -> tuple[int, ...]:
    """Return what changes whenever a run has written something."""
    paths = [run / METRICS, run / SHEETS]
    return tuple(path.stat().st_mtime_ns for path in paths if path.exists())


def build(state: AppState) -> gr.Timer:
    """Lay out the tab and connect it; the timer that looks again, which is off at first."""
    runs = list_runs(state.runs)
    with gr.Row():
        run = gr.Dropdown(runs, value=None, label="Run", info=f"folders in {state.runs}", elem_id="train-run")
        name = gr.Dropdown(["loss"], value="loss", label="Curve", allow_custom_value=False, elem_id="train-curve")
        refresh = gr.Button("List runs again", scale=0, min_width=160)
    status = gr.Markdown(
        "choose a run" if runs else "no runs yet: `var train RECIPE` makes one", elem_id="train-status"
    )
    plot = gr.LinePlot(x="step", y="value", color="split", height=320, label="Curve", elem_id="train-plot")
    sheets = image_gallery("Sheets", "train-sheets", SHOWN_SHEETS, 320)
    seen: gr.State = gr.State(None)
    timer = gr.Timer(SECONDS, active=False)

    def show(chosen: str | None, curve: str | None) -> tuple[Any, ...]:
        if chosen is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), None
        folder = choose_folder(state.runs, list_runs(state.runs), chosen)
        now = state_of(folder)
        curves = read_curves(folder / METRICS, curve or "loss")
        names = curves.names or ["loss"]
        choice = gr.Dropdown(names, value=curve if curve in names else names[0])
        return curves.points, curves.last, newest_sheets(state.runs, folder), choice, (chosen, curve, now)

    def look_again(chosen: str | None, curve: str | None, before: Any) -> tuple[Any, ...]:
        if chosen is None:
            return (gr.skip(),) * 5
        now = state_of(choose_folder(state.runs, list_runs(state.runs), chosen))
        return (gr.skip(),) * 5 if before == (chosen, curve, now) else show(chosen, curve)

    outputs = [plot, status, sheets, name, seen]
    for listen in (run.input, name.input):
        listen(in_sentences(show), [run, name], outputs, api_visibility="private")
    timer.tick(in_sentences(look_again), [run, name, seen], outputs, show_progress="hidden", api_visibility="private")
    refresh.click(in_sentences(lambda: gr.Dropdown(list_runs(state.runs))), None, run, api_visibility="private")
    return timer
