"""`python benchmarks/generators.py` on tiny transformers, tokenizers and images."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import ROOT, Run, refusal
from tiny_sampling import tiny_extractor

from var import VARPipeline
from var.hub.checkpoint import load_tokenizer

TOKENIZER = (
    *("model.scales=[1,2,4]", "model.base_width=8", "model.multipliers=[1,2]", "model.norm_groups=4"),
    *(
        "model.latent_dim=8",
        "model.vocab_size=32",
        "image_size=8",
        "batch_size=4",
        "loss.perceptual=null",
        "data.workers=0",
    ),
)
CHANGES = ("batch_size=4", "token_views=1", "model.num_classes=null")
TABLE = {"VAR": 3, "RAR": 16, "MAR": 2}  # draws of an image


def options(changes: tuple[str, ...], name: str) -> list[str]:
    return [each for change in changes for each in (name, change)]


def test_generators_at_equal_cost(
    images: Path, trained: Path, tmp_path: Path, script: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("var.evaluation.metrics.extractors.open_extractor", tiny_extractor)
    call = ("generators.py", ("generators",), "--data", images, "--out", tmp_path / "out", "--classes", "0,1")
    sizes = ("--tokenizer-steps", 2, "--kl-channels", 4, "--size", "1x16x2", "--tflop", 2e-5, "--points", 2)
    samples = ("--num-per-class", 3, "--steps", 2, "--diffusion-steps", 2, "--cfg", 0, "--cfg", 1)
    tiny = [*sizes, *samples, *options(TOKENIZER, "--tokenizer-change"), *options(CHANGES, "--change")]
    tiny += ["--init", trained, *options(tuple(TABLE), "--only")]
    written = [tmp_path / name for name in ("curves.png", "samples.png", "results.jsonl")]
    shown = [each for pair in zip(("--figure", "--samples", "--json"), written, strict=True) for each in pair]
    code, out, err = script(*call, *tiny, "--rounds", 1, *shown)
    assert code == 0, err
    header, *rows = out.splitlines()[-1 - len(TABLE) :]
    assert header.split()[:3] == ["generator", "size", "parameters"]
    assert [row.split()[:2] for row in rows] == [[name, "1x16x2"] for name in TABLE]
    for name, draws in TABLE.items():
        folder = tmp_path / "out" / f"{name}-1x16x2-0"
        found = json.loads((folder / "result.json").read_text())
        model = VARPipeline.from_pretrained(folder / "run" / "model").model
        assert found["parameters"] == sum(weight.numel() for weight in model.parameters())
        assert found["draws"] == draws
        assert found["steps"] * found["gflop a step"] == pytest.approx(2e-2, rel=0.5 / found["steps"] + 0.01)
        assert set(found["scores"]) == {"0", "1"}
    with Image.open(written[0]) as figure:
        assert figure.width > figure.height
    with Image.open(written[1]) as sheet:
        assert sheet.size == (6 * 66 - 2, 3 * 66 - 2)  # two classes of three samples
    lines = [json.loads(line) for line in written[2].read_text().splitlines()]
    assert [(line["generator"], line["size"]) for line in lines] == [(name, "1x16x2") for name in TABLE]
    assert lines[-1]["seeds"][0]["curve"] == found["curve"]
    assert set(lines[0]["seconds"]) == {"1", "16"}
    start = load_tokenizer(tmp_path / "out" / "tokenizers" / "start")
    given = load_tokenizer(trained / "tokenizer")
    assert torch.equal(start.encoder.conv_in.weight, given.encoder.conv_in.weight)
    assert not torch.equal(start.quantizer.codebook.weight, given.quantizer.codebook.weight)
    code, again, _ = script(*call, *tiny, "--rounds", 0)  # nothing is trained again
    assert code == 0
    assert [row.split()[:10] for row in again.splitlines()[-len(TABLE) :]] == [row.split()[:10] for row in rows]
    refusal(script(*call, *tiny, "--num-per-class", 4), "was measured with other options")
    refusal(script(*call, "--classes", "7"), "data.classes=[7]")
    refusal(script(*call, "--only", "GAN"), "--only 'GAN' is no generator", "VAR, raster, MAR")


@pytest.mark.parametrize(
    ("option", "part"),
    [
        (("--size", "1x16x2", "--size", "6x5"), "--size '6x5' is no DEPTHxWIDTHxHEADS"),
        (("--size", "1x15x2"), "model.width=15"),
        (("--cfg", 1, "--cfg", -1), "cfg=-1.0"),
        (("--extractor", "nothing"), "extractor 'nothing' is unknown"),
        (("--diffusion-steps", 1), "'--diffusion-steps'"),
        (("--against", "test"), "'--against'"),
        (("--kl-channels", 70_000), "'--kl-channels'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    images: Path, tmp_path: Path, script: Run, option: tuple[object, ...], part: str
) -> None:
    call = ("generators.py", ("generators",), "--data", images, "--out", tmp_path / "out", "--classes", "0,1")
    refusal(script(*call, *options(CHANGES, "--change"), *option), part)
    assert not (tmp_path / "out").exists()


def test_the_lowest_distance_over_the_seeds_chooses_the_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    best = runpy.run_path(str(ROOT / "benchmarks" / "generators_figures.py"))["best_cfg"]
    seeds = [{"0": 9.0, "1.5": 7.0, "4": 1.0}, {"0": 9.0, "1.5": 7.0, "4": 20.0}]
    assert (
        best([{"scores": {cfg: {"Frechet distance": value} for cfg, value in each.items()}} for each in seeds]) == "1.5"
    )
