"""`python benchmarks/held_out_inpainting.py`: what is hidden, what every fill leaves as it is, several models."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers import continuous_vqvae, small_var, small_vqvae
from PIL import Image
from tiny import ROOT, Run, image_folder, refusal
from tiny_sampling import models, tiny_extractor

from var import VARPipeline
from var.models.mar import MAR, MARConfig
from var.sampling.params import SamplingParams


def test_every_fill_keeps_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "held_out_inpainting.py"))
    masks = {part: script["hidden_part"](part, 8) for part in script["PARTS"]}
    assert masks["right"].sum(axis=0).tolist() == [0] * 4 + [8] * 4
    assert masks["lower"].sum(axis=1).tolist() == [0] * 4 + [8] * 4
    assert masks["top"].sum(axis=1).tolist() == [8] * 4 + [0] * 4
    assert masks["center"].sum(axis=0).tolist() == masks["center"].sum(axis=1).tolist() == [0, 0, 4, 4, 4, 4, 0, 0]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    fills = script["ways_to_fill"]({"model": VARPipeline(*models())}, masks["right"])
    results = {name: np.asarray(fill(image, 1, 0)) for name, fill in fills.items()}
    for filled in results.values():
        np.testing.assert_array_equal(filled[:, :4], pixels[:, :4])
    assert len({filled.tobytes() for filled in results.values()}) == len(results)


def test_several_models_and_masks_are_one_table(tmp_path: Path, script: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.evaluation.metrics.extractors.open_extractor", tiny_extractor)
    monkeypatch.chdir(tmp_path)
    names = {0: "bar", 1: "cup"}
    VARPipeline(small_var(), small_vqvae(), names).save_pretrained("scales")
    vqvae = continuous_vqvae()
    sizes = {"scales": vqvae.config.scales, "latent_dim": vqvae.config.latent_dim, "num_classes": 5}
    mar = MAR(MARConfig(depth=1, width=16, heads=2, head_depth=1, **sizes)).eval()
    VARPipeline(mar, vqvae, names, SamplingParams(steps=2, diffusion_steps=2)).save_pretrained("random")
    call = ("held_out_inpainting.py", ("main",), "--data", image_folder(tmp_path / "images"), "--model", "scales")
    code, out, err = script(*call, "--model", "random", "--hidden", "top", "--hidden", "center", "--num", 2)
    assert code == 0, err
    header, *rows = out.splitlines()[-len(out.splitlines()) + 1 :]
    assert header.split() == [
        "fill",
        *("top:", "PSNR", "top:", "recognized", "center:", "PSNR", "center:", "recognized"),
    ]
    filled = [row for row in rows if "in-painting, with the class" in row]
    assert [row.split(":")[0] for row in filled] == ["scales", "random"]
    assert all(row.count(" ± ") == 2 for row in rows)
    refusal(script(*call, "--hidden", "left"), "--hidden 'left'", "right, lower, center, top")
    refusal(script(*call, "--num", 1), "'--num'")  # whose PSNR has no standard error
