"""Both stages end to end on a tiny image folder: they learn, resume bit for bit, and say what is wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import refused
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import (
    ROOT,
    TIMEOUT,
    assert_same_weights,
    environment,
    image_folder,
    mar_recipe,
    metrics,
    raster_recipe,
    run,
    stop_at,
    tokenizer_recipe,
    var_recipe,
    weights,
)
from torch import Tensor

from var.data.loader import validation_loader
from var.hub.checkpoint import WEIGHTS, load_tokenizer
from var.models.token_losses import TokenLosses
from var.pipeline import VARPipeline
from var.training.checkpointing import checkpoints, save_checkpoint
from var.training.config import Recipe
from var.training.distributed import build_accelerator
from var.training.logger import Report
from var.training.loop import train
from var.training.rng import StepRNG
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.stages.var import VARRecipe
from var.training.trainer import Trainer, build_stage
from var.training.transformer_stage import TransformerRecipe

LATENT_TOKENS = 1 + 4 + 16


@pytest.fixture(scope="module")
def var_run(images: Path, tokenizer_run: TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory) -> VARRecipe:
    """A finished run of the second stage on the first one's tokens."""
    recipe = var_recipe(
        tmp_path_factory.mktemp("runs") / "var",
        images,
        tokenizer_run.output / "model",
        steps=80,
        batch_size=8,
        data={"crop": "center"},
        token_cache=str(tmp_path_factory.mktemp("tokens")),
        label_drop=0.1,
        ema=0.5,
        validate_every=80,
        sample_every=80,
    )
    train(recipe)
    return recipe


# --- what a run does and leaves behind


def test_the_tokenizer_learns(tokenizer_run: TokenizerRecipe) -> None:
    lines = metrics(tokenizer_run.output, "train")
    assert [line["step"] for line in lines] == list(range(1, 61))
    weighted = [0.2 * line["l1"] + line["l2"] + line["vq"] for line in lines]
    assert weighted == pytest.approx([line["loss"] for line in lines], rel=1e-4)
    assert lines[-1]["loss"] < 0.4 * lines[0]["loss"]
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 3
    assert (lines[0]["lr"], lines[-1]["lr"]) == pytest.approx((0.005 * 3e-3, 0.1 * 3e-3))
    assert all(line["gradient_norm"] > 0 for line in lines)


def test_the_transformer_learns(var_run: VARRecipe) -> None:
    lines = metrics(var_run.output, "train")
    assert lines[0]["loss"] == pytest.approx(torch.tensor(16.0).log().item(), abs=0.2)  # it knows nothing yet
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["accuracy"] > 0.6


def test_what_a_run_leaves_behind(tokenizer_run: TokenizerRecipe, var_run: VARRecipe) -> None:
    output = tokenizer_run.output
    names = sorted(path.name for path in output.iterdir())
    assert names == ["best", "checkpoints", "metrics.jsonl", "model", "pictures", "recipe.yaml", "tensorboard"]
    assert [path.name for path in checkpoints(output / "checkpoints")] == ["step-00000040.pt", "step-00000060.pt"]
    assert [path.name for path in sorted((output / "pictures").iterdir())] == ["step-00000040.png", "step-00000060.png"]
    validation = metrics(output, "validation")
    assert [line["step"] for line in validation] == [40, 60]
    assert {"psnr", "l1", "l2", "vq"} < validation[0].keys()
    with Image.open(output / "pictures" / "step-00000060.png") as sheet:
        assert sheet.size == (4 * 10 - 2, 6 * 10 - 2)  # six validation images: each, then after 1, 2 and 3 scales
    with Image.open(var_run.output / "pictures" / "step-00000080.png") as sheet:
        assert sheet.size == (4 * 10 - 2, 2 * 10 - 2)  # four pictures of each of the two classes


def test_tensorboard_has_every_number_and_the_pictures(var_run: VARRecipe) -> None:
    events = EventAccumulator(str(var_run.output / "tensorboard")).Reload()
    tags = events.Tags()
    assert tags["images"] == ["sheet"]
    lines = metrics(var_run.output)
    expected = {f"{line['split']}/{name}" for line in lines for name in line if name not in ("step", "split")}
    assert set(tags["scalars"]) == expected | {"train/images_per_second"}
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([line["loss"] for line in metrics(var_run.output, "train")])


