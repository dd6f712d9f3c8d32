"""`var scaling RUN ... --out FOLDER`: tables, JSON and figures of runs that are made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import Run
from tiny_runs import WriteRun

from var.evaluation.scaling.runs import block_parameters, training_flops
from var.models.var import VARConfig


@pytest.fixture
def runs(write_run: WriteRun) -> list[Path]:
    """Five sizes whose loss is (2 N)^-0.23, whatever the step, but for some that they begin with."""
    folders = [write_run(depth, tuple(range(10, 110, 10))) for depth in (1, 2, 3, 5, 8)]
    for folder in folders:
        size = sizes(folder)
        loss = (2 * block_parameters(size) / 1e9) ** -0.23
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"loss": 2 * loss + 10 / line["step"], "loss/4x4": loss + 10 / line["step"]}
            line |= {"accuracy": 0.1, "accuracy/4x4": 0.05}
            if line["step"] == 100:
                line |= {"loss": 2 * loss, "loss/4x4": loss}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folders


def sizes(folder: Path) -> VARConfig:
    return VARConfig(**json.loads((folder / "model" / "transformer" / "config.json").read_text())["config"])


def found(results: dict[str, Any], axis: str, quantity: str) -> dict[str, Any]:
    (one,) = (finding for finding in results["findings"] if (finding["axis"], finding["quantity"]) == (axis, quantity))
    return dict(one)


def test_tables_json_and_figures(var: Run, runs: list[Path], tmp_path: Path) -> None:
    code, out, err = var("scaling", "fit", *runs, "--out", tmp_path / "laws", "--resamples", 100)
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "laws" / "scaling.json").read_text())
    law = found(results, "parameters", "loss_last")["fit"]
    assert law["law"]["alpha"] == pytest.approx(-0.23)
    assert law["law"]["beta"] == pytest.approx(2.0)
    assert law["back_test"]["run"] == "d8"
    assert law["back_test"]["measured"] == pytest.approx(law["back_test"]["predicted"]["y"])
    assert results["images_shared"] == 800
    last = results["runs"][-1]
    assert last["compute"][-1] == 800 * training_flops(sizes(runs[-1])) / 1e15
    assert len(last["metrics_sha256"]) == 64
    assert found(results, "compute", "error_all")["fit"] is None  # no run becomes better than the first point
    assert found(results, "compute", "loss_all")["fit"]["law"]["alpha"] < 0

    assert [line for line in out.splitlines() if line != line.rstrip()] == []
    assert out.index("predicted from the others") < out.index("\nlegend\n") < out.index("; L after 800 images")
    assert out.startswith("runs: PFLOP of the whole run, losses after 800 images\n")
    assert "2 x the largest" in out
    rows = [line.split() for line in out.splitlines()]
    (row,) = (row for row in rows if row[:4] == ["N", "loss", "last", "5"] and row[4] == "-0.23")
    assert row[-2:] == ["-0.23,", "2"]
    assert ["C", "error", "all", "1", "too", "few"] in rows
    assert "after 800 images" in out
    assert "are ends of their runs" in out
    assert "another tokenizer and data set" in out
    for name in ("parameters", "compute"):
        with Image.open(tmp_path / "laws" / f"{name}.png") as figure:
            pixels = np.asarray(figure.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 50
    assert sorted(path.name for path in (tmp_path / "laws").iterdir()) == [
        "compute.png",
        "parameters.png",
        "scaling.json",
    ]


def test_json_on_the_screen_is_what_is_written(var: Run, runs: list[Path], tmp_path: Path) -> None:
    code, out, _ = var("scaling", "fit", *runs[:3], "--out", tmp_path / "laws", "--resamples", 100, "--json")
    assert code == 0
    assert out == (tmp_path / "laws" / "scaling.json").read_text()
    again, same, _ = var("scaling", "fit", *runs[:3][::-1], "--out", tmp_path / "laws", "--resamples", 100, "--json")
    assert (again, same) == (0, out)


def test_runs_that_cannot_be_compared_leave_nothing(var: Run, runs: list[Path], tmp_path: Path) -> None:
    for given, part in (
        (runs[:2], "at least 3"),
        ([*runs[:2], runs[0]], "same size"),
        ([*runs[:2], tmp_path / "no"], "does not exist"),
    ):
        code, out, err = var("scaling", "fit", *given, "--out", tmp_path / "laws")
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert part in line
    assert not (tmp_path / "laws").exists()


def test_an_output_that_is_a_file(var: Run, runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "laws").write_text("mine")
    code, _, err = var("scaling", "fit", *runs, "--out", tmp_path / "laws")
    assert code == 2
    assert "is a file" in err
