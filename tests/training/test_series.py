"""The sizes of a series, and how they are trained one after the other."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import refused
from tiny import ROOT, Run, environment, metrics, refusal, var_recipe

from var.training.recipe import load_recipe
from var.training.series import series, train_series
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.stages.var import VARRecipe


def reference(**changes: Any) -> VARRecipe:
    recipe = load_recipe(ROOT / "configs" / "tiny_imagenet_scaling.yaml")
    assert isinstance(recipe, VARRecipe)
    return recipe.model_copy(update={"model": replace(recipe.model, **changes)})


# --- sizes


def test_the_sizes_of_the_shipped_recipe() -> None:
    recipe = reference()
    found = series(recipe, [1, 2, 3, 4, 5, 6])
    assert [size.output for size in found] == [recipe.output / f"d{depth}" for depth in range(1, 7)]
    assert [(size.model.depth, size.model.width, size.model.heads) for size in found] == [
        (depth, 32 * depth, depth) for depth in range(1, 7)
    ]
    assert [size.optimizer.lr for size in found] == [round(1e-3 * 6 / depth, 8) for depth in range(1, 7)]


def test_all_else_stays_the_same() -> None:
    recipe = reference()
    assert series(recipe, [6]) == [recipe.model_copy(update={"output": recipe.output / "d6"})]
    (other,) = series(recipe, [2])
    ours, theirs = (
        size.model_dump(exclude={"output": True, "model": {"depth", "width", "heads"}, "optimizer": {"lr"}})
        for size in (recipe, other)
    )
    assert ours == theirs


def test_sizes_that_the_recipe_leaves_to_the_paper() -> None:
    (found,) = series(reference(depth=16, width=0, heads=0), [20])
    assert (found.model.width, found.model.heads) == (1280, 20)


def test_a_series_goes_up_too_and_in_the_order_asked_for() -> None:
    found = series(reference(depth=4, width=96, heads=2), [8, 2])
    assert [(size.model.depth, size.model.width, size.model.heads) for size in found] == [(8, 192, 4), (2, 48, 1)]
    assert [size.optimizer.lr for size in found] == [5e-4, 2e-3]


@pytest.mark.parametrize(
    ("depths", "parts"),
    [
        ([], ("no depths",)),
        ([2, 0], ("depth 0", "at least 1")),
        ([2, 4, 2], ("depth 2 is given twice",)),
        ([4, 3], ("depth 3 would have 1.5 heads", "model.heads=2", "model.depth=4")),
    ],
)
def test_depths_that_cannot_be(depths: list[int], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        series(reference(depth=4, width=96, heads=2), depths)


# --- training


@pytest.fixture
def recipe(tmp_path: Path, images: Path, tokenizer_run: TokenizerRecipe) -> VARRecipe:
    return var_recipe(tmp_path / "run", images, tokenizer_run.output / "model", steps=4, validate_every=2, ema=0.5)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes of the runs need."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("there")
def test_a_size_is_trained_and_gone_on_with(recipe: VARRecipe) -> None:
    (size,), told = series(recipe, [1]), []
    train_series([size], announce=told.append)
    assert told == [size.headline]
    assert [line["step"] for line in metrics(size.output, "validation")] == [2, 4]
    assert load_recipe(size.output / "recipe.yaml") == size
    before = (size.output / "metrics.jsonl").read_text()
    (size.output / "recipe.yaml").unlink()  # as of a run from before there were such files
    train_series([size], announce=told.append)
    assert load_recipe(size.output / "recipe.yaml") == size
    assert (size.output / "metrics.jsonl").read_text() == before


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[[str], str]:
    """Something to launch with that runs Python code in place of a training; its arguments are sys.argv."""

    def call(code: str) -> str:
        path = tmp_path / "launcher.py"
        path.write_text(code)
        return f"{sys.executable} '{path}'"

    return call


def test_each_run_is_launched_by_its_recipe(launcher: Callable[[str], str], tmp_path: Path) -> None:
    launch = launcher(f"""
