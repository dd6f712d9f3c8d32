"""One thread: the models here are so small that threads only wait for one another, above all on a busy machine."""

import importlib
import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tiny import NAMES, ROOT, Ended, Graphs, Run, ended, tiny_pipeline
from tiny_hub import TOKEN, Hub, serve, use
from tiny_runs import WriteRun, write_run

from var.cli import app
from var.cli.run import run
from var.pipeline import VARPipeline

torch.set_num_threads(1)

# JAX's logger writes where standard error was when it was imported, and closes that when uvicorn sets up logging,
# unless it is the process's own: what pytest captures would be closed, and every later test would fail.
with redirect_stderr(sys.__stderr__):
    importlib.import_module("absl.logging")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="how often tests/training/test_kill.py kills its run")


@pytest.fixture(autouse=True)
def _log_levels_as_before() -> Iterator[None]:
    """Commands set levels for their process, which here is that of all tests."""
    levels = {
        logger: logger.level
        for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict))
    }
    yield
    for logger, level in levels.items():
        if logger.level != level:
            logger.setLevel(level)


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The `var` command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["var", *map(str, arguments)])
        return ended(app.main, capsys)

    return call


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A script of benchmarks/ in this process: its file, its functions that are commands, arguments."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def call(name: str, functions: tuple[str, ...], *arguments: object) -> Ended:
        found = runpy.run_path(str(ROOT / "benchmarks" / name))
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return ended(lambda: run(*(found[function] for function in functions)), capsys)

    return call


@pytest.fixture(scope="module")
def pipe() -> VARPipeline:
    """Random weights; knows classes 0, 1, 3 and 4."""
    return tiny_pipeline(NAMES)


@pytest.fixture(name="write_run")
def _write_run(tmp_path: Path) -> WriteRun:
    """Write the folder of a run of that depth."""
    return partial(write_run, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of the test's own, to which the client is logged in, with an empty cache."""
    with serve() as hub:
        use(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Collect what the compiler would compile, and run it as it is."""
    found: Graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield found
    torch.compiler.reset()