def test_validation_tells_every_scale_apart(var_run: VARRecipe) -> None:
    (line,) = metrics(var_run.output, "validation")
    lengths = {"1x1": 1, "2x2": 4, "4x4": 16}
    for name in ("loss", "accuracy"):
        mean = sum(length * line[f"{name}/{scale}"] for scale, length in lengths.items()) / LATENT_TOKENS
        assert line[name] == pytest.approx(mean, rel=1e-5)


def test_the_exported_model_is_the_average_and_draws(var_run: VARRecipe, tokenizer_run: TokenizerRecipe) -> None:
    pipe = VARPipeline.from_pretrained(var_run.output / "model", dtype="float32")
    assert pipe.classes == {0: "bar", 1: "cup"}
    drawn = pipe(["cup", 0], num=2, top_k=0)
    assert [image.size for image in drawn.images] == [(8, 8)] * 4
    state = torch.load(checkpoints(var_run.output / "checkpoints")[-1], weights_only=True)
    assert state["step"] == 80
    exported = pipe.model.state_dict()
    assert all(torch.equal(exported[name], state["ema"][name]) for name in exported)
    assert not torch.equal(exported["head.weight"], state["turns"]["model"]["model"]["head.weight"])
    trained = load_tokenizer(tokenizer_run.output / "model").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in pipe.vqvae.state_dict().items())


def test_a_finished_run_does_nothing_when_asked_again(var_run: VARRecipe) -> None:
    before, lines = weights(var_run.output / "model"), metrics(var_run.output)
    train(var_run)
    after = weights(var_run.output / "model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(var_run.output) == lines


def test_the_best_validation_is_a_number_and_the_lowest(tmp_path: Path, images: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images)
    trained = Trainer(recipe, build_accelerator(recipe))
    found = [trained.export_if_best({"l2": value}) for value in (float("nan"), 3.0, 3.0, float("nan"), 4.0, 2.0)]
    assert found == [False, True, False, False, False, True]
    assert trained.best == {"step": 0, "value": 2.0}


def test_length_in_epochs(tmp_path: Path, images: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=None, epochs=2.5)
    assert [recipe.total_steps(length) for length in (8, 9, 1)] == [5, 6, 1]


# --- randomness belongs to training alone


@pytest.mark.parametrize("recipe_of", [raster_recipe, mar_recipe])
def test_labels_are_dropped_by_the_other_generators_too(
    images: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]
) -> None:
    stage = build_stage(recipe_of(tmp_path / "r", images, label_drop=0.5))
    batch = next(iter(validation_loader(stage.validation_data, stage.recipe.data, 6, 0, 1)))
    seen: list[int] = []
    model = stage.phases[0].model
    model.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0].tolist()))
    for step in range(50):
        stage.phases[0].loss(model, batch, StepRNG(0, step, 6, range(6), torch.device("cpu")), None)
    assert 0.4 < seen.count(2) / len(seen) < 0.6  # 2 is the null class
    seen.clear()
    stage.validate(model, batch)
    assert seen == batch.labels.tolist()


def test_labels_are_dropped_in_training_only(images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path) -> None:
    recipe = var_recipe(tmp_path / "r", images, tokenizer_run.output / "model", label_drop=0.5)
    stage = build_stage(recipe)
    batch = next(iter(validation_loader(stage.validation_data, recipe.data, 6, 0, 1)))
    seen: list[list[int]] = []

    head = torch.nn.Linear(2, 16)

    def model(labels: Tensor, *_: Tensor, read: Callable[..., TokenLosses], **options: bool) -> TokenLosses:
        seen.append(labels.tolist())
        return read(head, torch.zeros(len(labels), LATENT_TOKENS, 2))

    for step in range(100):
        draws = StepRNG(0, step, 6, range(6), torch.device("cpu"))
        stage.phases[0].loss(model, batch, draws, None)  # type: ignore[arg-type]  # called like a module
    dropped = sum(row.count(2) for row in seen) / sum(map(len, seen))
    assert 0.4 < dropped < 0.6
    assert {0, 1, 2} == {label for row in seen for label in row}
    seen.clear()
    for _ in range(20):
        stage.validate(model, batch)  # type: ignore[arg-type]
    assert seen == [batch.labels.tolist()] * 20


