"""Tiny data, recipes and pipelines made on the fly, for the tests of training, pipeline and commands."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import Tensors, continuous_vqvae, small_var, small_vqvae
from PIL import Image

from var.hub.checkpoint import save_model
from var.pipeline import VARPipeline
from var.training.config import Recipe
from var.training.recipe import load_recipe
from var.training.stages.mar import MARRecipe
from var.training.stages.raster import RasterRecipe
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.stages.var import VARRecipe
from var.training.trainer import build_stage

ROOT = Path(__file__).parents[1]
Ended = tuple[int, str, str]  # a command's exit code, output, error output
Run = Callable[..., Ended]
Graphs = list[torch.fx.GraphModule]  # what the compiler would compile
TIMEOUT = 300  # seconds: a bound on what hangs, with room for a busy machine
NAMES = {0: "red fox", 1: "tabby_cat", 3: "crane", 4: "crane"}  # of five classes; 2 was not trained on

TOKENIZER: dict[str, Any] = {
    "stage": "tokenizer",
    "batch_size": 4,
    "steps": 6,
    "model": {
        "scales": [1, 2, 4],
        "vocab_size": 16,
        "latent_dim": 4,
        "base_width": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "norm_groups": 4,
    },
    "optimizer": {"lr": 3e-3, "weight_decay": 0.01, "grad_clip": 1.0},
    "precision": "float32",
    "log_every": 1,
}
TOKENIZER_YAML = """
stage: tokenizer
output: runs/tokenizer
data: {source: some/folder}
batch_size: 64
epochs: 3
optimizer: {lr: 1e-4}
model: {scales: [1, 2, 3, 4], base_width: 64}
"""
VAR: dict[str, Any] = {
    "stage": "var",
    "batch_size": 4,
    "steps": 6,
    "model": {"depth": 2, "width": 16, "heads": 2, "drop_path": 0.1},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.01},
    "precision": "float32",
    "log_every": 1,
}
ENCODER: dict[str, Any] = {
    "batch_size": 4,
    "steps": 6,
    "model": {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "heads": 2},
    "data": {"crop": "resized", "flip": True, "jitter": {}},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.05, "grad_clip": 1.0},
    "precision": "float32",
    "log_every": 1,
}
# The stages that pre-train an encoder, and what their recipes have more.
PRETRAINING: dict[str, dict[str, Any]] = {
    "aim": {"head": {"depth": 1, "width": 8}},
    "mae": {"decoder": {"depth": 1, "width": 128, "heads": 2, "mlp_ratio": 0.5}},
    "simmim": {"mask_size": 4},
    "semaim": {"decoder": {"depth": 1, "width": 8, "heads": 2}},
    "beit": {"min_block": 2, "tokenizer": "tokenizer"},
}


def picture(label: int, index: int, side: int = 16) -> Image.Image:
    """A bar whose place and colors tell class and index; no two are the same."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., label] = 200
    pixels[(2 * index) % side :][:3] = (30 * index % 256, 255 - 25 * index % 256, 100)
    return Image.fromarray(pixels)


