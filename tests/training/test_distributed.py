"""Models that two processes share: replicated or sharded, always back to plain names and whole tensors (about 10 s)."""

import copy
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from helpers import normal, random_tokens, randomize, refused, small_quantizer, small_var
from tiny import TOKENIZER, run, tokenizer_recipe, write_recipe
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from var.models.var import VAR
from var.training import distributed
from var.training.adapters import add_adapters
from var.training.config import LoRAConfig, OptimizerConfig
from var.training.distributed import (
    SHARDS_ON_CPU,
    build_accelerator,
    copy_into,
    full_tensor,
    is_sharding_requested,
    load_model_state,
    load_optimizer_state,
    local_tensor,
    model_state,
    no_sync,
    optimizer_state,
    shard,
    unshard,
    with_launcher_settings,
)
from var.training.ema import EMA
from var.training.optimizer import build_optimizer
from var.training.parts import freeze

WORLD, PARTS, BATCH = 2, 2, 8
NO_STEPS = {"gradient_accumulation_steps": None}
UNITS = ("blocks.0.adaln", "blocks.0", "blocks.1.adaln", "blocks.1")  # the AdaLNs have their turn before all blocks
KINDS = ("mixed", "whole units", "adapters")  # of what is frozen
State = dict[str, Any]


def small(seed: int = 0) -> VAR:
    """Five rows in the table of labels: they do not divide among two processes."""
    return small_var(seed, num_classes=4)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimizerConfig(lr=1e-3, weight_decay=0.1), ("position",))


def partly_trained(kind: str) -> VAR:
    """A model of which some parameters are frozen, in all units or in whole ones; or adapters are trained."""
    model = small()
    if kind == "adapters":
        add_adapters(model, LoRAConfig(rank=2, layers=("qkv", "up", "linear")), seed=0)
    else:
        freeze(model, ["mlp", "class_embedding"] if kind == "mixed" else ["blocks.0", "head"])
    return model


def loss_of(model: nn.Module, indices: range) -> Tensor:
    """Mean over these samples of a batch that is always the same."""
    tokens = random_tokens(BATCH, 21)[list(indices)]
    labels = torch.arange(BATCH)[list(indices)] % 5
    with torch.no_grad():
        inputs = small_quantizer().teacher_forcing_input(tokens)
    return F.cross_entropy(model(labels, inputs).flatten(0, 1), tokens.flatten())


def backward(plain: nn.Module, wrapped: nn.Module, rank: int, world: int, parts: int) -> None:
    """This process's micro-batches; the gradients end up those of the whole batch's mean."""
    for part in range(parts):
        with no_sync(plain, wrapped) if part < parts - 1 else nullcontext():
            (loss_of(wrapped, range(part * world + rank, BATCH, world * parts)) / parts).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, world: int = 1, steps: int = 3) -> None:
    for _ in range(steps):
        backward(model, model, rank, world, PARTS)
        optimizer.step()
        optimizer.zero_grad()


