"""Runs as scaling laws see them: sizes and FLOPs counted from the model, and folders that cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused
from tiny_runs import WriteRun, config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from var.evaluation.scaling.runs import (
    all_parameters,
    block_parameters,
    forward_flops,
    read_run,
    read_runs,
    training_flops,
)
from var.models import masks
from var.models.var import VAR

# --- sizes and compute

CONFIGS = {
    "plain": {},
    "shared": {"shared_adaln": True},
    "mlp": {"mlp_ratio": 2.5, "qk_norm": False},
    "classes": {"num_classes": 70, "vocab_size": 11},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_flops_are_those_that_torch_counts(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "SPANS_FROM", 0)
    sizes = config(**changes)
    model, batch = VAR(sizes), 2
    inputs = torch.randn(batch, 52, sizes.latent_dim)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(torch.tensor([0, 3]), inputs).square().mean()
    assert forward.get_total_flops() == batch * forward_flops(sizes)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() + backward.get_total_flops() == batch * training_flops(sizes)


def test_a_token_map_sees_itself_and_what_is_coarser() -> None:
    """By the mask itself: one more block adds its matrices and the pairs that see each other."""
    scales = (1, 2, 3, 5, 8)
    one, two = (config(depth=depth, scales=scales) for depth in (1, 2))
    pairs = int(masks.block_causal(VAR(one).scales).sum())
    width, total = 24, 103
    block = 2 * (total * 12 * width**2 + 2 * pairs * width + 6 * width**2)
    assert forward_flops(two) - forward_flops(one) == block


def test_parameters_are_the_papers_count_and_biases() -> None:
    sizes = config(depth=16, width=1024, heads=16, scales=(1, 2), num_classes=1000, vocab_size=4096)
    biases = 16 * (1024 * (2 + 1 + 4 + 1 + 6) + 16)  # q v, projection, MLP, AdaLN; a temperature a head
    assert block_parameters(sizes) == 18 * 16 * 1024**2 + biases
    with torch.device("meta"):
        assert all_parameters(sizes) == sum(p.numel() for p in VAR(sizes).parameters())
    shared = config(shared_adaln=True, depth=2)
    of_its_own = config(depth=2)
    assert block_parameters(of_its_own) - block_parameters(shared) == 6 * 24**2 + 6 * 24 - 2 * 6 * 24


# --- reading


def change(folder: Path, step: int, **values: Any) -> None:
    """Other values in the validation of that step; "gone" takes one away."""
    path = folder / "metrics.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    for line in kept:
        if (line["step"], line["split"]) == (step, "validation"):
            line |= {name.replace("__", "/"): value for name, value in values.items()}
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if v != "gone"}) + "\n" for line in kept))


def test_a_run_is_read(write_run: WriteRun) -> None:
    run = read_run(write_run(2))
    sizes = config(depth=2, width=16, heads=2, scales=(1, 2, 4))
    assert run.config == sizes
    assert run.curve.name == "d2"
    assert run.curve.parameters == block_parameters(sizes) / 1e9
    assert run.curve.all_parameters == all_parameters(sizes) / 1e9
    assert run.curve.images == [80, 160]
    assert run.curve.compute == [80 * training_flops(sizes) / 1e15, 160 * training_flops(sizes) / 1e15]
    assert run.curve.values == {
        "loss_last": [3.0, 3.0],
        "loss_all": [2.5, 2.5],
        "error_last": [0.9, 0.9],
        "error_all": [0.8, 0.8],
    }


def test_runs_come_by_size_and_may_differ_in_length_and_how_they_were_computed(write_run: WriteRun) -> None:
    free: dict[str, Any] = {"steps": 99, "seed": 3, "log_every": 7, "accumulate": 2, "token_cache": "elsewhere"}
    folders = [write_run(3, (10, 20, 30), **free, optimizer={"lr": 0.5}), write_run(1, tokenizer=""), write_run(2)]
    runs = read_runs(folders)
    assert [run.curve.name for run in runs] == ["d1", "d2", "d3"]
    assert [run.recipe.optimizer.lr for run in runs] == [1e-2, 1e-2, 0.5]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data": {"source": "others"}}, ("data.source is pictures and others",)),
        ({"data": {"source": "pictures", "flip": True}}, ("data.flip is False and True",)),
        ({"batch_size": 16}, ("batch_size is 8 and 16",)),
        ({"tokenizer": "another"}, ("tokenizer is ",)),
        ({"scales": (1, 3, 4)}, ("model.scales is (1, 2, 4) and (1, 3, 4)",)),
        ({"label_drop": 0.2}, ("label_drop is 0.1 and 0.2",)),
        ({"schedule": {"warmup": 0.5}}, ("schedule.warmup is 0.02 and 0.5",)),
        ({"optimizer": {"lr": 1e-2, "weight_decay": 0.3}}, ("optimizer.weight_decay is 0.01 and 0.3",)),
        ({"token_cache": None}, ("token_cache is a cache and images",)),
        ({"ema": 0.9}, ("ema is None and 0.9",)),
    ],
)
def test_runs_that_cannot_be_compared(write_run: WriteRun, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    changes = dict(changes)
    recipe_scales = changes.pop("scales", None)
    other = write_run(3, **changes)
    if recipe_scales:
        path = other / "model" / "transformer" / "config.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps({"config": known["config"] | {"scales": recipe_scales}}))
    with refused("cannot be compared", "d1", "d3", *parts):
        read_runs([write_run(1), write_run(2), other])


def test_two_runs_of_one_size_or_one_name(write_run: WriteRun, tmp_path: Path) -> None:
    with refused("d2 and", "again have the same size"):
        read_runs([write_run(1), write_run(2), write_run(2, name="again")])
    with refused("same name"):
        read_runs([write_run(1), write_run(2), write_run(3, name="deeper/d1")])


def test_too_few_runs(write_run: WriteRun) -> None:
    with refused("at least 3 runs of different sizes", "at least 3"):
        read_runs([write_run(1), write_run(2)])


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("recipe.yaml", ("has no recipe.yaml", "run its command again")),
        ("metrics.jsonl", ("metrics.jsonl cannot be read", "No such file")),
        ("model/transformer/config.json", ("has no config.json",)),
        ("model/tokenizer/model.safetensors", ("model.safetensors cannot be read", "let the run finish")),
    ],
)
def test_missing_files(write_run: WriteRun, file: str, parts: tuple[str, ...]) -> None:
    folder = write_run(2)
    (folder / file).unlink()
    with refused("d2", *parts):
        read_run(folder)


def test_a_folder_that_is_not_there_and_one_of_another_stage(write_run: WriteRun, tmp_path: Path) -> None:
    with refused("nowhere does not exist"):
        read_run(tmp_path / "nowhere")
    folder = write_run(2)
    path = folder / "recipe.yaml"
    path.write_text((Path(__file__).parents[3] / "configs" / "tiny_imagenet_aim.yaml").read_text())
    with refused("stage=aim"):
        read_run(folder)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"loss": None}, ("loss of the validation at step 20 is not a finite number", "leave this run out")),
        ({"accuracy__4x4": None}, ("accuracy/4x4 of the validation at step 20 is not",)),
        ({"loss__4x4": float("nan")}, ("loss/4x4 of the validation at step 20 is not",)),
        ({"loss__4x4": "gone"}, ("loss/4x4 of the validation at step 20 is missing",)),
        (
            {"loss": -1.0},
            ("metrics.jsonl: loss_all=-1 of the validation at step 20 has no logarithm", "leave this run"),
        ),
        ({"loss__4x4": 0.0}, ("loss_last=0 of the validation at step 20 has no logarithm",)),
        ({"accuracy": 1.0}, ("error_all=0 of the validation at step 20 has no logarithm",)),
    ],
)
def test_validations_that_are_not_numbers(write_run: WriteRun, values: dict[str, Any], parts: tuple[str, ...]) -> None:
    folder = write_run(2)
    change(folder, 20, **values)
    with refused("d2", *parts):
        read_run(folder)


def test_metrics_without_validation_torn_or_of_two_runs(write_run: WriteRun) -> None:
    folder = write_run(2)
    path = folder / "metrics.jsonl"
    text = path.read_text()
    path.write_text("".join(line + "\n" for line in text.splitlines() if "train" in line))
    with refused("has no validation", "validate_every"):
        read_run(folder)
    path.write_text(text[:-20])
    with refused("a damaged line"):
        read_run(folder)
    path.write_text(text + text)
    with refused("out of order"):
        read_run(folder)
