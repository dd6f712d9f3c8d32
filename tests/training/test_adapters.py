"""LoRA: adapters are trained in place of the transformer's weights, and merged into them on export."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LATENT, SIDES, SMALL, refused, small_var
from tiny import assert_same_weights, stop_at, tokenizer_recipe, var_recipe

from tokenizer.scales import Scales
from var.hub.checkpoint import load_transformer
from var.models.transformer import QKV
from var.models.var import VAR
from var.training.adapters import add_adapters, merge_adapters
from var.training.config import LoRAConfig
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.stages.var import VARRecipe

ALL = LoRAConfig(rank=2, alpha=4, layers=("qkv", "proj", "up", "down", "linear"))


def lora_recipe(path: Path, images: Path, trained: Path, **changes: Any) -> VARRecipe:
    base: dict[str, Any] = {"init": str(trained), "model": SMALL, "steps": 2, "lora": {"rank": 2, "dropout": 0.1}}
    return var_recipe(path, images, trained, **(base | changes))


@torch.no_grad()
def logits_of(model: VAR) -> torch.Tensor:
    inputs = torch.randn(2, Scales(SIDES).total - 1, LATENT, generator=torch.Generator().manual_seed(0))
    return model(torch.tensor([1, 3]), inputs)


@torch.no_grad()
def move_adapters(model: VAR) -> None:
    """Give the adapters values as after a training."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_new_adapters_change_nothing_and_are_all_that_is_trained() -> None:
    model = small_var()
    add_adapters(model, ALL, seed=0)
    assert torch.equal(logits_of(model), logits_of(small_var()))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if ".lora_" not in name] == ["class_embedding.weight"]
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in trained if ".lora_" in name}
    assert adapted == set(ALL.layers)


def test_merged_computes_what_the_adapters_do() -> None:
    model = small_var()
    add_adapters(model, ALL, seed=0)
    move_adapters(model)
    with torch.autocast("cpu", torch.bfloat16):  # as on export in a run of that precision
        merged = merge_adapters(model, lambda: VAR(model.config))
    assert merged.state_dict().keys() == small_var().state_dict().keys()
    assert (logits_of(model) - logits_of(small_var())).abs().max() > 1e-2
    assert (logits_of(merged) - logits_of(model)).abs().max() < 1e-5 * logits_of(model).abs().max()
    assert any(".lora_" in name for name in model.state_dict())  # the trained model stays as it is


def test_the_bias_of_queries_and_values_is_an_argument_of_their_layer() -> None:
    layer, x, bias = QKV(4, 12, bias=False), torch.randn(3, 4), torch.randn(12)
    assert torch.equal(layer(x, bias), torch.nn.functional.linear(x, layer.weight, bias))


def test_a_run_exports_plain_weights_and_goes_on_bit_for_bit(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"ema": 0.5, "sample_every": 2, "validate_every": 2}
    whole = lora_recipe(tmp_path / "whole", images, trained, **more)
    train(whole)
    model, before = load_transformer(whole.output / "model" / "transformer"), small_var()
    assert model.state_dict().keys() == before.state_dict().keys()
    moved = [name for name, value in before.state_dict().items() if not torch.equal(model.state_dict()[name], value)]
    layers = [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attention.qkv", "attention.proj")]
    layers += [f"blocks.{i}.mlp.{name}.weight" for i in (0, 1) for name in ("up", "down")]
    assert sorted(moved) == sorted(["class_embedding.weight", *layers])
    assert (whole.output / "best" / "transformer").is_dir()
    assert list((whole.output / "pictures").iterdir())

    parts = lora_recipe(tmp_path / "parts", images, trained, **more)
    with monkeypatch.context() as patched:
        stop_at(patched, 1)
        with pytest.raises(SystemExit):
            train(parts)
    with refused("lora="):
        train(lora_recipe(tmp_path / "parts", images, trained, **more, lora={"rank": 4}))
    train(parts)
    assert_same_weights(whole.output / "model", parts.output / "model")


def test_the_dry_run_counts_the_adapters(images: Path, trained: Path, tmp_path: Path) -> None:
    model = small_var()
    add_adapters(model, LoRAConfig(rank=2), seed=0)
    found = next(n for n in estimate(lora_recipe(tmp_path / "r", images, trained)).networks if n.name == "model")
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_where_it_does_not_go_it_is_refused(images: Path, trained: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"init": None}, ("lora", "give it as init")),
        ({"freeze": ["mlp"]}, ("leave out freeze",)),
        ({"lora": {"layers": ["head"]}}, ("lora.layers",)),
        ({"gradient_checkpointing": True}, ("gradient_checkpointing",)),
    ]
    for changes, parts in cases:
        with refused(*parts):
            lora_recipe(tmp_path / "r", images, trained, **changes)
    with refused("stage tokenizer does not train"):
        tokenizer_recipe(tmp_path / "r", images, init=str(trained), lora={"rank": 2})
    with refused("lora.rank=33 is above 32, the rank of the whole matrix of blocks.0.attention.qkv"):
        add_adapters(small_var(), LoRAConfig(rank=33), seed=0)
    with refused("lora.train has 'blocks.2'"):
        add_adapters(small_var(), LoRAConfig(train=("blocks.2",)), seed=0)
