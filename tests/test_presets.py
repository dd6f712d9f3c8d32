"""The table of named models."""

from pathlib import Path

import pytest
import torch
from helpers import refused

from tokenizer.scales import SCALES_256, SCALES_512
from var.checkpoint import load_tokenizer, load_var
from var.model import VAR
from var.presets import RELEASED, RELEASED_REPOSITORY, RELEASED_TOKENIZER, SHIPPED, check_name

# Depth, image side, shared AdaLN, and the number of parameters in billions that the paper gives.
PAPER = {
    "var-d16": (16, 256, False, 0.310),
    "var-d20": (20, 256, False, 0.600),
    "var-d24": (24, 256, False, 1.0),
    "var-d30": (30, 256, False, 2.0),
    "var-d36": (36, 512, True, 2.3),
}


@pytest.mark.parametrize("name", PAPER)
def test_released_models_have_the_papers_sizes(name: str) -> None:
    depth, side, shared, billions = PAPER[name]
    config = RELEASED[name].config
    assert (config.depth, config.width, config.heads) == (depth, 64 * depth, depth)
    assert config.scales == (SCALES_256 if side == 256 else SCALES_512).sides
    assert config.shared_adaln == shared
    assert (config.vocab_size, config.latent_dim, config.num_classes) == (4096, 32, 1000)
    with torch.device("meta"):
        model = VAR(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.06)


def test_released_files() -> None:
    assert RELEASED.keys() == PAPER.keys()
    assert RELEASED_REPOSITORY == "FoundationVision/var"
    assert RELEASED_TOKENIZER == "vae_ch160v4096z32.pth"
    assert {name: preset.file for name, preset in RELEASED.items()} == {
        name: name.replace("-", "_") + ".pth" for name in PAPER
    }


def test_known_and_unknown_names() -> None:
    for name in (*SHIPPED, *RELEASED):
        check_name(name)
    for name in ("var-d17", "", "VAR-D16", "var_d16"):
        with refused(repr(name), "var-mini, var-d16", "var-d36", "model folder"):
            check_name(name)


# --- the shipped model; needs var/models/var-mini


def test_the_shipped_model_is_small_and_knows_imagenets_indices() -> None:
    folder = SHIPPED["var-mini"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6
    model, vqvae = load_var(folder / "transformer"), load_tokenizer(folder / "tokenizer")
    assert model.config.num_classes == 1000
    assert vqvae.config.image_side in (32, 64)
    for part in (model, vqvae):
        assert all(torch.isfinite(value).all() for value in part.state_dict().values())
    assert any(path.suffix == ".md" and path.stat().st_size > 500 for path in Path(folder).iterdir())  # the model card
