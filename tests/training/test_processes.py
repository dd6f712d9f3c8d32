"""Several processes and micro-batches train like one: about 10 s for each pair of processes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import largest_difference
from tiny import (
    PRETRAINING,
    ROOT,
    encoder_recipe,
    mar_recipe,
    metrics,
    raster_recipe,
    run,
    tokenizer_recipe,
    var_recipe,
    weights,
)

from var.training.checkpointing import checkpoints
from var.training.config import Recipe
from var.training.distributed import SHARDS_ON_CPU
from var.training.loop import train
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.stages.var import VARRecipe

# All that is random in training, all that is kept between steps, and both turns of the adversarial stage.
GAN: dict[str, Any] = {
    "batch_size": 8,
    "steps": 6,
    "data": {"flip": True, "validation_images": 5},
    "ema": 0.5,
    "quantizer_dropout": 0.5,
    "restart_dead_codes": 2,
    "usage_window": 2,
    "validate_every": 3,
    "loss": {
        "adversarial": {"width": 8, "layers": 1, "start": 0.3, "ramp": 0.3, "r1": 0.01, "r1_every": 2, "augment": 0.5}
    },
}
# A tokenizer of continuous tokens has none of the codebook's options.
KL: dict[str, Any] = {
    "quantizer_dropout": 0.0,
    "restart_dead_codes": None,
    "model": {"scales": [4], "regularization": "kl"},
}
PATHS: dict[str, Any] = {
    "batch_size": 8,
    "steps": 6,
    "data": {"flip": True, "validation_images": 5},
    "ema": 0.5,
    "label_drop": 0.4,
    "model": {"drop_path": 0.4},
    "validate_every": 3,
}
ENCODER: dict[str, Any] = {"batch_size": 8, "data": {"validation_images": 5}, "ema": 0.5, "validate_every": 3}
NAMES = ("tokenizer", "kl", "var", "raster", "mar", *PRETRAINING)
STAGES = pytest.mark.parametrize("stage", NAMES)


def recipe_of(stage: str, path: Path, source: Path, tokenizer: TokenizerRecipe, **more: Any) -> Recipe:
    if stage == "tokenizer":
        return tokenizer_recipe(path, source, **{**GAN, **more})
    if stage == "kl":
        return tokenizer_recipe(path, source, **{**GAN, **KL, **more})
    if stage in PRETRAINING:
        return encoder_recipe(stage, path, source, **{**ENCODER, **more})
    if stage == "mar":
        return mar_recipe(path, source, **{**PATHS, **more})
    if stage == "raster":
        return raster_recipe(path, source, **{**PATHS, "random_order": {"start": 0.2, "end": 0.9}, **more})
    return var_recipe(path, source, tokenizer.output / "model", **{**PATHS, **more})


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


def torchrun(recipe: Recipe, **environment: str) -> None:
    path = recipe.output.with_suffix(".yaml")
    done = run(*TORCHRUN, ROOT / "train.py", path, cwd=path.parent, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model: ") == 2


def launched(script: str, folder: Path, *recipes: Path) -> subprocess.CompletedProcess[str]:
    """Run a script, written into the folder, on two processes with the recipes' files as its arguments."""
    (folder / "script.py").write_text(script)
    return run(*TORCHRUN, "script.py", *recipes, cwd=folder)


def assert_alike(one: Recipe, other: Recipe, steps: int = 6) -> None:
    """The same numbers at every step and the same weights, to float tolerance."""
    for split in ("train", "validation"):
        ours, theirs = metrics(one.output, split), metrics(other.output, split)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.pop("split") == b.pop("split")
            assert a == pytest.approx(b, rel=2e-3, abs=2e-4)
    assert len(metrics(one.output, "train")) == steps
    ours, theirs = weights(one.output / "model"), weights(other.output / "model")
    assert ours.keys() == theirs.keys()
    assert max(largest_difference(ours[name], theirs[name]) for name in ours) < 2e-3


@STAGES
def test_accumulated_gradients_are_those_of_the_large_batch(
    stage: str, images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path
) -> None:
    """Three micro-batches of 3, 3 and 2 images, in both turns of the adversarial stage."""
    whole = recipe_of(stage, tmp_path / "whole", images, tokenizer_run)
    parts = recipe_of(stage, tmp_path / "parts", images, tokenizer_run, accumulate=3)
    train(whole)  # type: ignore[arg-type]
    train(parts)  # type: ignore[arg-type]
    assert_alike(whole, parts)


@pytest.fixture(scope="module")
def on_two_processes(
    images: Path, tokenizer_run: TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Recipe]:
    """A finished run of each stage, all of one pair of processes, whose start takes longer than a run."""
    folder = tmp_path_factory.mktemp("two")
    recipes = {stage: recipe_of(stage, folder / stage, images, tokenizer_run, accumulate=2) for stage in NAMES}
    script = """
import sys
from pathlib import Path
from var.training import loop
from var.training.recipe import load_recipe
loop.destroy_process_group = lambda: None  # the next run takes it
for recipe in sys.argv[1:]:
    loop.train(load_recipe(Path(recipe)))
"""
    done = launched(script, folder, *(recipe.output.with_suffix(".yaml") for recipe in recipes.values()))
    assert done.returncode == 0, done.stderr[:6000]
    return recipes


