"""What a run survives and counts, and where it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import refused
from tiny import tokenizer_recipe

from var.data.dataset import Batch, Unreadable
from var.training.health import RunHealth
from var.training.stages.tokenizer import TokenizerRecipe


class Alone:
    """The one process of a run."""

    num_processes, process_index, is_main_process, device = 1, 0, True, torch.device("cpu")

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a process alone has nobody to ask")


class WithOther(Alone):
    """One of two processes, the other of which says the given number."""

    num_processes, process_index, is_main_process = 2, 1, False

    def __init__(self, other: float) -> None:
        self.other = other

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + self.other


@pytest.fixture
def recipe(tmp_path: Path) -> TokenizerRecipe:
    return tokenizer_recipe(tmp_path / "run", tmp_path, max_skipped=3, data={"max_unreadable": 0.01})


def guard_of(recipe: TokenizerRecipe, accelerator: Any = None, batch_size: int = 4) -> RunHealth:
    return RunHealth(recipe.model_copy(update={"batch_size": batch_size}), accelerator or Alone())


def batch(size: int, *unreadable: str) -> Batch:
    places = [f"/images/{i}.png" for i in range(size)]
    missing = [Unreadable(0, place, "it is cut off") for place in unreadable]
    return Batch(torch.zeros(size, 3, 2, 2), torch.arange(size), places, missing)


# --- flags


@pytest.mark.parametrize(("mine", "other", "any_"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)])
def test_a_flag_of_any_process_counts_for_all(recipe: TokenizerRecipe, mine: int, other: int, any_: bool) -> None:
    assert guard_of(recipe, WithOther(other)).any_process(bool(mine)) is any_
    assert guard_of(recipe).any_process(bool(mine)) is bool(mine)


def test_any_process_on_a_real_accelerator(recipe: TokenizerRecipe) -> None:
    guard = RunHealth(recipe, Accelerator(cpu=True))
    assert guard.any_process(True) is True
    assert guard.any_process(False) is False


# --- images that cannot be read


def test_unreadable_images_are_counted_over_micro_batches(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe, batch_size=9)
    guard.check_readable([batch(4, "/a.png"), batch(3), batch(2, "/b.png", "/a.png")])
    assert (guard.unreadable, guard.seen) == (3, 9)
    assert guard.counts() == {"unreadable_images": 3}


def test_a_few_are_no_share_of_few(recipe: TokenizerRecipe) -> None:
    """Ten of the first thousand are allowed at one per cent, at whatever place of them."""
    guard = guard_of(recipe, batch_size=10)
    guard.check_readable([batch(10, *["/a.png"] * 10)])
    with refused(
        "11 of 20 images wanted could not be read",
        "data.max_unreadable=0.01",
        "/last.png (it is cut off)",
        "repair or replace",
    ):
        guard.check_readable([batch(10, "/last.png")])


def test_later_it_is_the_share_of_all_that_counts(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe, batch_size=2500)
    guard.check_readable([batch(2500, *["/a.png"] * 25)])
    guard.check_readable([batch(2500, *["/a.png"] * 25)])
    with refused("76 of 7500 images wanted could not be read"):
        guard.check_readable([batch(2500, *["/a.png"] * 26)])


def test_none_may_be_allowed(tmp_path: Path) -> None:
    strict = guard_of(tokenizer_recipe(tmp_path / "strict", tmp_path, data={"max_unreadable": 0}))
    strict.check_readable([batch(4)])
    with refused("1 of 8 images wanted could not be read", "data.max_unreadable=0 "):
        strict.check_readable([batch(4, "/a.png")])


def test_the_first_unreadable_images_are_named_once(recipe: TokenizerRecipe, caplog: pytest.LogCaptureFixture) -> None:
    guard = guard_of(recipe)
    guard.seen = 10**6
    for _ in range(2):
        guard.check_readable([batch(4, *(f"/{n}.png" for n in range(7)))])
    assert len(caplog.messages) == 5
    assert caplog.messages[0] == "cannot read /0.png (it is cut off)"
    assert caplog.messages[-1] == "cannot read /4.png (it is cut off); further ones are counted, not named"


def test_an_image_without_any_substitute_ends_the_run(recipe: TokenizerRecipe) -> None:
    with refused("neither /b.png (it is cut off) nor any of the substitutes tried for it", "repair or replace"):
        guard_of(recipe).check_readable([batch(2), batch(1, "/a.png", "/b.png")])


def test_a_process_expects_its_share_of_the_batch(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe, WithOther(0), batch_size=5)  # the second process has two of them
    guard.check_readable([batch(1), batch(1)])
    assert guard.seen == 2
    with refused("neither /a.png"):
        guard.check_readable([batch(1), batch(0, "/a.png")])


def test_a_resumed_run_may_have_a_stricter_limit(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe)
    guard.load_state_dict({"unreadable": 400, "seen": 1000, "skipped_steps": 0, "skipped_in_a_row": 0})
    guard.check_readable([batch(4)])  # there is nothing new to complain of
    with refused("401 of 1008 images wanted could not be read", "data.max_unreadable=0.01", "/a.png"):
        guard.check_readable([batch(4, "/a.png")])


# --- steps that are not finite


def test_skipped_steps_are_counted_until_there_are_too_many_in_a_row(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe)
    for step in (4, 5):
        guard.record_skipped_step(step, "model", {"loss": torch.tensor(float("nan"))}, [batch(2)])
    assert (guard.skipped_steps, guard.skipped_in_a_row) == (2, 2)
    guard.record_step()
    assert (guard.skipped_steps, guard.skipped_in_a_row) == (2, 0)
    for step in (7, 8):
        guard.record_skipped_step(step, "model", {"loss": torch.tensor(float("nan"))}, [batch(2)])
    assert guard.counts() == {"skipped_steps": 4}
    assert not recipe.output.exists()  # nothing is written down before the end


def test_the_last_batch_is_written_down(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe, WithOther(0))
    logs = {"loss": torch.tensor(float("nan")), "l1": torch.tensor(float("inf")), "l2": torch.tensor(0.25)}
    path = recipe.output / "not_finite" / "step-00000012-process-1.json"
    for step in (10, 11):
        guard.record_skipped_step(step, "discriminator", logs, [batch(1)])
    with refused("3 steps in a row", "12", str(path), "optimizer.lr=0.003", "optimizer.grad_clip", str(recipe.output)):
        guard.record_skipped_step(12, "discriminator", logs, [batch(2), batch(1)])
    assert json.loads(path.read_text()) == {
        "step": 12,
        "turn": "discriminator",
        "numbers": {"loss": "nan", "l1": "inf", "l2": "0.25"},
        "places": ["/images/0.png", "/images/1.png", "/images/0.png"],
        "labels": [0, 1, 0],
    }
    assert "NaN" not in path.read_text()  # which is not JSON
    assert list(path.parent.iterdir()) == [path]


def test_counts_go_on_where_they_stopped(recipe: TokenizerRecipe) -> None:
    guard, other = guard_of(recipe), guard_of(recipe)
    assert guard.counts() == {}
    guard.check_readable([batch(4, "/a.png", "/b.png")])
    guard.record_skipped_step(1, "model", {}, [batch(4)])
    state = guard.state_dict()
    other.load_state_dict(json.loads(json.dumps(state)))
    assert other.counts() == guard.counts() == {"skipped_steps": 1, "unreadable_images": 2}
    assert other.state_dict() == state == {"unreadable": 2, "seen": 4, "skipped_steps": 1, "skipped_in_a_row": 1}


def test_counts_are_those_of_all_processes_and_taken_over_by_the_main_one(recipe: TokenizerRecipe) -> None:
    guard = guard_of(recipe, WithOther(7), batch_size=5)
    guard.check_readable([batch(2, "/a.png")])
    assert guard.state_dict() == {"unreadable": 8, "seen": 9, "skipped_steps": 0, "skipped_in_a_row": 0}
    assert guard.counts() == {"unreadable_images": 8}
    second = guard_of(recipe, WithOther(8))
    second.load_state_dict({"unreadable": 8, "seen": 9, "skipped_steps": 3, "skipped_in_a_row": 2})
    assert (second.unreadable, second.seen, second.skipped_steps) == (0, 0, 3)
