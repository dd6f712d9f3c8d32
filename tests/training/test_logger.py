"""What a run tells: numbers in a file and in TensorBoard, a line, pictures, and another service if asked."""

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from helpers import refused
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, merged, tokenizer_recipe

from var.training.logger import Report, check_wandb, forget_after, open_wandb, write_recipe
from var.training.recipe import load_recipe
from var.training.stages.tokenizer import TokenizerRecipe


@pytest.fixture
def recipe(tmp_path: Path) -> TokenizerRecipe:
    return tokenizer_recipe(tmp_path / "run", tmp_path)


def report_of(recipe: TokenizerRecipe, start: int = 0, is_main_process: bool = True) -> Report:
    return Report(recipe, steps=10, start=start, is_main_process=is_main_process)


def lines(recipe: TokenizerRecipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.output / "metrics.jsonl").read_text().splitlines()]


def told(line: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the machine's speed."""
    return {name: value for name, value in line.items() if name != "images_per_second"}


# --- numbers


def test_every_number_is_written_as_a_line(recipe: TokenizerRecipe) -> None:
    with report_of(recipe) as report:
        report.step(1, {"loss": 0.5, "lr": 1e-3}, {})
        report.step(2, {"loss": 0.25, "lr": 2e-3}, {"skipped_steps": 3})
        report.validation(2, {"l2": 0.125})
    train, with_count, validation = lines(recipe)
    assert told(train) == {"step": 1, "split": "train", "loss": 0.5, "lr": 1e-3}
    assert told(with_count) == {"step": 2, "split": "train", "loss": 0.25, "lr": 2e-3, "skipped_steps": 3}
    assert validation == {"step": 2, "split": "validation", "l2": 0.125}
    assert train["images_per_second"] > 0


def test_lines_are_on_disk_while_the_run_goes_on(recipe: TokenizerRecipe) -> None:
    with report_of(recipe) as report:
        report.step(1, {"loss": 0.5}, {})
        assert len(lines(recipe)) == 1


def test_tensorboard_has_the_numbers_and_the_pictures(recipe: TokenizerRecipe) -> None:
    sheet = Image.new("RGB", (6, 4), (255, 0, 0))
    with report_of(recipe) as report:
        report.step(1, {"loss": 0.5}, {"unreadable_images": 2})
        report.validation(1, {"psnr": 20.0})
        report.sheet(1, sheet)
    events = EventAccumulator(str(recipe.output / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {
        "train/loss",
        "train/images_per_second",
        "train/unreadable_images",
        "validation/psnr",
    }
    assert [(entry.step, entry.value) for entry in events.Scalars("validation/psnr")] == [(1, 20.0)]
    assert [(entry.step, entry.width, entry.height) for entry in events.Images("sheet")] == [(1, 6, 4)]
    with Image.open(recipe.output / "pictures" / "step-00000001.png") as written:
        assert written.tobytes() == sheet.tobytes()


def test_only_the_process_that_speaks_leaves_anything(
    recipe: TokenizerRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with report_of(recipe, is_main_process=False) as report:
        report.step(1, {"loss": 0.5}, {"skipped_steps": 1})
        report.validation(1, {"l2": 0.5})
    assert not recipe.output.exists()
    assert capsys.readouterr().out == ""


# --- the recipe

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PATCHES = {"discriminator": "patchgan", "layers": 2}
FEATURES = {"discriminator": "features", "network": "dino-vits16", "weights": "w.pth"}


def test_a_run_writes_its_recipe_at_its_start(recipe: TokenizerRecipe) -> None:
    with report_of(recipe):
        assert load_recipe(recipe.output / "recipe.yaml") == recipe
    longer = recipe.model_copy(update={"steps": 50})
    with report_of(longer, start=6):  # the run goes on with another length
        assert load_recipe(recipe.output / "recipe.yaml") == longer
    assert not list(recipe.output.glob(".*"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_comes_back_as_it_was(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text()
    assert "max_skipped: 20" in text  # a default that no recipe names
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("adversarial", [PATCHES, FEATURES, {}])
def test_a_discriminator_comes_back_without_the_keys_of_the_other_kind(
    adversarial: dict[str, Any], tmp_path: Path
) -> None:
    loss = {"loss": {"adversarial": merged({"start": 0.5}, adversarial)}}
    recipe = tokenizer_recipe(tmp_path / "run", tmp_path, **loss)
    write_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert "ramp: 0.02" in (tmp_path / "again.yaml").read_text()


@pytest.mark.parametrize(
    "text", ["${data.source}", "1e5", "007", "yes", "null", "~", "a: b", "#x", "0x1F", "12:30:00", "ä"]
)
def test_text_stays_text(text: str, recipe: TokenizerRecipe, tmp_path: Path) -> None:
    named = recipe.model_copy(update={"wandb_project": text, "output": tmp_path / text})
    write_recipe(named, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == named


# --- the line


def test_a_line_tells_what_a_person_wants_to_know(recipe: TokenizerRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    with report_of(recipe) as report:
        report.step(3, {"loss": 0.123456, "lr": 1.0}, {"skipped_steps": 2, "unreadable_images": 5})
        report.validation(3, {"psnr": 20.5, "l2": 0.25})
    step, validation = capsys.readouterr().out.splitlines()
    assert step.startswith("step 3/10  loss 0.1235  ")
    assert " images/s  2 skipped steps  5 unreadable images  " in step
    assert step.endswith(" left")
    assert validation == "step 3  validation  psnr 20.5000  l2 0.2500"


def test_a_long_silence_is_broken_by_the_number_of_the_step(
    recipe: TokenizerRecipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with report_of(recipe) as report:
        report.advance(1)
        monkeypatch.setattr("var.training.logger.PRINTED_EVERY", 0.0)
        report.advance(2)
        report.advance(3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["step 2/10", "step 3/10"]
    assert all(line.endswith(" left") for line in lines)


# --- runs that go on


def test_lines_of_steps_that_will_be_done_again_are_dropped(recipe: TokenizerRecipe) -> None:
    with report_of(recipe) as report:
        for step in (1, 2, 3):
            report.step(step, {"loss": float(step)}, {})
            report.validation(step, {"l2": float(step)})
    time.sleep(1.1)  # TensorBoard reads its files by the second that their names tell
    with report_of(recipe, start=2) as report:
        report.step(3, {"loss": 30.0}, {})
    assert [(line["step"], line["split"]) for line in lines(recipe)] == [
        (1, "train"),
        (1, "validation"),
        (2, "train"),
        (2, "validation"),
        (3, "train"),
    ]
    assert lines(recipe)[-1]["loss"] == 30.0
    events = EventAccumulator(str(recipe.output / "tensorboard"))
    events.Reload()
    assert [(entry.step, entry.value) for entry in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.mark.parametrize("torn", ['{"step": 2, "spl', "", "7", "[1]", '{"loss": 1}', '{"step": null}'])
def test_a_torn_line_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "loss": 0.5}\n'
    path.write_text(good + torn)
    forget_after(path, 5)
    assert path.read_text() == good
    assert list(tmp_path.iterdir()) == [path]


def test_there_may_be_nothing_to_forget(tmp_path: Path) -> None:
    forget_after(tmp_path / "metrics.jsonl", 3)
    assert not any(tmp_path.iterdir())


def test_what_is_due_after_the_last_step_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        json.dumps({"step": step, "split": split}) + "\n" for step in (2, 3, 4) for split in ("train", "validation")
    ]
    path.write_text("".join(lines))
    forget_after(path, 3, due=("validation", "sheet"))
    assert path.read_text() == "".join(lines[:3])


def test_an_output_that_cannot_be_made(recipe: TokenizerRecipe) -> None:
    recipe.output.write_text("a file")
    with refused(f"output='{recipe.output}'", "File exists", "another folder"):
        report_of(recipe)


# --- Weights & Biases


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.defined: list[tuple[str, str]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def finish(self, exit_code: int) -> None:
        assert self.exit_code is None
        self.exit_code = exit_code


class FakeWandb(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.run = FakeRun()
        self.asked: list[dict[str, Any]] = []

    def init(self, **asked: Any) -> FakeRun:
        self.asked.append(asked)
        return self.run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def with_wandb(recipe: TokenizerRecipe) -> TokenizerRecipe:
    return recipe.model_copy(update={"wandb_project": "scales"})


def test_without_being_asked_nothing_is_sent(recipe: TokenizerRecipe, wandb: FakeWandb) -> None:
    with report_of(recipe) as report:
        report.step(1, {"loss": 0.5}, {})
    assert wandb.asked == []


def test_numbers_are_sent_if_asked_and_written_all_the_same(recipe: TokenizerRecipe, wandb: FakeWandb) -> None:
    with report_of(with_wandb(recipe)) as report:
        report.step(3, {"loss": 0.5}, {"skipped_steps": 1})
        report.validation(3, {"l2": 0.25})
        assert wandb.run.exit_code is None
    train, validation = wandb.run.logged
    rate = train.pop("train/images_per_second")
    assert rate > 0
    assert train == {"step": 3, "train/loss": 0.5, "train/skipped_steps": 1}
    assert validation == {"step": 3, "validation/l2": 0.25}
    assert wandb.run.defined == [("*", "step")]
    assert wandb.run.exit_code == 0
    assert [line["split"] for line in lines(recipe)] == ["train", "validation"]


def test_a_run_that_fails_is_told_so(recipe: TokenizerRecipe, wandb: FakeWandb) -> None:
    with pytest.raises(KeyError), report_of(with_wandb(recipe)):
        raise KeyError
    assert wandb.run.exit_code == 1


def test_only_one_process_sends(recipe: TokenizerRecipe, wandb: FakeWandb) -> None:
    with report_of(with_wandb(recipe), is_main_process=False) as report:
        report.step(1, {"loss": 0.5}, {})
    assert wandb.asked == []


def test_a_resumed_run_is_the_same_one_and_another_output_another(
    recipe: TokenizerRecipe, wandb: FakeWandb, tmp_path: Path
) -> None:
    for each in (recipe, recipe, tokenizer_recipe(tmp_path / "other", tmp_path)):
        open_wandb(with_wandb(each))
    first, again, other = wandb.asked
    assert first == again
    assert (first["project"], first["name"], first["resume"]) == ("scales", "run", "allow")
    assert first["dir"] == str(recipe.output)
    assert first["id"] != other["id"]
    assert json.loads(json.dumps(first["config"]))["batch_size"] == recipe.batch_size


def test_a_missing_package_is_told(recipe: TokenizerRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with refused("wandb_project='scales'", "pip install 'var-next-scale[wandb]'", "wandb_project=null"):
        check_wandb(with_wandb(recipe))
