"""The stages that pre-train an encoder: all resume, export a plain encoder, and are compiled alike."""

from pathlib import Path
from typing import Any

import pytest
from tiny import Graphs, assert_same_weights, encoder_recipe, metrics, stop_at

from var.hub.checkpoint import load_encoder
from var.training.encoder_stage import EncoderRecipe
from var.training.loop import train
from var.training.trainer import build_stage

# Stage, other keys of its recipe, layers of its model beside the encoder's that are compiled each.
KINDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "aim": ("aim", {}, ["head.mlps.0"]),
    "semaim": ("semaim", {}, ["decoder.blocks.0"]),
    "mae": ("mae", {}, ["decoder.blocks.0"]),
    "simmim": ("simmim", {}, []),
    "beit, last scale": ("beit", {}, []),
    "beit, each scale": ("beit", {"scales": "each"}, []),
}
STAGES = pytest.mark.parametrize(("name", "keys", "others"), KINDS.values(), ids=KINDS)


def recipe(name: str, path: Path, source: Path, **changes: Any) -> EncoderRecipe:
    loaded = encoder_recipe(name, path, source, **changes)
    assert isinstance(loaded, EncoderRecipe)
    return loaded


@STAGES
def test_a_stopped_run_goes_on_bit_for_bit_and_exports_its_encoder(
    name: str, keys: dict[str, Any], others: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = {"ema": 0.9, "checkpoint_every": 2, "validate_every": 3, "sample_every": 3, **keys}
    whole, halves = (recipe(name, tmp_path / run, images, **often) for run in ("whole", "halves"))
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(SystemExit):
            train(halves)
    assert metrics(halves.output, "train")[-1]["step"] == 4
    train(halves)
    assert metrics(whole.output) == metrics(halves.output)
    assert_same_weights(whole.output / "model", halves.output / "model")
    assert load_encoder(whole.output / "model").config == whole.model
    assert len(list((whole.output / "pictures").iterdir())) == 2


@STAGES
def test_blocks_are_compiled_and_sharded_each(
    name: str, keys: dict[str, Any], others: list[str], images: Path, tmp_path: Path
) -> None:
    (phase,) = build_stage(recipe(name, tmp_path / "built", images, **keys)).phases
    blocks = ["encoder.blocks.0", "encoder.blocks.1"]
    assert sorted(phase.compiled) == sorted(blocks + others)
    # SemAIM's order uses parts of the encoder's last block by themselves: they are gathered with the whole.
    assert sorted(phase.sharded) == sorted((blocks[:1] if name == "semaim" else blocks) + others)
    assert all(phase.model.get_submodule(layer) for layer in phase.compiled)


def test_compiled_blocks_train_the_same_where_parts_of_one_are_used(
    images: Path, tmp_path: Path, graphs: Graphs
) -> None:
    for way, compiled in (("eager", False), ("compiled", True)):
        train(recipe("semaim", tmp_path / way, images, steps=2, compile=compiled))
    assert graphs
    assert metrics(tmp_path / "compiled", "train") == metrics(tmp_path / "eager", "train")
