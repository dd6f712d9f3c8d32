"""Parts of a model by name or kind: frozen ones do not move, and each has its share of the learning rate."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import SMALL, refused, small_var, small_vqvae
from tiny import VAR, assert_same_weights, merged, stop_at, tokenizer_recipe, var_recipe, write_recipe

from var.hub.checkpoint import WEIGHTS
from var.training.config import OptimizerConfig
from var.training.distributed import build_accelerator
from var.training.ema import EMA
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.optimizer import build_optimizer
from var.training.parts import find_lr_factors, freeze, match_part
from var.training.recipe import load_recipe
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.trainer import Trainer


def decoder_recipe(path: Path, images: Path, trained: Path, **changes: Any) -> TokenizerRecipe:
    """Tuning of the decoder alone."""
    sizes = small_vqvae().config.to_dict()
    more = {"init": str(trained), "freeze": ["encoder", "quant_conv", "quantizer"], "model": sizes, "steps": 2}
    return tokenizer_recipe(path, images, **(more | changes))


# --- names


@pytest.mark.parametrize(
    ("part", "name", "matches"),
    [
        ("blocks.0", "blocks.0.mlp.up.weight", True),
        ("blocks.0", "blocks.01.mlp.up.weight", False),
        ("blocks.1", "blocks.10.mlp.up.weight", False),
        ("mlp", "blocks.3.mlp.up.weight", True),
        ("encoder", "encoder.conv_in.weight", True),
        ("quant_conv", "post_quant_conv.weight", False),
        ("quantizer.codebook", "quantizer.codebook.weight", True),
        ("quantizer.phi", "quantizer.codebook.weight", False),
        ("*bias", "blocks.0.attention.q_bias", True),
        ("*bias", "blocks.0.attention.proj.weight", False),
        ("blocks.*.adaln", "blocks.7.adaln.linear.bias", True),
        ("blocks.[01].mlp", "blocks.1.mlp.up.bias", True),
        ("a.b.c", "a.b", False),
    ],
)
def test_a_part_is_a_pattern_for_consecutive_components(part: str, name: str, matches: bool) -> None:
    assert match_part(part, name) == matches


def test_the_last_factor_that_matches_counts() -> None:
    model = small_var()
    factors = find_lr_factors(model, {"blocks": 0.1, "blocks.1": 0.5, "*bias": 0.2})
    assert factors["head.weight"] == 1
    assert factors["blocks.0.mlp.up.weight"] == 0.1
    assert factors["blocks.1.mlp.up.weight"] == 0.5
    assert factors["blocks.1.mlp.up.bias"] == factors["head.bias"] == 0.2


def test_what_is_no_part_and_what_leaves_nothing_is_refused() -> None:
    with refused("freeze has 'blocks.2'", "class_embedding", "adaln", "v_bias"):
        freeze(small_var(), ["blocks.2"])
    with refused("train_only has 'decoder'"):
        freeze(small_var(), [], ["decoder"])
    with refused("optimizer.lr_factors has 'atention'", "attention"):
        build_optimizer(small_var(), OptimizerConfig(lr=1.0, lr_factors={"atention": 0.1}), ())
    with refused("leave nothing to train"):
        freeze(small_var(), ["*"])


# --- a step


def step(model: torch.nn.Module, **config: Any) -> dict[str, torch.Tensor]:
    """Return how far each parameter moved in a step whose gradients are 1."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.01, weight_decay=0.0, **config), ())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def test_the_rate_of_a_part_is_scaled() -> None:
    moved = step(small_var(), lr_factors={"blocks": 0.5, "blocks.1": 0.25})
    for name, distance in moved.items():
        factor = 0.25 if name.startswith("blocks.1.") else 0.5 if name.startswith("blocks.") else 1.0
        torch.testing.assert_close(distance, torch.full_like(distance, 0.01 * factor), rtol=1e-3, atol=1e-6)


def test_frozen_parts_are_not_in_the_optimizer_and_the_average_keeps_their_bits() -> None:
    model = small_var()
    with torch.no_grad():
        model.class_embedding.weight.fill_(-0.0)  # which a + w * (b - a) would turn into 0.0
    freeze(model, ["class_embedding", "mlp"])
    ema = EMA(model, 0.9)
    moved = step(model)
    ema.update(model, 0)
    for name, distance in moved.items():
        assert bool(distance.any()) == (not ("mlp" in name or "class_embedding" in name)), name
    averaged = dict(ema.model.named_parameters())
    assert averaged["class_embedding.weight"].signbit().all()
    assert not torch.equal(averaged["head.weight"], small_var().head.weight)


# --- runs


