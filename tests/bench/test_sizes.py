"""Sizes by name and folder, without weights."""

from pathlib import Path

import pytest
from helpers import refused, small_var, small_vqvae
from tiny_aim import small_aim

from tokenizer.scales import SCALES_512
from var.bench.sizes import VARSizes, find_sizes
from var.hub.checkpoint import save_model
from var.hub.presets import AIM_SIZES, RELEASED
from var.models.aim import AIMConfig
from var.pipeline import VARPipeline


def test_names() -> None:
    released = find_sizes("VAR_D36")
    assert isinstance(released, VARSizes)
    assert released.transformer == RELEASED["var-d36"]
    assert released.tokenizer.scales == SCALES_512.sides
    shipped = find_sizes("var-mini")
    assert isinstance(shipped, VARSizes)
    assert shipped.transformer.num_classes == 1000
    aim = find_sizes("aim-tiny")
    assert isinstance(aim, AIMConfig)
    assert (aim.encoder, aim.probe_layers) == (AIM_SIZES["aim-tiny"], (0, 1, 2, 3, 4, 5))


def test_folders(tmp_path: Path) -> None:
    model, vqvae, aim = small_var(), small_vqvae(), small_aim()
    VARPipeline(model, vqvae).save_pretrained(tmp_path / "var")
    save_model(tmp_path / "aim", aim)
    save_model(tmp_path / "encoder", aim.encoder)
    assert find_sizes(str(tmp_path / "var")) == VARSizes(vqvae.config, model.config)
    assert find_sizes(str(tmp_path / "aim")) == aim.config
    encoder = find_sizes(str(tmp_path / "encoder"))
    assert isinstance(encoder, AIMConfig)
    assert (encoder.encoder, encoder.probe_layers) == (aim.config.encoder, (0, 1, 2))
    with refused(str(tmp_path / "var" / "tokenizer"), "holds a 'VQVAE'", "a VAR"):
        find_sizes(str(tmp_path / "var" / "tokenizer"))


@pytest.mark.parametrize("name", ["aim-9", "var-d17"])
def test_unknown_names(name: str) -> None:
    with refused(repr(name), "var-d16", "aim-600M"):
        find_sizes(name)
