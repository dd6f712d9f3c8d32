"""`python benchmarks/sampling_options.py` with a tiny model and an extractor that needs no weights."""

import runpy
import sys
from pathlib import Path

import pytest
from helpers import noise, small_var, small_vqvae
from tiny import NAMES, ROOT, ended, tiny_pipeline
from tiny_sampling import tiny_extractor

from var.cli.run import run
from var.pipeline import VARPipeline


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    (tmp_path / "reference").mkdir()
    for seed in range(6):
        noise(8, 8, seed).save(tmp_path / "reference" / f"{seed}.png")
    return tmp_path / "reference"


def test_a_row_for_every_option(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {1: "goldfish", 207: "golden retriever", 999: "toilet tissue"}
    VARPipeline(small_var(num_classes=1000), small_vqvae(), names).save_pretrained(tmp_path / "model")
    script = runpy.run_path(str(ROOT / "benchmarks" / "sampling_options.py"))
    monkeypatch.setitem(script["main"].__globals__, "open_extractor", tiny_extractor)
    options = ["--reference", reference, "--model", tmp_path / "model", "--refiner", tmp_path / "model"]
    options += ["--num-per-class", 2, "--rounds", 1, "--out", tmp_path / "sets"]
    monkeypatch.setattr(sys, "argv", ["sampling_options.py", *map(str, options)])
    code, out, err = ended(lambda: run(script["main"]), capsys)
    assert code == 0, err
    table = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert table[0] == ["option", "time", "recognized", "Frechet distance"]
    assert table[1][:2] == ["the model's own", "1.00"]
    rows = {name: (time, recognized, distance) for name, time, recognized, distance in table[1:]}
    assert {"no guidance", "cfg_scales=0:1", "temperature=0.9", "refiner from scale 2"} <= rows.keys()
    assert all(recognized.endswith("%") for _, recognized, _ in rows.values())
    assert rows["refiner from scale 1"][1:] == rows["the model's own"][1:]  # the same model
    assert len({distance for *_, distance in rows.values()}) > 3


def test_a_reference_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_pipeline(NAMES).save_pretrained(tmp_path / "model")
    script = runpy.run_path(str(ROOT / "benchmarks" / "sampling_options.py"))
    monkeypatch.setattr(sys, "argv", ["x", "--reference", str(tmp_path / "none"), "--model", str(tmp_path / "model")])
    code, out, err = ended(lambda: run(script["main"]), capsys)
    assert (code, out) == (2, "")
    assert "none" in err
