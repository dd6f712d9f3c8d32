"""Runs with reader processes end within seconds, whatever happens to them, and keep or count what was done."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import TIMEOUT, assert_same_weights, metrics, tokenizer_recipe

from var.data.dataset import ImageDataset
from var.training.checkpointing import checkpoints
from var.training.logger import Report
from var.training.loop import train
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.trainer import Trainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked from the tests' own process")
SECONDS = 60  # a run that hangs does so for ever; that much for a busy machine


class Started:
    """A run in a process of its own, forked from this one, with its messages in a file."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        self.output = recipe.output
        self.log = recipe.output.with_suffix(".log")
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(recipe,))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def _run(self, recipe: TokenizerRecipe) -> None:
        import logging

        messages = self.log.open("w", buffering=1)
        os.dup2(messages.fileno(), 2)
        sys.stderr = messages
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=messages, force=True)
        train(recipe)

    def readers(self) -> list[int]:
        """The ids of its child processes."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def steps(self) -> int:
        metrics = self.output / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        found = checkpoints(self.output / "checkpoints")
        return int(found[-1].stem.removeprefix("step-")) if found else 0

    def end(self) -> tuple[int | None, str]:
        """Wait for its end; exit code and messages."""
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            pytest.fail(f"it goes on: {self.log.read_text()}")
        return self.process.exitcode, self.log.read_text()


@pytest.fixture
def long_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TokenizerRecipe]:
    monkeypatch.setattr("var.data.loader._cpus", lambda: 2)  # else a process bound to one has a single reader

    def recipe(workers: int = 2) -> TokenizerRecipe:
        return tokenizer_recipe(tmp_path / "r", images, steps=1000, data={"workers": workers}, checkpoint_every=500)

    return recipe


def gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def read_differently(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """Call the function before each training image of the third epoch and later."""
    forward = ImageDataset.__getitem__

    def read(self: ImageDataset, key: tuple[int, int]) -> Any:
        if self.augment and key[0] >= 2:
            before()
        return forward(self, key)

    monkeypatch.setattr(ImageDataset, "__getitem__", read)


def test_an_error_in_a_step_ends_the_run(
    long_run: Callable[..., TokenizerRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Trainer.mean_logs

    def fail(self: Trainer, logs: Any) -> Any:
        if self.step == 3:
            raise ValueError("out of something")
        return forward(self, logs)

    take_step = Trainer.take_step

    def fail_in_step(self: Trainer, batches: Any) -> None:
        torn = self.step == 2
        take_step(self, batches)
        if torn:
            self.step, self.in_step = 2, True
            raise ValueError("out of something")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", fail_in_step)
        run = Started(long_run())
        code, messages = run.end()
    assert (code, run.saved()) == (1, 0)
    assert "lost: 2 steps since the start; the same command goes on from there" in messages
    assert messages.endswith("ValueError: out of something\n")

    monkeypatch.setattr(Trainer, "mean_logs", fail)
    run = Started(long_run())
    code, messages = run.end()
    assert (code, run.saved()) == (1, 3)
    assert "step 3 was saved: the same command goes on from there" in messages


def test_a_killed_reader_ends_the_run_after_it_has_saved(long_run: Callable[..., TokenizerRecipe]) -> None:
    run = Started(long_run())
    run.wait(lambda: run.steps() >= 2)
    one, other = run.readers()
    os.kill(one, signal.SIGKILL)
    code, messages = run.end()
    assert code == 1
    assert run.saved() == run.steps() >= 2
    assert f"step {run.saved()} was saved" in messages
    assert f"process {one}, which reads data, ended with signal 9" in messages
    assert gone(other)


def test_readers_end_with_a_killed_run(long_run: Callable[..., TokenizerRecipe]) -> None:
    run = Started(long_run())
    run.wait(lambda: run.steps() >= 1)
    readers = run.readers()
    os.kill(run.pid, signal.SIGKILL)
    assert run.end()[0] == -signal.SIGKILL
    deadline = time.monotonic() + SECONDS
    while not all(map(gone, readers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(readers) == 2


def test_full_shared_memory_is_an_error(
    long_run: Callable[..., TokenizerRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = (0, resource.RLIM_INFINITY)  # of a file, which shared memory is
    read_differently(monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, none))
    run = Started(long_run())
    code, messages = run.end()
    assert (code, run.saved()) == (1, 4)  # of 8 images, in batches of 4
    assert "step 4 was saved" in messages
    assert "File too large" in messages


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGHUP, 1)])
def test_the_second_signal_ends_a_run_that_waits_for_data(
    long_run: Callable[..., TokenizerRecipe], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, workers: int
) -> None:
    read_differently(monkeypatch, lambda: time.sleep(10 * TIMEOUT))
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # by nohup, which a run respects
        signal.signal(number, signal.SIG_DFL)
    run = Started(long_run(workers))
    signal.signal(number, before)
    run.wait(lambda: run.steps() == 4)
    time.sleep(0.2)
    os.kill(run.pid, number)
    run.wait(lambda: f"{number.name}: stopping after the data of step 5" in run.log.read_text())
    os.kill(run.pid, number)  # the same request: a launcher passes on what the terminal has sent
    time.sleep(0.7)
    assert run.process.is_alive()
    os.kill(run.pid, number)
    code, messages = run.end()
    assert (code, run.saved()) == (128 + number, 4)
    assert "step 4 was saved: the same command goes on from there" in messages


# --- what follows a step


@pytest.fixture(scope="module")
def short_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerRecipe:
    """A run that nothing happened to, with a validation and a sheet after the third step, its last."""
    recipe = tokenizer_recipe(tmp_path_factory.mktemp("runs") / "whole", images, steps=3)
    train(recipe)
    return recipe


def assert_same_run(a: TokenizerRecipe, b: TokenizerRecipe) -> None:
    assert metrics(a.output) == metrics(b.output)
    for name in ("best", "model"):
        assert_same_weights(a.output / name, b.output / name)
    sheets = [{file.name: file.read_bytes() for file in (r.output / "pictures").iterdir()} for r in (a, b)]
    assert sheets[0] == sheets[1] != {}


@pytest.mark.parametrize("method", ["mean_logs", "validate", "export", "preview"])
def test_what_an_error_kept_from_following_a_step_is_made_up_for(
    method: str, short_run: TokenizerRecipe, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=3)
    forward = getattr(Trainer, method)

    def fail(self: Trainer, *arguments: Any) -> Any:
        if self.step == 3:
            raise ValueError("out of something")
        return forward(self, *arguments)

    for _ in range(2):  # the run that goes on may fail there again
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, method, fail)
            with pytest.raises(ValueError, match="out of something"):
                train(recipe)
        assert [path.name for path in checkpoints(recipe.output / "checkpoints")] == ["step-00000003.pt"]
    train(recipe)
    assert_same_run(recipe, short_run)


@pytest.mark.parametrize(("where", "method"), [(Trainer, "preview"), (Report, "sheet")])
def test_what_a_kill_kept_from_following_a_step_is_made_up_for(
    where: type, method: str, short_run: TokenizerRecipe, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(where, method, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert Started(recipe).end()[0] == -signal.SIGKILL
    train(recipe)
    assert_same_run(recipe, short_run)


def test_what_the_recipe_no_longer_wants_is_not_made_up_for(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sheet for which the memory is too small must not keep the run from going on."""

    def fail(self: Trainer) -> None:
        if self.step == 2:
            raise MemoryError

    monkeypatch.setattr(Trainer, "preview", fail)
    with pytest.raises(MemoryError):
        train(tokenizer_recipe(tmp_path / "r", images, steps=3, sample_every=2))
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=3, sample_every=3)
    train(recipe)
    assert [line["step"] for line in metrics(recipe.output, "train")] == [1, 2, 3]


def test_a_torn_checkpoint_is_removed_when_the_run_is_opened_again(images: Path, tmp_path: Path) -> None:
    recipe = tokenizer_recipe(tmp_path / "r", images, steps=1)
    train(recipe)
    folder = recipe.output / "checkpoints"
    for name in ("step-00000002.new", "step-00000002.sha256.new", "notes.new"):
        (folder / name).write_text("half of it")
    train(recipe)  # saves nothing
    assert sorted(path.name for path in folder.iterdir()) == ["notes.new", "step-00000001.pt", "step-00000001.sha256"]