@STAGES
def test_two_processes_train_like_one(
    stage: str,
    images: Path,
    tokenizer_run: TokenizerRecipe,
    on_two_processes: dict[str, Recipe],
    tmp_path: Path,
) -> None:
    one = recipe_of(stage, tmp_path / "one", images, tokenizer_run)
    train(one)  # type: ignore[arg-type]
    assert_alike(one, on_two_processes[stage])


@pytest.mark.skipif(not SHARDS_ON_CPU, reason="this PyTorch does not shard on CPUs")
def test_a_sharded_encoder_orders_and_predicts_as_a_whole_one(images: Path, tmp_path: Path) -> None:
    """The order of stage semaim needs parts of a block by themselves, which must be there."""
    one, two = (encoder_recipe("semaim", tmp_path / name, images, ema=0.5, validate_every=3) for name in ("one", "two"))
    train(one)  # type: ignore[arg-type]
    torchrun(two, ACCELERATE_USE_FSDP="true")
    assert_alike(one, two)


@pytest.mark.skipif(not SHARDS_ON_CPU, reason="this PyTorch does not shard on CPUs")
def test_sharded_parameters_and_a_run_that_moves(images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path) -> None:
    """A run of six steps equals one that goes on sharded (FSDP2), then replicated (DDP), then on one process again."""
    whole = recipe_of("var", tmp_path / "whole", images, tokenizer_run, validate_every=10)
    assert isinstance(whole, VARRecipe)
    train(whole)
    moved = recipe_of(
        "var", tmp_path / "moved", images, tokenizer_run, validate_every=10, checkpoint_every=1, keep_last=9
    )
    assert isinstance(moved, VARRecipe)

    def stop_after(step: int) -> None:
        """Leave the run as it was after that step, as if it had been killed there."""
        for path in checkpoints(moved.output / "checkpoints"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    train(moved)
    stop_after(1)
    torchrun(moved, ACCELERATE_USE_FSDP="true")
    assert_alike(whole, moved)
    stop_after(3)
    torchrun(moved)
    assert_alike(whole, moved)
    stop_after(5)
    train(moved)
    assert_alike(whole, moved)
    plain = torch.load(checkpoints(whole.output / "checkpoints")[-1], weights_only=True)
    carried = torch.load(checkpoints(moved.output / "checkpoints")[2], weights_only=True)  # written by shards
    for part in ("model", "optimizer"):
        assert carried["turns"]["model"][part].keys() == plain["turns"]["model"][part].keys()
    assert carried["ema"].keys() == plain["ema"].keys()
    assert json.loads((moved.output / "model" / "transformer" / "config.json").read_text())


@pytest.mark.parametrize("error", ["ValueError", "InputError"])
def test_an_error_on_one_process_ends_all(error: str, images: Path, tmp_path: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=10_000, data={"workers": 1}, checkpoint_every=2)
    script = f"""
import os
from tokenizer.errors import InputError
from var.cli.train import main
from var.training.trainer import Trainer
forward = Trainer.take_step
def take_step(self, batches):
    if self.step == 3 and os.environ["RANK"] == "1":
        raise {error}("out of something")
    return forward(self, batches)
Trainer.take_step = take_step
main()
"""
    done = launched(script, tmp_path, recipe.output.with_suffix(".yaml"))
    assert done.returncode == 1
    assert "out of something" in done.stderr
    assert "lost: 1 step since step 2, the last that was saved; the same command goes on from there" in done.stderr


@pytest.mark.parametrize("what", ["Trainer.preview", "Report.validation"])
def test_an_error_of_the_main_process_alone_saves_the_last_step(what: str, images: Path, tmp_path: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=100, validate_every=3, sample_every=3, checkpoint_every=50)
    script = f"""
import os
from var.cli.train import main
from var.training.logger import Report
from var.training.trainer import Trainer
whole = {what}
def part(*arguments):
    if os.environ["RANK"] == "0":
        raise ValueError("out of something")
    return whole(*arguments)
{what} = part
main()
"""
    done = launched(script, tmp_path, recipe.output.with_suffix(".yaml"))
    assert done.returncode == 1
    assert "ValueError: out of something" in done.stderr
    assert done.stderr.count("step 3 was saved: the same command goes on from there") == 1
    assert "lost" not in done.stderr
    assert [path.name for path in checkpoints(recipe.output / "checkpoints")] == ["step-00000003.pt"]


def test_a_batch_that_does_not_divide(images: Path, tmp_path: Path) -> None:
    from helpers import refused

    with refused("batch_size=4", "accumulate=5", "at least 5"):
        train(tokenizer_recipe(tmp_path / "r", images, batch_size=4, accumulate=5))
