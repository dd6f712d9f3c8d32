"""`python benchmarks/encoder_objectives.py` and `aim_claims.py` on tiny encoders and images."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import Ended, Run, image_folder, refusal

from var.hub.checkpoint import CONFIG
from var.training.trainer import Trainer

SIZES = ("--image-size", 8, "--patch-size", 4)


@pytest.fixture(scope="module")
def enough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images for twenty neighbors."""
    return image_folder(tmp_path_factory.mktemp("data") / "images", train=10)


def claims(script: Run, *arguments: object) -> Ended:
    return script("aim_claims.py", ("data_size", "model_size"), *arguments)


def test_losses_on_parts_of_the_data(images: Path, tmp_path: Path, script: Run) -> None:
    encoder = (*SIZES, "--width", 16, "--depth", 1, "--batch-size", 2)
    parts = ("--fraction", 0.5, "--fraction", 1, "--steps", 4, "--points", 2)
    options = ("data-size", "--data", images, "--out", tmp_path / "out", *encoder, *parts)
    code, out, err = claims(script, *options, "--figure", tmp_path / "curves.png")
    assert code == 0, err
    header, *rows = (line.split() for line in out.splitlines()[-5:])
    assert header == ["images", "step", "epochs", "training", "loss", "validation", "loss"]
    assert [row[:3] for row in rows] == [["4", "2", "1"], ["4", "4", "2"], ["8", "2", "0.5"], ["8", "4", "1"]]
    with Image.open(tmp_path / "curves.png") as figure:
        assert figure.width > figure.height
    result = tmp_path / "out" / "4-0" / "result.json"
    curve: list[list[Any]] = json.loads(result.read_text())["curve"]
    assert [f"{loss:.4f}" for _, _, loss in curve] == [row[4] for row in rows[:2]]
    code, again, _ = claims(script, *options)
    assert (code, again.splitlines()) == (0, out.splitlines()[-5:])  # nothing is trained again
    code, _, err = claims(script, *options, "--no-crops")
    assert (code, err.count("was measured with other options")) == (2, 1)
    assert claims(script, "data-size", "--data", images, "--fraction", 1.5)[::2] == (
        2,
        "error: --fraction 1.5 must be above 0 and at most 1\n",
    )


def test_a_quarter_a_half_and_all_of_the_data_are_measured(images: Path, tmp_path: Path, script: Run) -> None:
    encoder = (*SIZES, "--width", 16, "--depth", 1, "--batch-size", 2, "--steps", 1, "--points", 1)
    code, out, err = claims(script, "data-size", "--data", images, "--out", tmp_path / "out", *encoder)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["2", "4", "8"]


def test_sizes_at_equal_cost(enough: Path, tmp_path: Path, script: Run) -> None:
    options = ("model-size", "--data", enough, "--out", tmp_path / "out", *SIZES, "--batch-size", 4, "--tflop", 1e-4)
    both = ("--size", "16x1x2", "--size", "32x1x2", "--probe-steps", 1, "--points", 2)
    code, out, err = claims(script, *options, *both, "--figure", tmp_path / "curves.png")
    assert code == 0, err
    small, large = (line.split() for line in out.splitlines()[-2:])
    assert small[0] == "16x1x2"
    steps, cost = zip(*((int(each[3]), float(each[4])) for each in (small, large)), strict=True)
    assert steps[0] > steps[1] > 1
    assert steps[0] * cost[0] == pytest.approx(steps[1] * cost[1], rel=0.5 / steps[1] + 0.01)
    assert (tmp_path / "curves.png").exists()
    assert "--size '16' is no WIDTHxBLOCKSxHEADS" in claims(script, *options, "--size", 16)[2]


def test_the_objectives_have_a_figure(enough: Path, tmp_path: Path, script: Run) -> None:
    for folder in enough.glob("*/*"):  # labels that are far from 0 and 1
        sparse = tmp_path / "images" / folder.parent.name / {"bar": "3", "cup": "40"}[folder.name]
        shutil.copytree(folder, sparse)
    options = ("--data", tmp_path / "images", "--tokenizer", "var-mini", "--out", tmp_path / "out")
    options = (*options, "--width", 16, "--depth", 1)
    runs = ("--only", "MAE", "--tflop", 0, "--probe-steps", 1, "--figure", tmp_path / "bars.png")
    code, out, err = script("encoder_objectives.py", ("encoder_objectives",), *options, *SIZES, *runs)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["objective", "untrained", "MAE"]
    probe = json.loads((tmp_path / "out" / "MAE-0" / "probe" / "model" / CONFIG).read_text())
    assert (probe["config"]["num_classes"], probe["classes"]) == (2, {"0": "3", "1": "40"})
    with Image.open(tmp_path / "bars.png") as figure:
        assert figure.width > figure.height


def test_what_cannot_work_is_refused_before_training(images: Path, tmp_path: Path, script: Run) -> None:
    def objectives(*arguments: object) -> Ended:
        return script("encoder_objectives.py", ("encoder_objectives",), "--data", images, *arguments)

    given = ("--out", tmp_path / "out")
    refusal(objectives(*given), "give --tokenizer")
    refusal(objectives(*given, "--only", "foo"), "'AIM, prefix', 'AIM, causal'")
    refusal(objectives(*given, "--only", "MAE", "--tflop", "inf"), "--tflop inf")
    refusal(objectives(*given, "--tokenizer", "var-mini", "--heads", 5), "multiple of heads=5")
    refusal(claims(script, "model-size", "--data", images, "--size", "64x4x2", "--size", "abc", *given), "'abc'")
    assert not (tmp_path / "out").exists()


def test_a_run_that_a_signal_stopped_is_not_measured(
    enough: Path,
    tmp_path: Path,
    script: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupted(trainer: Trainer, *micro_batches: Any) -> None:
        take_step(trainer, *micro_batches)
        os.kill(os.getpid(), signal.SIGTERM)

    take_step = Trainer.take_step
    options = ("model-size", "--data", enough, "--out", tmp_path / "out", *SIZES, "--batch-size", 4, "--tflop", 1e-4)
    options = (*options, "--size", "16x1x2", "--probe-steps", 1, "--points", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", interrupted)
        code, _, _ = claims(script, *options)
    assert (code, caplog.text.count("stopped after step 1 of")) == (128 + signal.SIGTERM, 1)
    assert not list(tmp_path.rglob("result.json"))
    code, out, err = claims(script, *options)
    assert code == 0, err
    assert "16x1x2" in out.splitlines()[-1]