def test_validation_is_deterministic_and_weighs_every_image_alike(
    images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path
) -> None:
    found = []
    for name, batch_size, seed in (("a", 4, 0), ("b", 6, 1), ("c", 1, 2)):
        recipe = var_recipe(
            tmp_path / name,
            images,
            tokenizer_run.output / "model",
            steps=1,
            batch_size=batch_size,
            label_drop=0.9,
            model={"drop_path": 0.9},
            optimizer={"lr": 1e-12, "weight_decay": 0},
            schedule={"warmup": 0},
        )
        torch.manual_seed(seed)
        train(recipe)
        (line,) = metrics(recipe.output, "validation")
        found.append(line)
    assert [line.pop("split") for line in found] == ["validation"] * 3
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(found[2], rel=1e-5)


def test_training_from_the_token_cache_is_training_from_images(
    images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path
) -> None:
    """Three epochs of flips and crops: with as many views as epochs the cache holds what the images would give."""
    common: dict[str, Any] = {"data": {"flip": True}, "steps": 6, "label_drop": 0.3, "ema": 0.9}
    plain = var_recipe(tmp_path / "images", images, tokenizer_run.output / "model", **common)
    cached = var_recipe(
        tmp_path / "cached",
        images,
        tokenizer_run.output / "model",
        **common,
        token_cache=str(tmp_path / "t"),
        token_views=3,
    )
    train(plain)
    train(cached)
    assert metrics(plain.output) == metrics(cached.output)
    assert_same_weights(plain.output / "model", cached.output / "model")