def image_folder(folder: Path, train: int = 4, validation: int = 3) -> Path:
    """train/ and val/ of two classes; returns the folder."""
    for split, count, first in (("train", train, 0), ("val", validation, train)):
        for label, name in enumerate(("bar", "cup")):
            (folder / split / name).mkdir(parents=True)
            for index in range(first, first + count):
                picture(label, index).save(folder / split / name / f"{index}.png")
    return folder


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the changes winning."""
    result = dict(base)
    for key, value in changes.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def write_recipe(path: Path, base: dict[str, Any], **changes: Any) -> Path:
    """A recipe file (JSON is YAML), NAME.yaml, whose output is the folder NAME beside it."""
    values = merged(base | {"output": str(path.with_suffix(""))}, changes)
    values["data"] = {"workers": 0, **values["data"]}
    path.write_text(json.dumps(values, default=str))
    return path


def tokenizer_recipe(path: Path, source: Path, **changes: Any) -> TokenizerRecipe:
    recipe = load_recipe(
        write_recipe(path.with_suffix(".yaml"), merged(TOKENIZER, {"data": {"source": str(source)}}), **changes)
    )
    assert isinstance(recipe, TokenizerRecipe)
    return recipe


def var_recipe(path: Path, source: Path, tokenizer: Path, **changes: Any) -> VARRecipe:
    base = merged(VAR, {"data": {"source": str(source)}, "tokenizer": str(tokenizer)})
    recipe = load_recipe(write_recipe(path.with_suffix(".yaml"), base, **changes))
    assert isinstance(recipe, VARRecipe)
    return recipe


def raster_recipe(path: Path, source: Path, **changes: Any) -> RasterRecipe:
    """On a tokenizer of a single scale with random weights, which is written beside the recipe."""
    tokenizer = path.parent / "single_scale"
    if not tokenizer.exists():
        save_model(tokenizer, small_vqvae(scales=(4,)))
    base = merged(VAR, {"stage": "raster", "data": {"source": str(source)}, "tokenizer": str(tokenizer)})
    recipe = load_recipe(write_recipe(path.with_suffix(".yaml"), base, **changes))
    assert isinstance(recipe, RasterRecipe)
    return recipe


def mar_recipe(path: Path, source: Path, **changes: Any) -> MARRecipe:
    """On a tokenizer of continuous tokens with random weights, which is written beside the recipe."""
    tokenizer = path.parent / "continuous"
    if not tokenizer.exists():
        save_model(tokenizer, continuous_vqvae())
    sampling = {"steps": 4, "diffusion_steps": 4}
    base = merged(VAR, {"stage": "mar", "data": {"source": str(source)}, "tokenizer": str(tokenizer)})
    base = merged(base, {"model": {"head_depth": 1, "head_width": 16}, "sampling": sampling})
    recipe = load_recipe(write_recipe(path.with_suffix(".yaml"), base, **changes))
    assert isinstance(recipe, MARRecipe)
    return recipe


def encoder_recipe(stage: str, path: Path, source: Path, **changes: Any) -> Recipe:
    """One of PRETRAINING; its tokenizer, if it has one, has random weights and is written beside the recipe."""
    base = merged(ENCODER, {"stage": stage, "data": {"source": str(source)}, **PRETRAINING[stage]})
    if "tokenizer" in base:
        base["tokenizer"] = path.parent / base["tokenizer"]
        save_model(base["tokenizer"], small_vqvae())
    return load_recipe(write_recipe(path.with_suffix(".yaml"), base, **changes))


def metrics(output: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the machine's speed."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in lines
        if split in (None, line["split"])
    ]


def weights(folder: Path) -> Tensors:
    files = sorted(folder.rglob("model.safetensors"))
    assert files
    return {f"{path.parent.name}/{k}": v for path in files for k, v in safetensors.torch.load_file(path).items()}


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def tiny_pipeline(classes: dict[int, str] | None = None) -> VARPipeline:
    """Random weights, 8 px, scales 1 2 4, five classes."""
    return VARPipeline(small_var(), small_vqvae(), classes)


def environment(**more: str) -> dict[str, str]:
    """For a process of its own: one thread, as in the tests' own process, and no network."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(*arguments: object, cwd: Path = ROOT, **env: object) -> subprocess.CompletedProcess[str]:
    """A Python command in a process of its own, which is told to end its own processes too if it takes too long."""
    command = [sys.executable, *map(str, arguments)]
    variables = environment(**{name: str(value) for name, value in env.items()})
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=cwd, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> Ended:
    """A command in this process: exit code, output, error output."""
    capsys.readouterr()
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def refusal(result: Ended, *parts: str) -> None:
    """A command must have ended with exit code 2 and one line of error output that contains all parts."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it takes that step."""
    forward = build_stage

    def build(recipe: Any) -> Any:
        stage = forward(recipe)
        after_step, done = stage.after_step, [0]

        def counted(*arguments: Any) -> bool:
            done[0] += 1
            if done[0] == step:
                os.kill(os.getpid(), number)
            return after_step(*arguments)

        monkeypatch.setattr(stage, "after_step", counted)
        return stage

    monkeypatch.setattr("var.training.trainer.build_stage", build)
