"""torch.hub's entry points, from this clone."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import refused
from tiny import ROOT, run
from tiny_aim import SIZES, small_aim

from var.aim import AIM
from var.hub.checkpoint import save_model
from var.hub.presets import AIM_RELEASED, AIM_SIZES, ReleasedAIM
from var.models.aim import EncoderConfig

ENTRIES = {"aim_600M": "aim-600M", "aim_1B": "aim-1B", "aim_3B": "aim-3B", "aim_7B": "aim-7B"}


def load(entry: str, **options: Any) -> AIM:
    return torch.hub.load(str(ROOT), entry, source="local", **options)


def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_listed() -> None:
    """As torch.hub.list finds it."""
    module = vars(hubconf())
    assert [name for name, value in module.items() if callable(value) and not name.startswith("_")] == [*ENTRIES]
    assert "aim-3B" in module["aim_3B"].__doc__


@pytest.mark.parametrize("entry", ENTRIES)
def test_sizes(entry: str) -> None:
    """On the meta device, where no memory is taken."""
    with torch.device("meta"):
        model, last = load(entry, pretrained=False), load(entry, pretrained=False, probe_layers="last")
    preset = AIM_RELEASED[ENTRIES[entry]]
    assert type(model) is AIM
    assert model.config.encoder == last.config.encoder == preset.config
    assert model.config.probe_layers == preset.best
    assert last.config.probe_layers[-1] == preset.config.depth - 1


@torch.no_grad()
def test_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AIM_SIZES, "aim-1B", EncoderConfig(**SIZES))
    first, second = (load("aim_1B", pretrained=False, probe_layers=[1]) for _ in range(2))
    assert first(torch.zeros(2, 3, 8, 8)).logits.shape == (2, 1000)
    assert not torch.equal(first.probe.query, second.probe.query)
    with refused("device, dtype", "pretrained=True"):
        load("aim_1B", pretrained=False, device="cpu", dtype="float32")


def test_released_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that were converted before."""
    monkeypatch.setenv("VAR_CACHE", str(tmp_path))
    monkeypatch.setitem(AIM_RELEASED, "aim-7B", ReleasedAIM(EncoderConfig(**SIZES), (0, 2), "files", "repository"))
    save_model(tmp_path / "aim-7B-last", small_aim(probe_layers=(1, 2)))
    model = load("aim_7B", probe_layers="last", dtype="float32")
    assert torch.equal(model.probe.query, small_aim().probe.query)
    assert not model.training


def test_from_a_clone_that_is_not_installed(tmp_path: Path) -> None:
    """In another folder and with nothing on the path, in a process that has not imported the project."""
    code = (
        "import sys, torch\n"
        f"sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('tokenizer') is None\n"
        "with torch.device('meta'):\n"
        f"    model = torch.hub.load({str(ROOT)!r}, 'aim_600M', source='local', pretrained=False)\n"
        "print(type(model).__name__, model.config.width)\n"
    )
    done = run("-c", code, cwd=tmp_path, PYTHONPATH="")
    assert (done.returncode, done.stdout) == (0, "AIM 1536\n"), done.stderr


def test_dependencies_can_be_imported() -> None:
    assert all(importlib.util.find_spec(name) for name in hubconf().dependencies)


def test_it_is_in_no_package() -> None:
    """torch.hub reads it in a clone; installed, it would stand in the way of other projects' hubconf."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "hubconf" not in str(setuptools)