def test_a_decoder_is_tuned_alone_and_goes_on_bit_for_bit(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = decoder_recipe(tmp_path / "whole", images, trained, ema=0.5)
    with caplog.at_level("INFO"):
        train(whole)
    assert re.search(r"trained: [\d,]+ of [\d,]+ parameters \(\d+%\)", caplog.text)
    ours = safetensors.torch.load_file(whole.output / "model" / WEIGHTS)
    for name, value in small_vqvae().state_dict().items():
        kept = name.startswith(("encoder.", "quant_conv.", "quantizer."))
        assert torch.equal(ours[name], value) == kept, name

    parts = decoder_recipe(tmp_path / "parts", images, trained, ema=0.5)
    with monkeypatch.context() as patched:
        stop_at(patched, 1)
        with pytest.raises(SystemExit):
            train(parts)
    caplog.clear()
    with refused("freeze="):
        train(decoder_recipe(tmp_path / "parts", images, trained, ema=0.5, freeze=["encoder"]))
    assert "trained: " not in caplog.text
    train(decoder_recipe(tmp_path / "parts", images, trained, ema=0.5))
    assert_same_weights(whole.output / "model", parts.output / "model")


def test_no_steps_export_the_start_and_where_nothing_is_frozen_no_share_is_logged(
    images: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recipe = var_recipe(tmp_path / "r", images, trained, steps=0, init=str(trained), model=SMALL)
    train(recipe)
    assert_same_weights(trained, recipe.output / "model")
    assert "trained: " not in caplog.text


def test_what_a_tokenizers_losses_need_is_not_frozen(images: Path, trained: Path, tmp_path: Path) -> None:
    adversarial = {"adversarial": {"width": 8, "layers": 1, "start": 0.0}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"restart_dead_codes": 2}, "set it to null"),
        ({"freeze": ["decoder"], "loss": adversarial}, "set it to false"),
    ]
    for changes, part in cases:
        recipe = decoder_recipe(tmp_path / "r", images, trained, **changes)
        with refused(part):
            Trainer(recipe, build_accelerator(recipe))
        with refused(part):
            estimate(recipe)


def test_the_dry_run_counts_what_is_trained(images: Path, trained: Path, tmp_path: Path) -> None:
    (frozen,) = [n for n in estimate(decoder_recipe(tmp_path / "a", images, trained)).networks if n.name == "model"]
    parameters = dict(small_vqvae().named_parameters())
    decoder = sum(p.numel() for name, p in parameters.items() if name.startswith(("decoder.", "post_quant_conv.")))
    assert (frozen.trained, frozen.parameters) == (decoder, sum(p.numel() for p in parameters.values()))


def test_a_recipe_freezes_in_one_way_and_a_part_has_a_positive_factor(images: Path, tmp_path: Path) -> None:
    base = merged(VAR, {"data": {"source": str(images)}, "tokenizer": "tok"})
    path = write_recipe(tmp_path / "r.yaml", base)
    with refused("freeze and train_only are both given"):
        load_recipe(path, ["freeze=[mlp]", "train_only=[head]"])
    with refused("optimizer.lr_factors.mlp"):
        load_recipe(path, ["optimizer.lr_factors.mlp=0"])
    path = write_recipe(tmp_path / "r.yaml", merged(base, {"optimizer": {"lr_factors": {"blocks.0": 0.1, "head": 2}}}))
    loaded = load_recipe(path, ["optimizer.lr_factors.mlp=0.5"])
    assert loaded.optimizer.lr_factors == {"blocks.0": 0.1, "head": 2, "mlp": 0.5}
    assert json.loads(loaded.model_dump_json())["optimizer"]["lr_factors"]["blocks.0"] == 0.1


def test_a_list_or_mapping_of_another_type_is_refused_in_the_words_of_recipes(images: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", merged(VAR, {"data": {"source": str(images)}, "tokenizer": "tok"}))
    with refused("freeze=3 must be a list"):
        load_recipe(path, ["freeze=3"])
    with refused("optimizer.lr_factors=[1] must be a mapping"):
        load_recipe(path, ["optimizer.lr_factors=[1]"])


@pytest.mark.parametrize(
    "frozen", [{"train_only": ["mlp"]}, {"freeze": ["class_embedding"]}, {"lora": {"rank": 2, "train": []}}]
)
def test_what_init_leaves_random_must_be_trained(
    images: Path, trained: Path, tmp_path: Path, frozen: dict[str, Any]
) -> None:
    """The rows of other classes: frozen, they would be noise for good."""
    recipe = var_recipe(
        tmp_path / "r", images, trained, init=str(trained), model=SMALL | {"num_classes": None}, **frozen
    )
    with refused("class_embedding.weight would stay random (1 tensor)", "lora keep it from training"):
        train(recipe)
    assert not (recipe.output / "model").exists()
