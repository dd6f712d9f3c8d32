"""What a run says at its start and its end."""

import logging
import shlex
from pathlib import Path

import pytest
import torch
from tiny import image_folder, tokenizer_recipe

from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.stages.base import find_stage, stage_names
from var.training.summary import warn_of_few_images
from var.utils.device import choose_dtype


def test_a_run_says_what_it_trains_and_a_finished_one_that_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tokenizer_recipe(tmp_path / "run", image_folder(tmp_path / "data"), steps=2, precision="auto")
    with caplog.at_level(logging.INFO):
        train(recipe)
    assert "data: 8 training images of 2 classes, 6 for validation" in caplog.messages
    assert any(line.startswith("parameters: ") and "of the " in line for line in caplog.messages)
    chosen = choose_dtype("auto", torch.device("cpu"))
    assert f"device: cpu, {str(chosen).removeprefix('torch.')}" in caplog.messages
    assert f"run: steps 1 to 2 of 4 images, 1 epochs in all, to {recipe.output}" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(recipe)
    longer = "; to train longer: the same command with steps=MORE"
    assert f"finished before: all 2 steps are done in {recipe.output}{longer}" in caplog.messages
    assert "device: " not in caplog.text
    assert "going on" not in caplog.text
    for steps in (1, 0):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train(recipe.model_copy(update={"steps": steps}))
        assert f"{recipe.output} is at step 2 already, beyond steps={steps}{longer}" in caplog.messages
        assert "finished" not in caplog.text


def test_a_run_of_no_steps_says_that_nothing_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tokenizer_recipe(tmp_path / "run", image_folder(tmp_path / "data"), steps=0)
    with caplog.at_level(logging.INFO):
        train(recipe)
    assert f"steps=0: nothing is trained, the model is exported as it starts, to {recipe.output}" in caplog.messages


def test_few_images_that_are_seen_often_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tokenizer_recipe(tmp_path / "run", image_folder(tmp_path / "data"))
    for images, steps, warned in ((99, 3000, True), (99, 2400, False), (100, 10**6, False)):
        caplog.clear()
        warn_of_few_images(recipe, images, steps)
        assert bool(caplog.messages) == warned
    warn_of_few_images(recipe, 3, 3000)
    assert caplog.messages[-1].startswith("only 3 training images, each seen 4,000 times: ")


def test_every_stage_has_a_command_to_go_on_with(tmp_path: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", tmp_path)
    for name in stage_names():
        assert str(recipe.output) in find_stage(name).next_command(recipe)
    assert find_stage("var").next_command(recipe) == f"python sample.py --model {recipe.output}"
    odd = recipe.model_copy(update={"output": tmp_path / "exp #1 (it's mine)"})
    for name in stage_names():  # a shell takes the path as one word
        words = shlex.split(find_stage(name).next_command(odd), comments=True)
        assert str(odd.output) in [word.removeprefix("tokenizer=") for word in words]


@pytest.mark.parametrize(
    ("sizes", "stage_2"),
    [
        ({}, "own_folder_var"),
        ({"scales": [4]}, "tiny_imagenet_raster"),
        ({"scales": [4], "regularization": "kl"}, "tiny_imagenet_mar"),
    ],
)
def test_after_a_tokenizer_comes_a_transformer_that_takes_its_tokens(
    tmp_path: Path, sizes: dict[str, object], stage_2: str
) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", tmp_path, model=sizes)
    command = find_stage("tokenizer").next_command(recipe)
    assert command == f"python train.py {stage_2} data.source={tmp_path} tokenizer={recipe.output}"
    assert find_stage(load_recipe(Path(stage_2)).stage).regularization == recipe.model.regularization  # type: ignore[attr-defined]  # a TransformerStage
