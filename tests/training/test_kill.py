"""Runs killed with SIGKILL at random points lose nothing: `pytest tests/training/test_kill.py --kills 200` tries
more."""

import multiprocessing
import os
import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # what a run imports late is imported here once for all processes
from tiny import (
    PRETRAINING,
    ROOT,
    TIMEOUT,
    assert_same_weights,
    encoder_recipe,
    image_folder,
    mar_recipe,
    metrics,
    tokenizer_recipe,
)

from var.training.checkpointing import checkpoints
from var.training.config import Recipe
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.stages.tokenizer import TokenizerRecipe
from var.utils.torchvision_compat import import_torchvision

import_torchvision()
import torchmetrics.functional.image  # noqa: E402, F401

STEPS = 60


def train_file(path: Path) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    train(load_recipe(path))


def recipe(path: Path, source: Path) -> TokenizerRecipe:
    """Both optimizers, the moving average, restarts and best checkpoints; a save after every step."""
    changes: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 2,
        "data": {"flip": True},
        "ema": 0.9,
        "model": {"dropout": 0.2},
        "quantizer_dropout": 0.3,
        "restart_dead_codes": 5,
        "loss": {"adversarial": {"width": 8, "layers": 1, "start": 0.2, "ramp": 0.2}},
        "checkpoint_every": 1,
        "validate_every": 20,
        "sample_every": STEPS,
        "keep_last": 3,
    }
    return tokenizer_recipe(path, source, **changes)


def newest(folder: Path) -> int:
    found = checkpoints(folder)
    return int(found[-1].stem.removeprefix("step-")) if found else 0


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """A server that has imported everything forks each run in no time; it looks for this module in PYTHONPATH alone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def kill(context: ForkServerContext, killed: Recipe, after: float) -> None:
    """Start a run of its own, or go on with it, and kill it so many seconds after its next checkpoint."""
    folder = killed.output / "checkpoints"
    before = newest(folder)
    process = context.Process(target=train_file, args=(killed.output.with_suffix(".yaml"),))
    process.start()
    deadline = time.monotonic() + TIMEOUT
    while newest(folder) == before and process.is_alive() and before < STEPS - 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(after)
    process.kill()
    process.join()
    assert newest(folder) >= before


def assert_same_run(killed: Recipe, whole: Recipe) -> None:
    """The killed run goes on to the end, and is the whole one bit for bit."""
    train(killed)  # type: ignore[arg-type]
    assert metrics(killed.output) == metrics(whole.output)
    assert_same_weights(killed.output / "model", whole.output / "model")
    assert newest(killed.output / "checkpoints") == STEPS


def test_killed_at_random_points_nothing_is_lost(
    tmp_path: Path, request: pytest.FixtureRequest, context: ForkServerContext
) -> None:
    """About a second a kill. Some hit a step, some a save: it goes on until both were seen."""
    kills = int(request.config.getoption("--kills"))
    source = image_folder(tmp_path / "images")
    whole, killed = recipe(tmp_path / "whole", source), recipe(tmp_path / "killed", source)
    began = time.monotonic()
    train(whole)
    pace = (time.monotonic() - began) / STEPS
    folder = killed.output / "checkpoints"
    chance = random.Random(0)
    torn = done = 0
    while done < kills or (torn == 0 and done < 10 * kills):
        kill(context, killed, chance.uniform(0, 2 * pace))
        done += 1
        torn += any(folder.glob("*.new"))
        if newest(folder) >= STEPS - 2:  # nearly done: begin anew further back
            for path in checkpoints(folder)[1:]:
                path.unlink()
    assert torn > 0
    assert_same_run(killed, whole)


def recipe_of(stage: str, path: Path, source: Path, **more: Any) -> Recipe:
    if stage == "mar":
        return mar_recipe(path, source, **more)
    if stage == "kl":
        return tokenizer_recipe(path, source, model={"scales": [4], "regularization": "kl"}, **more)
    return encoder_recipe(stage, path, source, **more)


@pytest.mark.parametrize("stage", ["mar", "kl", *PRETRAINING])
def test_a_killed_run_of_another_stage_loses_nothing(
    stage: str, tmp_path: Path, images: Path, context: ForkServerContext
) -> None:
    often = {"steps": STEPS, "ema": 0.9, "checkpoint_every": 1, "validate_every": 20, "sample_every": STEPS}
    whole, killed = (recipe_of(stage, tmp_path / name, images, **often) for name in ("whole", "killed"))
    train(whole)  # type: ignore[arg-type]
    kill(context, killed, after=0.02)
    assert 0 < newest(killed.output / "checkpoints") < STEPS
    assert_same_run(killed, whole)
