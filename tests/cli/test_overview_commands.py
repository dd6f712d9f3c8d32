"""The commands that say what there is, and draw what a run has logged: info, models, recipes, plot; --version, -h."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny import ROOT, Run, refusal

from var.training.recipe import load_recipe
from var.utils import recipes


def test_version_and_short_help(var: Run) -> None:
    code, out, err = var("--version")
    assert (code, err) == (0, "")
    assert out.startswith("var ")
    for words in ((), ("sample",), ("edit",), ("edit", "upscale"), ("recipes", "copy")):
        assert var(*words, "-h") == var(*words, "--help")


def test_completion_is_offered(var: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = var("--help")
    assert "--install-completion" in out
    assert "--show-completion" in out


def test_help_says_what_a_value_is(var: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in ("sample", "classify", "bench"):
        _, out, _ = var(command, "--help")
        for word in ("TEXT", "INTEGER", "FLOAT", "<int>", "<float>"):
            assert word not in out, command


def test_info(var: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_bytes(bytes(3 * 2**20))
    code, out, err = var("info", "--device", "cpu", "--dtype", "float32")
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {"torch", "python", "device", "dtype", "processor", "threads"} <= rows.keys()
    assert rows["cache"] == f"{tmp_path / 'cache'}, 3.0 MiB"
    assert rows["dtype"] == "float32 (as given)"
    refusal(var("info", "--device", "gpu"), "device 'gpu'")


def test_models(var: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model").symlink_to(model)
    (tmp_path / "runs" / "damaged" / "model" / "transformer").mkdir(parents=True)
    (tmp_path / "runs" / "damaged" / "model" / "transformer" / "config.json").write_text("{")
    code, out, err = var("models")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    for name, parts in {
        "var-mini": ("shipped", "32 px", "8", "research only"),
        "var-d16": ("released", "310.3 M", "256 px", "1000"),
        "var-d36": ("released", "512 px"),
        "aim-7B": ("released", "224 px"),
        "runs/mine/model": ("run", "8 px", "4"),
        "runs/damaged/model": ("run",),
    }.items():
        assert all(part in rows[name] for part in parts), rows[name]


# --- recipes


def test_a_word_that_no_recipe_has(var: Run) -> None:
    refusal(var("recipes", "list", "nothing like it"), "nothing like it", "`var recipes list`")


def test_recipes_are_listed_and_shown(var: Run) -> None:
    _, out, _ = var("recipes", "list")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows.keys() == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert rows["own_folder_tokenizer"] == "Stage 1 on your own images, 64 px"
    code, out, _ = var("recipes", "show", "mini_var")
    assert (code, out) == (0, (ROOT / "configs" / "mini_var.yaml").read_text())
    refusal(var("recipes", "show", "mini_vra"), "recipe 'mini_vra' is unknown (did you mean mini_var?)")


def test_a_copy_brings_its_bases_and_replaces_nothing(var: Run, tmp_path: Path) -> None:
    based = next(path for path in (ROOT / "configs").glob("*.yaml") if "base" in yaml.safe_load(path.read_text()))
    code, out, err = var("recipes", "copy", based.stem, "mine")
    assert (code, err) == (0, "")
    first, *bases = out.splitlines()
    assert first == f"mine/{based.name}"
    assert bases
    assert load_recipe(tmp_path / first) == load_recipe(based)
    refusal(var("recipes", "copy", based.stem, "mine"), f"{first} exists")
    refusal(var("recipes", "copy", based.stem, "one.yaml"), "give a folder, not one.yaml")
    assert var("recipes", "copy", "mini_var", "one.yaml")[:2] == (0, "one.yaml\n")


def test_a_name_is_a_recipe_where_no_file_is(var: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = ROOT / "configs" / "mini_var.yaml"
    assert load_recipe(Path("mini_var"), ["steps=3"]) == load_recipe(shipped, ["steps=3"])
    assert recipes.find_recipe(Path("configs/mini_var.yaml")) == Path("configs/mini_var.yaml")
    refusal(var("train", "mini_vra"), "recipe mini_vra does not exist (did you mean mini_var?)")
    (tmp_path / "mini_var.yaml").write_text("stage: none")
    refusal(
        var("train", "mini_var.yaml"), "recipe mini_var.yaml: stage=", "is unknown"
    )  # a file of one's own comes first
    wheel = tmp_path / "wheel"
    (wheel / "configs").mkdir(parents=True)
    (wheel / "configs" / "other.yaml").write_text("# Another one.\n")
    monkeypatch.setattr(recipes, "_HERE", wheel)
    assert recipes.recipe_names() == ["other"]
    assert recipes.describe_recipe(recipes.find_recipe(Path("other"))) == "Another one"


# --- curves


def test_plot_draws_what_a_run_has_logged(var: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": k, "split": "train", "loss": 1 / k, "lr": None} for k in (1, 2, 3)]
    lines += [{"step": 3, "split": "validation", "loss": 0.5, "accuracy": 0.1, "loss/4x4": 0.3}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 4, "spl')  # cut off by a kill
    assert var("plot", run) == (0, f"plot: {run / 'curves.png'}\n", "")
    with Image.open(run / "curves.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.convert("L").getextrema()[0] < 100
    assert var("plot", run, "--out", "a.png")[0] == 0
    refusal(var("plot", tmp_path), "is no run", "metrics.jsonl", "output folder of a run")
    (tmp_path / "recipe.yaml").write_text("stage: var")  # written first
    refusal(var("plot", tmp_path), "has no numbers yet", "first step that is logged")
    (run / "metrics.jsonl").write_text("")
    refusal(var("plot", run), "has no numbers yet")