# --- starting from weights


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"init": "var-minni"}, "init='var-minni' does not exist"),
        ({"init": "var-mini", "freeze": ["blok"]}, "freeze has 'blok', which is no part of the model"),
        ({"init": "var-mini", "lora": {"rank": 500}}, "lora.rank=500 is above"),
        ({"sampling": {"cfg_scales": [0, 9]}}, "cfg_scales=[0, 9]"),
    ],
)
def test_what_the_model_has_not_is_refused_before_images_are_encoded(
    images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    tokens = tmp_path / "tokens"
    tokenizer = tokenizer_run.output / "model"
    with refused(told):
        train(var_recipe(tmp_path / "run", images, tokenizer, token_cache=str(tokens), **changes))
    assert not tokens.exists()


def test_init_from_a_model_begins_with_its_weights(
    images: Path, tokenizer_run: TokenizerRecipe, var_run: VARRecipe, tmp_path: Path
) -> None:
    tokenizer = tokenizer_run.output / "model"
    begun = [
        tokenizer_recipe(tmp_path / "tokenizer", images, steps=1, init=str(tokenizer)),
        var_recipe(tmp_path / "var", images, tokenizer.parent, steps=1, init=str(var_run.output)),
    ]
    for recipe, folder in zip(begun, (tokenizer, var_run.output / "model" / "transformer"), strict=True):
        run = Trainer(recipe, build_accelerator(recipe))
        ours, theirs = run.stage.phases[0].model.state_dict(), safetensors.torch.load_file(folder / WEIGHTS)
        assert all(torch.equal(ours[name], value.to(ours[name].dtype)) for name, value in theirs.items())


def test_init_tells_what_is_new_and_what_is_dropped(
    images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"steps": 1, "init": str(tokenizer_run.output / "model"), "model": {"decoder_width": 16}}
    recipe = tokenizer_recipe(tmp_path / "wide", images, **changes)
    with caplog.at_level("INFO"):
        run = Trainer(recipe, build_accelerator(recipe))
    assert "tensors not in it, random: decoder." in caplog.text
    assert "tensors of it not used: decoder." in caplog.text
    ours, theirs = run.stage.phases[0].model.state_dict(), load_tokenizer(tokenizer_run.output / "model").state_dict()
    assert torch.equal(ours["quantizer.codebook.weight"], theirs["quantizer.codebook.weight"])


def test_init_is_for_the_start_alone(images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path) -> None:
    """A run that goes on needs the folder no more."""
    folder = shutil.copytree(tokenizer_run.output / "model", tmp_path / "begin")
    train(tokenizer_recipe(tmp_path / "r", images, steps=1, init=str(folder)))
    shutil.rmtree(folder)
    train(tokenizer_recipe(tmp_path / "r", images, steps=2, init=str(folder)))


def test_init_from_what_does_not_fit_is_refused(
    images: Path, tokenizer_run: TokenizerRecipe, var_run: VARRecipe, tmp_path: Path
) -> None:
    tokenizer, var = tokenizer_run.output / "model", var_run.output / "model" / "transformer"
    for given, part in ((tmp_path / "none", "does not exist"), (var, "'VAR', a 'VQVAE' is needed")):
        with refused(part):
            train(tokenizer_recipe(tmp_path / "r", images, steps=1, init=str(given)))
    with refused("'VQVAE', a 'VAR' is needed"):
        train(var_recipe(tmp_path / "v", images, tokenizer, steps=1, init=str(tokenizer)))
    assert not checkpoints(tmp_path / "r" / "checkpoints")


def test_a_checkpoint_from_before_a_size_was_there_is_read(images: Path, tmp_path: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=1)
    train(recipe)
    (path,) = checkpoints(recipe.output / "checkpoints")
    state = torch.load(path, weights_only=True)
    del state["recipe"]["model"]["decoder_width"]
    save_checkpoint(path.parent, 1, state, keep_last=2)
    train(tokenizer_recipe(tmp_path / "r", images, steps=2))
    assert checkpoints(path.parent)[-1].name == "step-00000002.pt"


# --- resuming


@pytest.mark.parametrize(
    ("stage", "number"), [("tokenizer", signal.SIGTERM), ("var", signal.SIGINT), ("raster", signal.SIGINT)]
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    stage: str, number: int, images: Path, tokenizer_run: TokenizerRecipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    common: dict[str, Any] = {"steps": 8, "data": {"flip": True}, "ema": 0.9, "validate_every": 2, "sample_every": 3}

    def recipe(name: str) -> TokenizerRecipe | TransformerRecipe:
        if stage == "raster":
            return raster_recipe(tmp_path / name, images, **common, random_order={"start": 0.3, "end": 0.9})
        if stage == "tokenizer":
            return tokenizer_recipe(tmp_path / name, images, **common, restart_dead_codes=2, model={"dropout": 0.2})
        return var_recipe(tmp_path / name, images, tokenizer_run.output / "model", **common, model={"drop_path": 0.3})

    whole, halves = recipe("whole"), recipe("halves")
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, number)
        with pytest.raises(SystemExit) as stopped:
            train(halves)
    assert stopped.value.code == 128 + number
    assert "stopped after step 4 of 8: the same command goes on from there" in caplog.text
    assert checkpoints(halves.output / "checkpoints")[-1].name == "step-00000004.pt"
    assert metrics(halves.output, "train")[-1]["step"] == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before the run
    train(halves)
    assert metrics(whole.output) == metrics(halves.output)
    assert_same_weights(whole.output / "model", halves.output / "model")
    pictures = [[p.read_bytes() for p in sorted((r.output / "pictures").iterdir())] for r in (whole, halves)]
    assert pictures[0] == pictures[1]


def test_a_signal_in_the_last_step_ends_the_command_that_has_finished(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            train(recipe)
    assert ended.value.code == 128 + signal.SIGINT
    assert train(recipe) == recipe.output / "model"  # nothing is left to do


def test_steps_lost_with_the_newest_checkpoint_are_done_again(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, checkpoint_every=2)
    train(recipe)
    lines, kept = metrics(recipe.output), weights(recipe.output / "model")
    newest = recipe.output / "checkpoints" / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with (recipe.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')  # as power loss leaves it
    train(recipe)
    assert "is damaged" in caplog.text
    assert metrics(recipe.output) == lines
    assert all(torch.equal(value, kept[name]) for name, value in weights(recipe.output / "model").items())


def test_sigterm_to_a_process_saves_and_the_same_command_finishes(images: Path, tmp_path: Path) -> None:
    steps = 120
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=steps, log_every=1, data={"workers": 1, "flip": True})
    command = [sys.executable, str(ROOT / "train.py"), str(tmp_path / "r.yaml")]
    process = subprocess.Popen(
        [*command, f"output={tmp_path}/run"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    lines = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT
    while not (lines.exists() and lines.read_text().count("\n") >= 5):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and job schedulers do: the readers of images get it too
    _, messages = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM, messages
    assert "next: " not in messages
    *_, saved = checkpoints(tmp_path / "run" / "checkpoints")
    stopped = int(saved.stem.removeprefix("step-"))
    assert f"stopped after step {stopped} of {steps}: the same command goes on from there" in messages
    assert 5 <= stopped < steps

    again = run(ROOT / "train.py", tmp_path / "r.yaml", f"output={tmp_path}/run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {stopped}" in again.stderr
    assert f"model: {tmp_path}/run/model" in again.stdout
    train(recipe)
    assert metrics(recipe.output) == metrics(tmp_path / "run")
    assert_same_weights(recipe.output / "model", tmp_path / "run" / "model")


@pytest.mark.parametrize("change", [{"model": {"base_width": 16}}, {"model": {"vocab_size": 32}}, {"ema": 0.9}])
def test_checkpoints_of_another_recipe_are_refused(images: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    train(tokenizer_recipe(tmp_path / "r", images, steps=1))
    other = tokenizer_recipe(tmp_path / "r", images, steps=2, **change)
    with refused(f"the checkpoints in {tmp_path / 'r'} belong to another recipe", "another output"):
        train(other)


def test_a_disk_that_is_full_for_the_log(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, checkpoint_every=2)
    write = Report._write

    def full(report: Report, step: int, *arguments: Any) -> None:
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(report, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "_write", full)
        with refused(str(recipe.output), "No space left on device", "the same command goes on"):
            train(recipe)
    saved = [path.name for path in checkpoints(recipe.output / "checkpoints")]
    assert saved == ["step-00000002.pt", "step-00000004.pt"]  # the disk has room again when the error saves the step
    train(recipe)
    assert [line["step"] for line in metrics(recipe.output, "train")] == [1, 2, 3, 4, 5, 6]


# --- what cannot be read, what cannot work


def broken_copy(folder: Path, *names: str) -> Path:
    image_folder(folder)
    for name in names:
        path = folder / "train" / name
        path.write_bytes(path.read_bytes()[:50])
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_counted_and_replaced(
    tmp_path: Path, tokenizer_run: TokenizerRecipe, cached: bool
) -> None:
    data = broken_copy(tmp_path / "data", "bar/1.png", "cup/3.png")
    tokens = {"token_cache": str(tmp_path / "tokens")} if cached else {}
    model = tokenizer_run.output / "model"
    recipe = var_recipe(tmp_path / "r", data, model, batch_size=8, steps=3, **tokens)
    train(recipe)
    counts = [line["unreadable_images"] for line in metrics(recipe.output, "train")]
    assert counts[0] >= 2  # each epoch meets both, and more where a substitute is one of them
    assert counts[1] >= counts[0] + 2
    assert counts[2] >= counts[1] + 2
    strict = var_recipe(tmp_path / "s", data, model, **tokens, data={"max_unreadable": 0})
    with refused("images wanted could not be read", "data.max_unreadable=0", str(data / "train"), "repair or replace"):
        train(strict)


def test_data_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    names = [f"{name}/{index}.png" for name in ("bar", "cup") for index in range(4)]
    recipe = tokenizer_recipe(tmp_path / "r", broken_copy(tmp_path / "data", *names), data={"max_unreadable": 1})
    with refused("nor any of the substitutes tried for it could be read", "repair or replace"):
        train(recipe)
    assert not checkpoints(recipe.output / "checkpoints")


def test_classes_that_the_model_has_no_room_for(tmp_path: Path, images: Path, tokenizer_run: TokenizerRecipe) -> None:
    recipe = var_recipe(tmp_path / "r", images, tokenizer_run.output / "model", model={"num_classes": 1})
    with refused("label 1", "model.num_classes=1", "at least 2"):
        train(recipe)
    cached = recipe.model_copy(update={"token_cache": tmp_path / "tokens"})
    with refused("label 1", "model.num_classes=1", "at least 2"):
        train(cached)
    assert not (tmp_path / "tokens").exists()  # told before anything was encoded


def test_numbered_folders_keep_their_labels(tmp_path: Path, tokenizer_run: TokenizerRecipe) -> None:
    data = image_folder(tmp_path / "data")
    for split in ("train", "val"):
        (data / split / "bar").rename(data / split / "7")
        (data / split / "cup").rename(data / split / "3")
    (data / "classes.json").write_text(json.dumps({"7": {"name": "bar"}, "3": {"name": "cup"}}))
    recipe = var_recipe(tmp_path / "r", data, tokenizer_run.output / "model", steps=1, model={"num_classes": 10})
    pipe = VARPipeline.from_pretrained(train(recipe))
    assert pipe.classes == {3: "cup", 7: "bar"}
    assert pipe.model.config.num_classes == 10
    with refused("class 4", "3 cup, 7 bar"):
        pipe(4)
