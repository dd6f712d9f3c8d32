"""`python benchmarks/finetuning.py` on tiny models: a row for every way to train."""

import runpy
import sys
from pathlib import Path

import pytest
from helpers import small_var, small_vqvae
from tiny import ROOT, VAR, ended, write_recipe

from var.cli.run import run
from var.pipeline import VARPipeline

WAYS = ["from scratch", "all weights", "adapters (LoRA)", "table of classes"]


def test_every_way_is_trained_on_the_same_tokens(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    VARPipeline(small_var(), small_vqvae()).save_pretrained(tmp_path / "model")
    sizes = {"depth": 2, "width": small_var().config.width, "heads": small_var().config.heads}
    given = {"init": tmp_path / "model", "tokenizer": tmp_path / "model", "model": sizes}
    recipe = write_recipe(tmp_path / "recipe.yaml", VAR | {"data": {}}, **given)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as python itself does
    script = runpy.run_path(str(ROOT / "benchmarks" / "finetuning.py"))
    options = ["--data", images, "--recipe", recipe, "--out", tmp_path / "out"]
    options += ["--seconds", 0, "--speed-steps", 2, "--validations", 1]
    monkeypatch.setattr(sys, "argv", ["finetuning.py", *map(str, options)])
    code, out, err = ended(lambda: run(script["finetuning"]), capsys)
    assert code == 0, err
    header, *rows = out.splitlines()[-5:]
    assert " ".join(header.split()) == "way steps s/step lowest loss at step last loss last accuracy"
    assert [row.split("  ")[0] for row in rows] == WAYS
    assert all(row.endswith("%") for row in rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"tokens", "run-0", "run-3", "speed-3"}