def gradients(model: nn.Module) -> State:
    return {name: full_tensor(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def trained_plain() -> tuple[VAR, torch.optim.Optimizer]:
    """On one process."""
    model = small()
    optimizer = optimizer_of(model)
    train(model, optimizer)
    return model, optimizer


def kept(state: State) -> State:
    """A copy: on the CPU the tensors are those of the model itself."""
    return copy.deepcopy(state)


def everywhere(state: State) -> State:
    """A state that the main process has, on both, as if both had read it from a file."""
    if not dist.is_initialized():
        return kept(state)
    states = [state]
    dist.broadcast_object_list(states)
    return states[0]


# --- what each of two processes does; the first one writes down what the tests below look at


def of_sharding() -> State:
    model = small()
    shard(model, UNITS)
    parameters = dict(model.named_parameters())
    result: State = {
        "units": [isinstance(model.get_submodule(unit), FSDPModule) for unit in UNITS],
        "all are sharded": all(isinstance(p, DTensor) for p in parameters.values()),
        "numbers held here": sum(local_tensor(p).numel() for p in parameters.values()),
        "state": kept(model_state(model)),
    }
    load_model_state(model, everywhere(model_state(small(seed=5))))
    result["moved state"] = kept(model_state(model))
    result["still sharded"] = all(isinstance(p, DTensor) for p in model.parameters())
    back = unshard(model, small)
    assert (back is None) == (dist.get_rank() > 0)
    if back is not None:
        result["gathered is plain"] = not isinstance(back, FSDPModule) and not back.training
        result["gathered state"] = kept(back.state_dict())
    copy_into(parameters["class_embedding.weight"], torch.arange(5 * 32.0).view(5, 32))
    result["put"] = full_tensor(parameters["class_embedding.weight"]).clone()
    return result


def of_training(rank: int) -> State:
    """From the state of one process, sharded, and what comes of it."""
    one, one_optimizer = trained_plain()
    model = small(seed=5)
    shard(model, UNITS)
    optimizer = optimizer_of(model)
    load_model_state(model, everywhere(model_state(one)))
    load_optimizer_state(model, optimizer, everywhere(optimizer_state(one, one_optimizer)))
    result = {
        "loaded model": kept(model_state(model)),
        "loaded optimizer": kept(optimizer_state(model, optimizer)),
        "sharded moments": all(
            isinstance(optimizer.state[p][key], DTensor)
            for p in model.parameters()
            for key in ("exp_avg", "exp_avg_sq")
        ),
    }
    train(model, optimizer, rank, WORLD)
    return result | {
        "trained model": kept(model_state(model)),
        "trained optimizer": kept(optimizer_state(model, optimizer)),
    }


def of_accumulation(rank: int) -> State:
    result: State = {}
    replicated = small()
    wrapped = DistributedDataParallel(replicated)
    backward(replicated, wrapped, rank, WORLD, PARTS)
    result["replicated"] = gradients(replicated)
    sharded = small()
    shard(sharded, UNITS)
    for parts in (1, PARTS, 4):
        backward(sharded, sharded, rank, WORLD, parts)
        result[f"sharded in {parts}"] = gradients(sharded)
        sharded.zero_grad()

    alone = small()  # inside, nothing comes from the other process
    with no_sync(alone, wrapped := DistributedDataParallel(alone)):
        loss_of(wrapped, range(rank, BATCH, WORLD)).backward()
    result["of the first process"] = gradients(alone)
    loss_of(wrapped, range(rank, BATCH, WORLD)).backward()
    result["afterwards"] = gradients(alone)
    return result


def of_partly_trained(kind: str, rank: int) -> State:
    model = partly_trained(kind)
    ema = EMA(model, 0.9)
    for each in (model, ema.model):
        shard(each, UNITS)
    optimizer = optimizer_of(model)
    train(model, optimizer, rank, WORLD)
    ema.update(model, 0)
    plain = unshard(model, partial(partly_trained, kind))
    result = {
        "trained": kept(model_state(model)),
        "optimizer": kept(optimizer_state(model, optimizer)),
        "gathered": kept(plain.state_dict()) if plain is not None else {},
        "average": kept(model_state(ema.model)),
    }
    replicated = partly_trained(kind)
    wrapped, optimizer = DistributedDataParallel(replicated), optimizer_of(replicated)
    for _ in range(3):
        backward(replicated, wrapped, rank, WORLD, PARTS)
        optimizer.step()
        optimizer.zero_grad()
    return result | {"replicated": kept(replicated.state_dict())}


def of_average() -> State:
    model = small()
    ema = EMA(model, 0.9)
    shard(model, UNITS)
    shard(ema.model, UNITS)
    for step in range(4):
        load_model_state(model, everywhere(model_state(small(seed=step))))
        ema.update(model, step)
    return {"average": kept(model_state(ema.model)), "left alone": kept(model_state(model))}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    try:
        results = {
            "sharding": of_sharding(),
            "training": of_training(rank),
            "accumulation": of_accumulation(rank),
            "average": of_average(),
            **{kind: of_partly_trained(kind, rank) for kind in KINDS},
        }
        if rank == 0:
            torch.save(results, folder / "results.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    if not SHARDS_ON_CPU:
        pytest.skip("this PyTorch does not shard on CPUs")
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(process, args=(folder,), nprocs=WORLD)
    results: dict[str, State] = torch.load(folder / "results.pt", weights_only=True)
    return results


def assert_equal(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, dict):
            assert_equal(value, theirs[name])
        else:
            assert value.dtype == theirs[name].dtype, name
            assert torch.equal(value, theirs[name]), name


assert_close: Callable[[State, State], None] = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)


# --- two processes


def test_a_sharded_model_has_the_plain_state(two: dict[str, State]) -> None:
    found, plain = two["sharding"], small()
    assert found["units"] == [True] * len(UNITS)
    assert found["all are sharded"]
    total = sum(p.numel() for p in plain.parameters())
    assert total / WORLD <= found["numbers held here"] < 0.6 * total
    assert_equal(found["state"], model_state(plain))


def test_plain_weights_move_into_a_sharded_model_and_back(two: dict[str, State]) -> None:
    found = two["sharding"]
    assert_equal(found["moved state"], model_state(small(seed=5)))
    assert found["still sharded"]
    assert found["gathered is plain"]
    assert_equal(found["gathered state"], model_state(small(seed=5)))
    assert torch.equal(found["put"], torch.arange(5 * 32.0).view(5, 32))


def test_training_moves_from_one_process_to_shards_exactly(two: dict[str, State]) -> None:
    one, optimizer = trained_plain()
    assert_equal(two["training"]["loaded model"], model_state(one))
    assert_equal(two["training"]["loaded optimizer"], optimizer_state(one, optimizer))
    assert two["training"]["sharded moments"]


def test_sharded_training_is_that_of_one_process_and_moves_back(two: dict[str, State]) -> None:
    one, optimizer = trained_plain()
    train(one, optimizer)
    found = two["training"]
    assert_close(found["trained model"], model_state(one))
    assert_close(found["trained optimizer"], optimizer_state(one, optimizer))

    back = small(seed=5)
    back_optimizer = optimizer_of(back)
    load_model_state(back, found["trained model"])
    load_optimizer_state(back, back_optimizer, kept(found["trained optimizer"]))
    assert_equal(model_state(back), found["trained model"])
    assert_equal(optimizer_state(back, back_optimizer), found["trained optimizer"])
    for model, its_optimizer in ((one, optimizer), (back, back_optimizer)):
        train(model, its_optimizer)
    assert_close(model_state(back), model_state(one))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_and_the_rest_is_trained_as_on_one_process(two: dict[str, State], kind: str) -> None:
    model, start, found = partly_trained(kind), partly_trained(kind).state_dict(), two[kind]
    optimizer = optimizer_of(model)
    train(model, optimizer)
    for trained in (found["trained"], found["replicated"]):
        assert_close(trained, model_state(model))
    assert_close(found["optimizer"], optimizer_state(model, optimizer))
    assert_equal(found["gathered"], found["trained"])
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert names
    for states in (found["trained"], found["replicated"], found["average"]):
        assert all(torch.equal(states[name], start[name]) for name in names)
    assert found["optimizer"].keys() == dict(model.named_parameters()).keys() - names


@pytest.mark.parametrize("how", ["replicated", "sharded in 1", "sharded in 2", "sharded in 4"])
def test_accumulated_gradients_are_those_of_the_whole_batch(two: dict[str, State], how: str) -> None:
    model = small()
    loss_of(model, range(BATCH)).backward()
    assert_close(two["accumulation"][how], gradients(model))


def test_unsynchronised_gradients_are_those_of_one_process(two: dict[str, State]) -> None:
    model = small()
    loss_of(model, range(0, BATCH, WORLD)).backward()
    assert_close(two["accumulation"]["of the first process"], gradients(model))
    # The next backward pass outside averages over the processes all that was added up: twice the whole batch's mean.
    model.zero_grad()
    (2 * loss_of(model, range(BATCH))).backward()
    assert_close(two["accumulation"]["afterwards"], gradients(model))


def test_the_average_of_a_sharded_model_is_that_of_the_plain_one(two: dict[str, State]) -> None:
    ema = EMA(small(), 0.9)
    for step in range(4):
        ema.update(small(seed=step), step)
    assert_equal(two["average"]["average"], model_state(ema.model))
    assert_equal(two["average"]["left alone"], model_state(small(seed=3)))


# --- one process


def test_a_pytorch_that_cannot_shard_on_cpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.training.distributed.SHARDS_ON_CPU", False)
    with refused("cannot shard parameters on CPUs", "take a newer one, or launch without FSDP"):
        shard(small(), UNITS)


def test_state_of_one_process_goes_round() -> None:
    model, other = small(), small(seed=1)
    load_model_state(other, model_state(model))
    assert_equal(model_state(other), model.state_dict())


def test_optimiser_state_of_one_process_goes_round_and_goes_on_bit_for_bit() -> None:
    one, optimizer = trained_plain()
    state = kept(optimizer_state(one, optimizer))
    assert state.keys() == dict(one.named_parameters()).keys()
    assert all(values.keys() == {"step", "exp_avg", "exp_avg_sq"} for values in state.values())
    assert all(values["step"] == 3 for values in state.values())
    other = small(seed=1)
    other_optimizer = optimizer_of(other)
    load_model_state(other, model_state(one))
    load_optimizer_state(other, other_optimizer, state)
    for model, its_optimizer in ((one, optimizer), (other, other_optimizer)):
        train(model, its_optimizer)
    assert_equal(model_state(other), model_state(one))
    assert_equal(optimizer_state(other, other_optimizer), optimizer_state(one, optimizer))


def test_loading_keeps_no_hold_of_what_was_loaded() -> None:
    """It may be a file in memory, whose place on the disk would not be free before the run ends."""
    one, optimizer = trained_plain()
    states = kept({"model": model_state(one), "optimizer": optimizer_state(one, optimizer)})
    other = small(seed=1)
    other_optimizer = optimizer_of(other)
    load_model_state(other, states["model"])
    load_optimizer_state(other, other_optimizer, states["optimizer"])
    given = {t.data_ptr() for t in states["model"].values()}
    given |= {t.data_ptr() for values in states["optimizer"].values() for t in values.values()}
    held = {t.data_ptr() for t in other.state_dict().values()}
    held |= {t.data_ptr() for values in other_optimizer.state.values() for t in values.values()}
    assert not given & held


def test_an_optimiser_that_never_stepped_has_no_state() -> None:
    model = small()
    assert optimizer_state(model, optimizer_of(model)) == {}


def test_states_of_other_models_are_refused() -> None:
    model = small()
    state = kept(model_state(model))
    with pytest.raises(KeyError, match=r"tensors differ \(1\), the first is position"):
        load_model_state(model, {name: value for name, value in state.items() if name != "position"})
    with pytest.raises(KeyError, match="the first is extra"):
        load_model_state(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"position has shape \(1, 3, 32\), not \(1, 21, 32\)"):
        load_model_state(model, {**state, "position": torch.zeros(1, 3, 32)})
    with pytest.raises(KeyError, match="other"):
        load_optimizer_state(model, optimizer_of(model), {"other": {}})
    assert_equal(model_state(model), state)


def test_a_plain_model_needs_no_gathering_and_no_synchronisation() -> None:
    model = nn.Linear(3, 2)
    assert unshard(model, lambda: pytest.fail("nothing is to be built")) is model
    with no_sync(model, model):
        model(normal(4, 3)).sum().backward()
    assert model.weight.grad is not None
    assert local_tensor(model.weight) is model.weight
    assert not full_tensor(model.weight).requires_grad


def test_put_writes_parameters_and_buffers() -> None:
    norm = nn.BatchNorm1d(3)
    randomize(norm, seed=0)
    copy_into(norm.weight, torch.arange(3.0))
    copy_into(norm.num_batches_tracked, torch.tensor(7))
    assert norm.weight.tolist() == [0, 1, 2]
    assert norm.weight.requires_grad
    assert norm.num_batches_tracked == 7


@pytest.mark.parametrize(("value", "asked"), [("true", True), ("1", True), ("false", False), (None, False)])
def test_sharding_is_requested_by_the_launcher(value: str | None, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    assert is_sharding_requested() is asked


def test_runs_of_several_precisions_in_one_process(tmp_path: Path) -> None:
    for precision, found in (("bfloat16", "bf16"), ("float32", "no")):
        recipe = tokenizer_recipe(tmp_path / "r", tmp_path, precision=precision)
        assert build_accelerator(recipe).mixed_precision == found


def test_the_launcher_sets_what_the_recipe_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_open, explicit = {"precision": "auto"}, {"precision": "float32", "accumulate": 1}
    monkeypatch.setattr(distributed, "_launcher_flags", lambda: Namespace(mixed_precision="given", **NO_STEPS))
    for launched, precision in (("no", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
        caplog.clear()
        taken = with_launcher_settings(tokenizer_recipe(tmp_path / "r", tmp_path, **left_open))
        assert (taken.precision, taken.micro_batches) == (precision, 2)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        kept = with_launcher_settings(tokenizer_recipe(tmp_path / "r", tmp_path, **explicit))
        assert (kept.precision, kept.micro_batches) == ("float32", 1)
        assert "accumulate=1 of the recipe wins over accelerate launch, which says 2" in caplog.messages
        differs = f"precision=float32 of the recipe wins over accelerate launch, which says {precision}"
        assert (differs in caplog.messages) == (precision != "float32")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with refused("mixed_precision=fp8", "no, bf16, fp16"):
        with_launcher_settings(tokenizer_recipe(tmp_path / "r", tmp_path, **left_open))


def test_a_precision_that_nobody_chose_is_left_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`accelerate launch` without --mixed_precision says "no" like one with it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for precision in ("auto", "bfloat16"):
        taken = with_launcher_settings(tokenizer_recipe(tmp_path / "r", tmp_path, precision=precision))
        assert taken.precision == precision
    assert not caplog.messages


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (["/usr/bin/python", "/usr/bin/accelerate", "launch", "train.py", "launch"], ["train.py", "launch"]),
        (["python", "/usr/bin/accelerate-launch", "--cpu", "t.py"], ["--cpu", "t.py"]),
        (["python", "-m", "accelerate.commands.launch", "t.py"], ["t.py"]),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "t.py"], ["t.py"]),
        (["python", "/lib/accelerate/commands/launch.py", "t.py"], ["t.py"]),
        (["bash", "launch.sh", "--gradient_accumulation_steps", "2"], None),
        (["python", "launch.py", "t.py"], None),
        (["/usr/bin/accelerate", "config", "launch"], None),
        (["launch", "t.py"], None),
    ],
)
def test_only_the_launcher_of_accelerate_is_read(command: list[str], arguments: list[str] | None) -> None:
    assert distributed._launcher_arguments(command) == arguments


def test_arguments_that_the_launcher_would_not_take_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(distributed, "_launcher_arguments", lambda command: ["--no_such_flag"])
    assert with_launcher_settings(tokenizer_recipe(tmp_path / "r", tmp_path, precision="auto")).precision == "auto"
    assert "usage" not in capfd.readouterr().err


def test_without_a_launcher_the_recipe_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    recipe = tokenizer_recipe(tmp_path / "r", tmp_path, precision="auto")
    assert with_launcher_settings(recipe) is recipe
    assert recipe.micro_batches == 1


@pytest.mark.parametrize("steps", ["0", "-3", "abc", "1000000001", "9" * 5000])
@pytest.mark.parametrize("by", ["environment", "flag"])
def test_micro_batches_of_the_launcher_are_bounded_as_those_of_the_recipe(
    steps: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    if by == "environment":
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
    else:
        flags = Namespace(mixed_precision=None, gradient_accumulation_steps=steps)
        monkeypatch.setattr(distributed, "_launcher_flags", lambda: flags)
    for accumulate in (None, 2):  # also where the recipe wins
        recipe = tokenizer_recipe(tmp_path / "r", tmp_path, accumulate=accumulate)
        with refused("gradient_accumulation_steps of accelerate launch=", steps[:20], "in 1..1000000000"):
            with_launcher_settings(recipe)


def test_a_sharding_flag_that_is_neither_true_nor_false_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "maybe")
    with refused("ACCELERATE_USE_FSDP='maybe' must be true or false"):
        is_sharding_requested()


def test_the_launchers_compiler_is_accelerates_or_is_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", tmp_path)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert build_accelerator(recipe).state.dynamo_plugin.backend == "EAGER"
    assert not caplog.messages
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    build_accelerator(recipe)
    assert any("dynamo_backend=eager of accelerate launch is not used" in line for line in caplog.messages)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "indictor")
    with refused("ACCELERATE_DYNAMO_BACKEND='indictor' is none of no, eager", "inductor"):
        build_accelerator(recipe)


def test_accelerate_does_not_divide_losses_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    recipe = tokenizer_recipe(tmp_path / "r", tmp_path, accumulate=2)
    assert build_accelerator(recipe).gradient_accumulation_steps == 1


def test_flags_of_accelerate_launch_reach_the_run(tmp_path: Path) -> None:
    """The launcher passes the number of micro-batches on to DeepSpeed alone."""
    write_recipe(tmp_path / "r.yaml", TOKENIZER, data={"source": str(tmp_path)}, precision="auto")
    script = """
from pathlib import Path
from var.training.distributed import with_launcher_settings
from var.training.recipe import load_recipe
taken = with_launcher_settings(load_recipe(Path("r.yaml")))
print(taken.precision, taken.accumulate)
"""
    (tmp_path / "script.py").write_text(script)
    launch = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", 1)
    flags = ("--mixed_precision", "bf16", "--gradient_accumulation_steps", 3)
    done = run(*launch, *flags, "script.py", cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["bfloat16 3"], done.stderr
