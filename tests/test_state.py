"""Checkpoints of a run: whole or not there, the newest kept, damaged ones passed over."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused

from var.training.state import checkpoints, load_newest, save_checkpoint

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"hello world\n" * 30,
    "another pickle": lambda data: b"\x80\x02X\x03\x00\x00\x00abc.",
    "head lost": lambda data: data[100:],
}


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((64,), float(step))}}


def damage(path: Path, how: str) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes()))


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints") is None
    (tmp_path / "notes.txt").write_text("step-00000001.pt")
    assert load_newest(tmp_path) is None


def test_round_trip_and_names(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a" / "b", 42, state(42), keep=1)
    assert path == tmp_path / "a" / "b" / "step-00000042.pt"
    loaded = load_newest(path.parent)
    assert loaded is not None
    assert loaded["step"] == 42
    assert torch.equal(loaded["model"]["weight"], torch.full((64,), 42.0))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 11):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000011.pt", "step-00000100.pt"]
    assert sorted(tmp_path.iterdir()) == checkpoints(tmp_path)  # nothing half-written stays either
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 100


def test_a_save_that_dies_leaves_the_older_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep=1)

    def torn(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001.pt"]
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1
    save_checkpoint(tmp_path, 2, state(2), keep=1)  # over the remains of the torn one
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_is_passed_over_with_a_warning(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    damage(tmp_path / "step-00000002.pt", how)
    with caplog.at_level(logging.WARNING):
        loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-00000002.pt is damaged" in caplog.text


def test_nothing_but_damaged_ones_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    for step, how in enumerate(DAMAGES):
        damage(save_checkpoint(tmp_path, step, state(step), keep=99), how)
    with refused(f"none of the {len(DAMAGES)} checkpoints in {tmp_path} can be read", "move them away"):
        load_newest(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Sly:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    save_checkpoint(tmp_path, 1, {"step": 1, "sly": Sly()}, keep=1)
    with refused("none of the 1 checkpoints"):
        load_newest(tmp_path)
    assert not (tmp_path / "ran").exists()