import pathlib, sys
with open({str(tmp_path / "seen")!r}, "a") as file:
    file.write(" ".join(sys.argv[1:4]) + pathlib.Path(sys.argv[4]).read_text().replace("\\n", ";") + "\\n")
""")
    train_series(series(reference(), [1, 3]), launch, announce=lambda line: None)
    first, second = (tmp_path / "seen").read_text().splitlines()
    assert first.startswith("-m var train")
    assert "output: runs/tiny_imagenet_scaling/d1;" in first
    assert "width: 96;" in second


def test_a_run_that_fails_ends_the_series_with_its_code(launcher: Callable[[str], str]) -> None:
    told: list[str] = []
    with pytest.raises(SystemExit) as end:
        train_series(series(reference(), [1, 2]), launcher("raise SystemExit(7)"), announce=told.append)
    assert (end.value.code, len(told)) == (7, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_series_waits_for_its_run_and_goes_no_further(
    launcher: Callable[[str], str], tmp_path: Path, number: int
) -> None:
    """The run saves, which takes it some time, and leaves with 0."""
    launch = launcher(f"""
import pathlib, signal, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
pathlib.Path({str(tmp_path / "began")!r}).touch()
for _ in range(20):
    time.sleep(0.05)
    if got: break
time.sleep(0.2)
pathlib.Path({str(tmp_path / "saved")!r}).write_text(str(len(got)))
""")
    told: list[str] = []

    def stop() -> None:
        while not (tmp_path / "began").exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as end:
        train_series(series(reference(), [1, 2]), launch, announce=told.append)
    thread.join()
    assert (end.value.code, len(told)) == (128 + number, 1)
    assert (tmp_path / "saved").read_text() == str(int(number == signal.SIGTERM))
    assert signal.getsignal(number) == before


def test_what_cannot_be_launched() -> None:
    for launch, part in (("no-such-program --two", "no-such-program cannot be started"), ("a 'b", "cannot be read")):
        with refused(part):
            train_series(series(reference(), [1]), launch, announce=lambda line: None)


# --- the command


def test_the_command_passes_sizes_and_overrides_on(var: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("var.training.series.train_series", lambda *given: calls.append(given))
    config = ROOT / "configs" / "tiny_imagenet_scaling.yaml"
    code, out, err = var(
        "scaling", "train", config, "steps=9", "output=there", "--depths", "2,3", "--launch", "torchrun"
    )
    assert (code, err) == (0, "")
    assert out == "series: there/d2 there/d3\n"
    ((recipes, launch, _),) = calls
    assert launch == "torchrun"
    assert [(size.steps, size.model.width) for size in recipes] == [(9, 64), (9, 96)]


def test_a_dry_run_tells_of_each_size_and_writes_nothing(var: Run, recipe: VARRecipe, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = var("scaling", "train", recipe.output.with_suffix(".yaml"), "--depths", "1,2", "--dry-run")
    assert (code, err) == (0, "")
    assert f"{recipe.output}/d1: depth 1, width 8, 1 heads, lr 0.02" in out
    assert out.count("dry run: nothing was written") == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("tiny_imagenet_scaling", "--depths", "1,two"), ("--depths '1,two'", "1,2,4")),
        (("tiny_imagenet_scaling", "--depths", "1,1"), ("depth 1 is given twice",)),
        (("tiny_imagenet_tokenizer",), ("stage=tokenizer", "series are mar, raster, var")),
        (("none",), ("none.yaml does not exist",)),
    ],
)
def test_mistakes_are_one_line(var: Run, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refusal(var("scaling", "train", ROOT / "configs" / f"{arguments[0]}.yaml", *arguments[1:]), *parts)


def test_the_series_itself_is_started_once(var: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = var("scaling", "train", ROOT / "configs" / "tiny_imagenet_scaling.yaml")
    assert code == 2
    assert "--launch" in err
