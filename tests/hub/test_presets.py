"""The table of named models."""

from pathlib import Path

import pytest
import torch
from helpers import refused

from tokenizer.scales import SCALES_256, SCALES_512
from var.hub.checkpoint import load_tokenizer, load_transformer, read_config
from var.hub.presets import (
    AIM_RELEASED,
    AIM_REPOSITORY,
    AIM_SIZES,
    RELEASED,
    RELEASED_REPOSITORY,
    RELEASED_TOKENIZER,
    SHIPPED,
    best_layers,
    check_aim_name,
    check_name,
    choose_layers,
    encoder_sizes,
    own_name,
    released_file,
)
from var.models.aim import AIMConfig, Encoder, EncoderConfig
from var.models.var import VAR

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
    config = RELEASED[name]
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
    assert {name: released_file(name) for name in RELEASED} == {name: name.replace("-", "_") + ".pth" for name in PAPER}


def test_known_and_unknown_names() -> None:
    for name in (*SHIPPED, *RELEASED):
        assert check_name(name) == check_name(name.upper()) == check_name(name.replace("-", "_")) == name
    with refused("'VAR-d17' is neither a folder nor a known name (did you mean var-d16?): give"):
        check_name("VAR-d17")
    with refused("'aim-600m' is of another kind", "var-d36"):
        check_name("aim-600m")
    for name in ("var-d17", "", "cat"):
        with refused(repr(name), "var-mini, var-emoji, var-d16", "var-d36", "model folder"):
            check_name(name)


# --- AIM

# Width, blocks, heads, and the number of the encoder's parameters in millions.
AIM_TABLE = {
    "aim-tiny": (192, 6, 3, 2.8),
    "aim-small": (384, 12, 6, 21.5),
    "aim-base": (768, 12, 12, 85.4),
    "aim-600M": (1536, 24, 12, 681),
    "aim-1B": (2048, 24, 16, 1210),
    "aim-3B": (3072, 24, 24, 2720),
    "aim-7B": (4096, 32, 32, 6445),
}


