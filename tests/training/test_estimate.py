"""The dry run: its counts against closed forms and a real pass, and that it touches nothing."""

import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from helpers import refused, small_vqvae
from rich.console import Console
from tiny import ROOT, TOKENIZER, VAR, image_folder, merged, run, tokenizer_recipe, var_recipe, write_recipe
from torch import Tensor, nn

from var.hub.checkpoint import save_model
from var.models import var as models
from var.training.estimate import cost as module
from var.training.estimate.cost import Estimate, estimate, measure_speed
from var.training.estimate.images import find_images
from var.training.estimate.table import amount, duration, show
from var.training.recipe import load_recipe
from var.training.stages.var import VARRecipe

SPEED = 1e9


@pytest.fixture(autouse=True)
def _one_process_of_known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "measure_speed", lambda device, dtype: SPEED)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight training images of two classes."""
    return image_folder(tmp_path / "images")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    save_model(tmp_path / "tokenizer", small_vqvae())
    return tmp_path / "tokenizer"


def transformer(tmp_path: Path, images: Path, tokenizer: Path, **changes: Any) -> VARRecipe:
    return var_recipe(tmp_path / "var", images, tokenizer, **changes)


def text(found: Estimate) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(show(found))
    return console.export_text()


def passes(found: Estimate) -> dict[str, float]:
    """What each turn costs in the mean step."""
    phases = dict.fromkeys(part.name for part in found.passes)
    return {phase: sum(part.share * part.flops for part in found.passes if part.name == phase) for phase in phases}


def test_flops_of_the_transformer_are_those_of_its_products(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    """Twice the weights a token forward, four times backward, and the two products of attention likewise."""
    sizes = {"depth": 3, "width": 64, "heads": 4}
    recipe = transformer(tmp_path, images, tokenizer, batch_size=8, model=sizes, token_cache=tmp_path / "t")
    depth, width, length, vocab, latent = 3, 64, 21, 32, 8
    tokens = 8 * length
    linear = depth * 12 * width**2 * tokens + width * vocab * tokens  # blocks, head
    adaln = (depth * 6 + 2) * width**2 * 8  # once an image
    attention = depth * 2 * length * width * tokens
    # The first map has no features; from there on the inputs want no gradient, so one product fewer.
    features = latent * width * 8 * (length - 1)
    phi = 2 * 9 * latent**2 * 4 * 4 * 8 * 2  # two of the three scales are added up, once
    expected = 6 * (linear + adaln + attention) + 4 * features + phi
    assert passes(estimate(recipe))["model"] == pytest.approx(expected, rel=1e-3)


def test_flops_of_the_papers_d16_are_six_a_parameter_and_token(tmp_path: Path, images: Path) -> None:
    given = ["batch_size=2", f"data.source={images}", "token_cache=t"]
    found = estimate(load_recipe(ROOT / "configs" / "imagenet_d16.yaml", [*given, "tokenizer=released/tokenizer"]))
    parameters = {network.name: network.parameters for network in found.networks}
    assert parameters["model"] == pytest.approx(310e6, rel=0.01)
    assert parameters["tokenizer"] == pytest.approx(109e6, rel=0.01)
    adaln = 16 * 6 * 1024**2 + 2 * 1024**2  # its weights meet images, not tokens
    used = parameters["model"] - adaln - 1001 * 1024  # nor are the classes' embeddings multiplied
    attention = 16 * 2 * 680 * 1024
    sparse, dense = (6 * (used + share * attention) * 2 * 680 for share in (0.62, 1))  # what the mask leaves, and all
    assert 0.99 * sparse < passes(found)["model"] < 1.01 * dense
    assert found.tokens == 2 * 680
    assert "assumed the released one of var-d16, 256 px" in " ".join(found.notes)


def test_activations_are_those_that_a_real_pass_keeps(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    recipe = transformer(tmp_path, images, tokenizer, batch_size=8, model={"depth": 3, "width": 64, "heads": 4})
    vqvae = small_vqvae().requires_grad_(False)
    model = models.VAR(recipe.model.config(vqvae.config, 2)).train()
    tokens = torch.randint(32, (8, 21))
    inputs = vqvae.quantizer.teacher_forcing_input(tokens)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(8, dtype=torch.long), inputs, torch.rand(8, 6))
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert estimate(recipe).memory.activations == pytest.approx(real, rel=0.05)


def test_checkpointing_keeps_less_and_computes_more(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    sizes = {"batch_size": 8, "model": {"depth": 6, "width": 64, "heads": 4}}
    plain = estimate(transformer(tmp_path, images, tokenizer, **sizes))
    again = estimate(transformer(tmp_path, images, tokenizer, **sizes, gradient_checkpointing=True))
    assert again.memory.activations < 0.5 * plain.memory.activations
    assert passes(again)["model"] / passes(plain)["model"] == pytest.approx(4 / 3, rel=0.1)


def test_half_precision_keeps_less(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    plain = estimate(transformer(tmp_path, images, tokenizer, batch_size=8))
    half = estimate(transformer(tmp_path, images, tokenizer, batch_size=8, precision="bfloat16"))
    assert 0.4 * plain.memory.activations < half.memory.activations < 0.95 * plain.memory.activations
    assert passes(half)["model"] == pytest.approx(passes(plain)["model"])
    cached = estimate(
        transformer(tmp_path, images, tokenizer, batch_size=8, precision="bfloat16", token_cache=tmp_path)
    )
    of_type = {part.dtype: part.flops for part in half.passes}
    assert of_type.keys() == half.speeds.keys() == {torch.bfloat16, torch.float32}
    assert {part.dtype: part.flops for part in cached.passes}[torch.bfloat16] == of_type[torch.bfloat16]
    assert of_type[torch.float32] > passes(plain)["model"] - of_type[torch.bfloat16] - 1  # the encoder, head and phi


def test_encoder_is_counted_in_every_step_or_once(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    every = estimate(transformer(tmp_path, images, tokenizer, batch_size=4))
    once = estimate(transformer(tmp_path, images, tokenizer, batch_size=4, token_cache=tmp_path / "t", token_views=3))
    encoder = passes(every)["model"] - passes(once)["model"]
    assert encoder > 0
    assert every.preparation == 0
    assert once.preparation == pytest.approx(encoder / 4 * 8 * 3)
    assert "does not exist: the run starts by writing it" in " ".join(once.notes)
    assert every.seconds == pytest.approx(6 * every.flops / (SPEED / 1.5))
    assert once.seconds == pytest.approx((6 * once.flops + once.preparation) / (SPEED / 1.5))


def test_memory_of_one_process(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    found = estimate(transformer(tmp_path, images, tokenizer, ema=0.9))
    size = 4 * found.networks[0].parameters
    memory = found.memory
    assert (memory.weights, memory.gradients, memory.optimizer, memory.average) == (size, size, 2 * size, size)
    assert memory.frozen == 4 * found.networks[1].parameters
    assert found.checkpoint == 4 * size
    assert memory.total == pytest.approx(sum(memory))


def test_processes_share_the_batch_and_sharding_the_weights(
    tmp_path: Path, images: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = transformer(tmp_path, images, tokenizer, batch_size=8, ema=0.9)
    alone = estimate(recipe)
    monkeypatch.setenv("WORLD_SIZE", "4")
    replicated = estimate(recipe)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharded = estimate(recipe)
    for found in (replicated, sharded):
        assert found.flops == pytest.approx(alone.flops, rel=0.02)
        assert found.seconds == pytest.approx(alone.seconds / 4, rel=0.02)  # type: ignore[operator]
        assert found.memory.activations == pytest.approx(alone.memory.activations / 4, rel=0.1)
        assert found.checkpoint == alone.checkpoint
    assert replicated.memory.weights == alone.memory.weights
    assert replicated.memory.gradients == 2 * alone.memory.gradients
    for name in ("weights", "gradients", "optimizer", "average"):
        assert getattr(sharded.memory, name) == getattr(alone.memory, name) / 4
    assert sharded.memory.frozen == alone.memory.frozen


def test_accumulation_saves_activations_only(tmp_path: Path, images: Path) -> None:
    whole = estimate(tokenizer_recipe(tmp_path / "a", images, batch_size=8))
    parts = estimate(tokenizer_recipe(tmp_path / "a", images, batch_size=8, accumulate=4))
    assert parts.memory.activations == pytest.approx(whole.memory.activations / 4, rel=0.1)
    assert parts.flops == pytest.approx(whole.flops, rel=0.05)


def test_every_turn_is_counted_as_often_as_it_runs(tmp_path: Path, images: Path) -> None:
    sizes = {"batch_size": 2, "steps": 8, "model": {"scales": [1, 2, 16]}}
    plain = estimate(tokenizer_recipe(tmp_path / "a", images, **sizes))
    adversarial = {"discriminator": "patchgan", "width": 8, "layers": 2, "start": 0.25, "r1": 0.1, "r1_every": 4}
    loss = {"perceptual": {"network": "efficientnet-lite1"}, "adversarial": adversarial}
    full = estimate(tokenizer_recipe(tmp_path / "b", images, **sizes, loss=loss))
    names = [network.name for network in full.networks]
    assert names == ["model", "discriminator", "network of the perceptual loss"]
    # The discriminator has its turn from step 2 of 8 on, with R1 in step 4.
    counted = [(part.name, part.share) for part in full.passes]
    assert counted == [("model", 2 / 8), ("model", 6 / 8), ("discriminator", 5 / 8), ("discriminator", 1 / 8)]
    early, late, usual, penalized = (part.flops for part in full.passes)
    assert plain.flops < early < late
    # It judges reconstructions forward and back to the image, then twice as many in its own turn.
    assert 0 < usual < 12 * (late - early)
    assert usual < penalized
    expected = (2 * early + 6 * late + 5 * usual + penalized) / 8
    assert full.flops == pytest.approx(expected)
    assert full.seconds_a_step == pytest.approx(expected / (SPEED / 1.5))
    shown = text(full)
    assert "FLOP in float32, in 62% of the steps" in shown


def test_heads_on_features_are_counted_with_the_network_below(tmp_path: Path, images: Path) -> None:
    adversarial = {"discriminator": "features", "network": "efficientnet-lite1", "start": 0}
    recipe = tokenizer_recipe(tmp_path / "a", images, model={"scales": [1, 2, 16]}, loss={"adversarial": adversarial})
    found = estimate(recipe)
    assert [network.name for network in found.networks] == ["model", "discriminator", "network below the discriminator"]
    assert [(part.name, part.share) for part in found.passes] == [("model", 1), ("discriminator", 1)]


def test_steps_and_epochs(tmp_path: Path, images: Path) -> None:
    found = estimate(tokenizer_recipe(tmp_path / "a", images, steps=None, epochs=5))
    assert (found.length, found.steps, found.epochs) == (8, 10, 5)
    fixed = estimate(tokenizer_recipe(tmp_path / "a", images, steps=6))
    assert (fixed.length, fixed.steps, fixed.epochs) == (8, 6, 3)


def test_missing_data_is_told_and_the_rest_estimated(tmp_path: Path) -> None:
    found = estimate(tokenizer_recipe(tmp_path / "a", tmp_path / "nowhere", steps=None, epochs=5))
    assert (found.length, found.steps, found.seconds) == (None, None, None)
    assert found.flops > 0
    assert found.seconds_a_step is not None
    (note,) = found.notes
    assert "number of images is unknown" in note
    assert "nowhere" in note
    shown = text(found)
    assert "steps" in shown
    assert "unknown" in shown
    assert "a step" in shown
    assert estimate(tokenizer_recipe(tmp_path / "b", tmp_path / "nowhere", steps=7)).steps == 7


def test_a_tokenizer_that_is_not_there(tmp_path: Path, images: Path) -> None:
    with refused("tokenizer=", "does not exist", "train stage 1 first"):
        estimate(transformer(tmp_path, images, tmp_path / "nothing"))


def test_a_model_to_begin_with_is_looked_for(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    for folder, part in ((tmp_path / "none", "does not exist"), (images, "has no config.json")):
        with refused(str(folder), part):
            estimate(tokenizer_recipe(tmp_path / "r", images, init=str(folder)))
    with refused("'VQVAE', a 'VAR' is needed"):
        estimate(var_recipe(tmp_path / "r", images, tokenizer, init=str(tokenizer)))


def test_the_output_of_a_training_stands_for_its_model(tmp_path: Path, images: Path, tokenizer: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "run" / "model")
    estimate(tokenizer_recipe(tmp_path / "r", images, init=str(tmp_path / "run")))
    recipe = var_recipe(tmp_path / "r", images, tmp_path / "run")
    assert estimate(recipe).networks == estimate(var_recipe(tmp_path / "r", images, tokenizer)).networks


def test_float16_without_cuda_has_no_time(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_device", lambda: torch.device("cpu"))
    found = estimate(tokenizer_recipe(tmp_path / "a", images, precision="float16"))
    assert (found.seconds, found.seconds_a_step) == (None, None)
    assert "needs CUDA" in " ".join(found.notes)
    assert "time expected" not in text(found)


def test_data_that_the_training_will_refuse_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    shutil.copytree(images / "train", tmp_path / "folder" / "train")
    table = pyarrow.table({"image": [b""], "label": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "table" / "train.parquet")
    for name in ("folder", "table"):
        for more, is_refused in (({}, True), ({"validation_fraction": 0.5}, False)):
            found = find_images(tokenizer_recipe(tmp_path / "r", tmp_path / name, data=more).data)
            assert found.number is not None
            assert (found.unknown is not None and "the training will be refused" in found.unknown) == is_refused


def test_images_are_counted_in_parquet_without_being_copied(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for i, labels in enumerate(([0, 1, 5], [5, 5])):
        table = pyarrow.table({"image": [b""] * len(labels), "label": np.array(labels)})
        pyarrow.parquet.write_table(table, folder / f"train-{i}.parquet")
    assert find_images(tokenizer_recipe(tmp_path / "a", folder).data)[:2] == (5, 6)
    chosen = tokenizer_recipe(tmp_path / "b", folder, data={"classes": [5]})
    assert find_images(chosen.data)[:2] == (3, 6)
    unlabelled = tokenizer_recipe(tmp_path / "c", folder, data={"label_column": None})
    assert find_images(unlabelled.data)[:2] == (5, 1)
    wrong = find_images(tokenizer_recipe(tmp_path / "d", folder, data={"label_column": "kind"}).data)
    assert wrong.number is None
    assert wrong.unknown is not None


def test_speed_of_a_product_is_plausible() -> None:
    assert 1e7 < measure_speed(torch.device("cpu"), torch.float32) < 1e14


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 "), (999, "999 "), (1234567, "1.23 M"), (2.5e9, "2.5 G"), (1e15, "1 P")]
)
def test_amounts(number: float, shown: str) -> None:
    assert amount(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0312, "0.031 s"), (90, "90 s"), (180, "3 minutes"), (9000, "2.5 hours"), (216000, "2.5 days")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_global_randomness_and_modes_are_left_alone(tmp_path: Path, images: Path) -> None:
    before = torch.get_rng_state()
    estimate(tokenizer_recipe(tmp_path / "a", images))
    assert torch.equal(torch.get_rng_state(), before)
    assert float(torch.ones(2).sum()) == 2


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("stage", ["tokenizer", "var"])
def test_the_command_prints_and_touches_nothing(stage: str, tmp_path: Path, images: Path, tokenizer: Path) -> None:
    base = merged(TOKENIZER, {"data": {"source": str(images)}})
    if stage == "var":
        base = merged(
            VAR, {"data": {"source": str(images)}, "tokenizer": str(tokenizer), "token_cache": str(tmp_path / "t")}
        )
    recipe = write_recipe(tmp_path / "run.yaml", base)
    (tmp_path / "home").mkdir()
    before = listing(tmp_path)
    home = {"HOME": tmp_path / "home", "XDG_CACHE_HOME": tmp_path / "home", "PYTHONDONTWRITEBYTECODE": 1}
    done = run(ROOT / "train.py", recipe, "--dry-run", cwd=tmp_path, **home)
    assert done.returncode == 0, done.stderr
    assert listing(tmp_path) == before
    for part in (
        "parameters, trained",
        "FLOP",
        "memory of a process",
        "steps",
        "6 (3 epochs of 8 images)",
        "time expected",
    ):
        assert part in done.stdout
    assert "model: " not in done.stdout  # it has not trained