@pytest.mark.parametrize("name", AIM_TABLE)
def test_sizes_of_aim(name: str) -> None:
    width, depth, heads, millions = AIM_TABLE[name]
    assert AIM_SIZES[name] == EncoderConfig(224, 14, width, depth, heads, 4.0)
    with torch.device("meta"):
        encoder = Encoder(AIM_SIZES[name])
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("name", "width", "depth", "millions"), [("ViT-B", 768, 12, 86), ("ViT-L", 1024, 24, 303)])
def test_sizes_of_the_vit(name: str, width: int, depth: int, millions: int) -> None:
    config = EncoderConfig(**encoder_sizes(name.lower()))  # type: ignore[arg-type]
    assert config == EncoderConfig(224, 16, width, depth, width // 64, 4.0)
    with torch.device("meta"):
        encoder = Encoder(config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    with refused(f"{name} has no released weights: train it"):
        check_aim_name(name)


def test_released_files_of_aim() -> None:
    assert [*AIM_SIZES] == [*AIM_TABLE]
    assert AIM_REPOSITORY == "apple/AIM"
    assert {name: released.backbone for name, released in AIM_RELEASED.items()} == {
        "aim-600M": "aim_600m_2bimgs_attnprobe_backbone.pth",
        "aim-1B": "aim_1b_5bimgs_attnprobe_backbone.pth",
        "aim-3B": "aim_3b_5bimgs_attnprobe_backbone.pth",
        "aim-7B": "aim_7b_5bimgs_attnprobe_backbone.pth",
    }
    for name, released in AIM_RELEASED.items():
        assert released.config == AIM_SIZES[name]
        assert released.repository == f"apple/{name}"
        assert released.heads == {
            layers: released.backbone.replace("backbone", f"head_{layers}_layers") for layers in ("last", "best")
        }


@pytest.mark.parametrize(("name", "best"), [("aim-600M", 14), ("aim-1B", 12), ("aim-3B", 12), ("aim-7B", 14)])
def test_layers_of_released_heads(name: str, best: int) -> None:
    config = AIM_SIZES[name]
    known = best_layers(config)
    assert choose_layers("best", config.depth, known) == known == tuple(range(best, best + 6))
    assert choose_layers("last", config.depth, known) == tuple(range(config.depth - 6, config.depth))
    assert AIMConfig(**config.to_dict(), probe_layers=known).probe_layers == known


def test_layers_of_small_ones() -> None:
    assert best_layers(AIM_SIZES["aim-tiny"]) is None
    assert choose_layers("last", 6, None) == (0, 1, 2, 3, 4, 5)
    assert choose_layers("last", 8, None) == (2, 3, 4, 5, 6, 7)
    assert choose_layers("last", 4, None) == (0, 1, 2, 3)  # there are no six
    assert choose_layers([5, 1, 3], 6, None) == (1, 3, 5)
    with refused("6 blocks", "aim-600M, aim-1B, aim-3B, aim-7B", "take last"):
        choose_layers("best", 6, None)
    with refused("[6]", "0..5"):
        choose_layers([6], 6, None)
    for unknown in ("middle", 3, [1.0], ["1"], [True], b"\1", None):
        with refused(repr(unknown), "last, best"):
            choose_layers(unknown, 6, None)  # type: ignore[arg-type]


def test_layers_where_a_probe_reads_others_than_six() -> None:
    assert choose_layers("best", 6, (1, 3)) == (1, 3)
    assert choose_layers("last", 6, (1, 3)) == (4, 5)
    assert choose_layers([0], 6, (1, 3)) == (0,)


def test_sizes_by_name_and_single_ones_in_place_of_its() -> None:
    tiny = AIM_SIZES["aim-tiny"].to_dict()
    assert encoder_sizes("aim-tiny") == encoder_sizes({"preset": "aim-tiny"}) == tiny
    given = {"preset": "aim-tiny", "image_size": 48, "depth": 3}
    assert encoder_sizes(given) == tiny | {"image_size": 48, "depth": 3}
    assert given["preset"] == "aim-tiny"  # what was given is as it was
    assert encoder_sizes({"width": 4}) == {"width": 4}
    assert encoder_sizes("AIM_tiny") == tiny
    with refused("preset='aim-tini' is unknown (did you mean aim-tiny?): take one of"):
        encoder_sizes("aim-tini")
    for unknown in ("aim-9", "", None, 3, ["aim-tiny"]):
        with refused(f"preset={unknown!r} is unknown", "aim-tiny, aim-small", "give the sizes"):
            encoder_sizes({"preset": unknown})
    with refused("preset=aim-tiny says nothing where width, depth and heads are given too"):
        encoder_sizes({"preset": "aim-tiny", "width": 8, "depth": 1, "heads": 2})


def test_known_and_unknown_names_of_aim() -> None:
    for name in AIM_RELEASED:
        assert check_aim_name(name) == check_aim_name(name.lower()) == check_aim_name(f"apple/{name}") == name
    for name, ours in (
        ("aim-600M-2B-imgs", "aim-600M"),
        ("aim-1B-5B-imgs", "aim-1B"),
        ("aim-3B-5B-imgs", "aim-3B"),
        ("AIM-7b-5b-imgs", "aim-7B"),
        ("apple/aim-7b", "aim-7B"),
        ("aim_600M", "aim-600M"),
    ):
        assert check_aim_name(name) == own_name(name) == ours
    with refused("apple/AIM on the hub holds several models", "aim-600M, aim-1B"):
        check_aim_name("apple/AIM")
    for name in ("aim-tiny", "aim-small", "aim-base"):
        with refused(name, "no released weights", "train it"):
            check_aim_name(name)
    for name in ("aim-600", "", "var-d16"):
        with refused(repr(name), "aim-600M, aim-1B, aim-3B, aim-7B"):
            check_aim_name(name)


# --- the shipped model; needs var/pretrained/var-mini


def test_the_shipped_model_is_small_and_knows_imagenets_indices() -> None:
    folder = SHIPPED["var-mini"]
    assert all(
        {"sha256", "config_sha256"} <= read_config(path.parent).keys() for path in folder.parent.glob("*/*/config.json")
    )
    assert all("quantizer_sha256" in read_config(path / "transformer") for path in SHIPPED.values())
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6
    model, vqvae = load_transformer(folder / "transformer"), load_tokenizer(folder / "tokenizer")
    assert model.config.num_classes == 1000
    assert vqvae.config.image_side in (32, 64)
    for part in (model, vqvae):
        assert all(torch.isfinite(value).all() for value in part.state_dict().values())
    assert any(path.suffix == ".md" and path.stat().st_size > 500 for path in Path(folder).iterdir())  # the model card
