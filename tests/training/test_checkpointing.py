"""Checkpoints of a run: whole or not there, the newest and the best kept, damaged ones passed over."""

import hashlib
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused

from var.training import checkpointing as module
from var.training.checkpointing import checkpoint_path, checkpoints, load_newest, save_checkpoint

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"hello world\n" * 30,
    "another pickle": lambda data: b"\x80\x02X\x03\x00\x00\x00abc.",
    "head lost": lambda data: data[100:],
    "one bit at the start": lambda data: flipped(data, 0),
    "one bit in the middle": lambda data: flipped(data, len(data) // 2),
    "one bit at the end": lambda data: flipped(data, len(data) - 1),
    "one byte more": lambda data: data + b"\0",
    "one byte less": lambda data: data[:-1],
}
CHECKSUMS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text(path.read_text()[:40]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe" * 32),
    "of another file": lambda path: path.write_text(hashlib.sha256(b"another").hexdigest() + "\n"),
    "of the one before": lambda path: path.write_text(path.with_name("step-00000001.sha256").read_text()),
}


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def state(step: int, size: int = 64) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((size,), float(step))}}


def damage(path: Path, how: str) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes()))


def newest(folder: Path) -> int:
    """The step of the checkpoint that a run would go on from, which must be whole."""
    loaded = load_newest(folder)
    assert loaded is not None
    assert (loaded["model"]["weight"] == loaded["step"]).all()
    return int(loaded["step"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kept_steps(folder: Path) -> list[int]:
    """The steps that there are checkpoints of; there must be nothing else in the folder than those and their sums."""
    steps = [int(path.stem.removeprefix("step-")) for path in checkpoints(folder)]
    expected = {f"step-{step:08d}{suffix}" for step in steps for suffix in (".pt", ".sha256")}
    assert {path.name for path in folder.iterdir()} == expected
    return steps


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints") is None
    (tmp_path / "notes.txt").write_text("step-00000001.pt")
    (tmp_path / "step-1.pt").write_text("of something else")
    (tmp_path / "step-00000002.new").write_text("torn")
    (tmp_path / "step-00000002.sha256").write_text("of what was never renamed")
    assert load_newest(tmp_path) is None


def test_round_trip_and_names(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a" / "b", 42, state(42), keep_last=1)
    assert path == checkpoint_path(tmp_path / "a" / "b", 42) == tmp_path / "a" / "b" / "step-00000042.pt"
    assert newest(path.parent) == 42


def test_all_that_a_state_holds_survives(tmp_path: Path) -> None:
    """Large enough to be written in several pieces."""
    tensors = [torch.randn(300, 1000), torch.randn(7).bfloat16(), torch.tensor(3), torch.arange(5)[::2]]
    rest = {"step": 5, "best": None, "rate": 0.1, "recipe": {"scales": [1, 2], "seed": 2**31}}
    save_checkpoint(tmp_path, 5, {**rest, "tensors": tensors}, keep_last=1)
    loaded = load_newest(tmp_path)
    assert loaded is not None
    for ours, theirs in zip(loaded.pop("tensors"), tensors, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert loaded == rest


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, state(3, 10**5), keep_last=1)
    assert path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest() + "\n"


# --- which ones are kept


def test_the_newest_are_kept_and_the_checksums_of_others_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100, 11):
        save_checkpoint(tmp_path, step, state(step), keep_last=2)
    assert kept_steps(tmp_path) == [11, 100]
    assert newest(tmp_path) == 100


def test_the_best_one_is_kept_beside_the_newest(tmp_path: Path) -> None:
    kept = {}
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5), (7, 5), (8, 5)):
        save_checkpoint(tmp_path, step, state(step), keep_last=2, best=best)
        kept[step] = kept_steps(tmp_path)
    assert kept == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [4, 5], 6: [5, 6], 7: [5, 6, 7], 8: [5, 7, 8]}
    assert newest(tmp_path) == 8


def test_a_best_one_that_is_gone_is_no_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 2, state(2), keep_last=1, best=1)
    assert kept_steps(tmp_path) == [2]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    for _ in range(2):
        save_checkpoint(tmp_path, 1, state(1), keep_last=2)
    assert kept_steps(tmp_path) == [1]
    assert newest(tmp_path) == 1


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "step-final.pt", "model.sha256"):
        (tmp_path / name).write_text("mine")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep_last=1)
    assert {"notes.txt", "step-final.pt", "model.sha256"} < {path.name for path in tmp_path.iterdir()}


def test_folders_of_others_end_no_save(tmp_path: Path) -> None:
    for name in ("foo.new", "step-00000009.new", "step-00000011.pt", "step-00000001.sha256.new"):
        (tmp_path / name / "inside").mkdir(parents=True)
    for name in ("mine.new", "step-best.sha256"):
        (tmp_path / name).write_text("mine")
    before = set(tmp_path.iterdir())
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, step, state(step), keep_last=1)
    assert newest(tmp_path) == 4
    assert set(tmp_path.iterdir()) == before | {tmp_path / "step-00000004.pt", tmp_path / "step-00000004.sha256"}


@pytest.mark.parametrize("name", ["step-00000002.pt", "step-00000002.new", "step-00000002.sha256"])
def test_a_folder_in_the_way_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep_last=1)
    (tmp_path / name).mkdir()
    with refused(f"step 2 cannot be written: {tmp_path / name} is a folder: move it away", "from step-00000001.pt"):
        save_checkpoint(tmp_path, 2, state(2), keep_last=1)
    assert newest(tmp_path) == 1


def test_an_old_one_that_cannot_be_removed_ends_no_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep_last=1)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    save_checkpoint(tmp_path, 2, state(2), keep_last=1)
    assert newest(tmp_path) == 2
    assert "step-00000001.pt is not needed any more and cannot be removed: " in caplog.text


# --- damage


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_is_passed_over_with_a_warning(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep_last=3)
    damage(tmp_path / "step-00000002.pt", how)
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-00000002.pt is damaged" in caplog.text


@pytest.mark.parametrize("how", CHECKSUMS)
def test_one_whose_checksum_does_not_tell_that_it_is_whole_is_passed_over(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep_last=3)
    CHECKSUMS[how](tmp_path / "step-00000002.sha256")
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == 1
    assert "step-00000002.pt is damaged" in caplog.text
    save_checkpoint(tmp_path, 2, state(2), keep_last=3)  # the step is done again
    assert newest(tmp_path) == 2
    assert kept_steps(tmp_path) == [1, 2]


def test_a_bit_in_the_numbers_is_noticed_which_unpickling_would_not(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1), keep_last=1)
    data = path.read_bytes()
    place = data.index(state(1)["model"]["weight"].numpy().tobytes())
    path.write_bytes(flipped(data, place + 2))
    assert (torch.load(path, weights_only=True)["model"]["weight"] != 1).sum() == 1
    with refused("no checkpoint in ", "can be read (of 1)"):
        load_newest(tmp_path)


def test_several_damaged_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, state(step), keep_last=9)
    for step, how in ((4, "truncated"), (3, "one bit in the middle")):
        damage(checkpoint_path(tmp_path, step), how)
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == 2
    assert len(caplog.records) == 2


def test_nothing_but_damaged_ones_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    for step, how in enumerate(DAMAGES):
        damage(save_checkpoint(tmp_path, step, state(step), keep_last=99), how)
    with refused(f"no checkpoint in {tmp_path} can be read (of {len(DAMAGES)})", "move them away"):
        load_newest(tmp_path)


def test_no_earlier_checkpoint_is_spoken_of_where_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        damage(save_checkpoint(tmp_path, step, state(step), keep_last=99), next(iter(DAMAGES)))
    with refused("no checkpoint in "):
        load_newest(tmp_path)
    assert ["trying the one before" in line for line in caplog.messages] == [True, False]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Sly:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    save_checkpoint(tmp_path, 1, {"step": 1, "sly": Sly()}, keep_last=1)
    with refused("no checkpoint in ", "can be read (of 1)"):
        load_newest(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- saves that are interrupted


class Killed(BaseException):
    """As by kill -9: nothing is tidied up."""


class KilledAt:
    """Lets so many operations on files pass, and kills before the next."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.done: list[str] = []

    def around(self, operation: Callable[..., Any], name: str) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            if len(self.done) == self.passes:
                raise Killed
            result = operation(*arguments, **named)
            self.done.append(name)
            return result

        return guarded


@pytest.mark.parametrize("keep", [1, 2])
def test_killed_before_any_operation_of_a_save(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, finished = 0, False
    while not finished:
        folder = tmp_path / str(passes)
        save_checkpoint(folder, 1, state(1), keep)
        killed = KilledAt(passes)
        with monkeypatch.context() as patch:
            for name in ("open", "replace", "unlink"):
                patch.setattr(Path, name, killed.around(getattr(Path, name), name))
            for name in ("write", "flush"):
                patch.setattr(module._HashingFile, name, killed.around(getattr(module._HashingFile, name), name))
            patch.setattr(os, "fsync", killed.around(os.fsync, "fsync"))
            try:
                save_checkpoint(folder, 2, state(2), keep)
                finished = True
            except Killed:
                pass
        renamed = killed.done.count("replace") == 2  # the checksum's, then the checkpoint's
        assert newest(folder) == (2 if renamed else 1), killed.done
        save_checkpoint(folder, 2, state(2), keep)  # over whatever remained
        assert kept_steps(folder) == ([2] if keep == 1 else [1, 2])
        assert newest(folder) == 2
        passes += 1
    assert passes > 12
    first = killed.done.index("replace")
    assert "fsync" in killed.done[:first]  # of the checkpoint and of its checksum, before they have their names
    assert killed.done[:first].count("fsync") == 2


def test_killed_in_the_middle_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep_last=1)

    def torn(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 2, state(2), keep_last=1)
    assert (tmp_path / "step-00000002.new").exists()
    assert newest(tmp_path) == 1
    save_checkpoint(tmp_path, 3, state(3), keep_last=1)
    assert kept_steps(tmp_path) == [3]


# --- disks that are full


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system itself refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 5000, 100_000, 399_000])
def test_a_full_disk_leaves_what_was_written_before(room: int, tmp_path: Path) -> None:
    size = 100_000  # 400 kB
    save_checkpoint(tmp_path, 1, state(1, size), keep_last=1)
    before = contents(tmp_path)
    with (
        refused(f"checkpoint of step 2 cannot be written to {tmp_path}", "make room", "from step-00000001.pt"),
        no_file_larger_than(room),
    ):
        save_checkpoint(tmp_path, 2, state(2, size), keep_last=1)
    assert contents(tmp_path) == before
    assert newest(tmp_path) == 1
    save_checkpoint(tmp_path, 2, state(2, size), keep_last=1)
    assert kept_steps(tmp_path) == [2]
    assert newest(tmp_path) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("which", ["step-00000002.new", "step-00000002.sha256.new"])
def test_no_space_left_on_the_device(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep_last=1)
    opened = Path.open

    def on_full_device(path: Path, *arguments: Any, **named: Any) -> Any:
        return opened(Path("/dev/full") if path.name == which else path, *arguments, **named)

    with monkeypatch.context() as patch, refused("No space left on device", "from step-00000001.pt"):
        patch.setattr(Path, "open", on_full_device)
        save_checkpoint(tmp_path, 2, state(2), keep_last=1)
    assert newest(tmp_path) == 1
    assert kept_steps(tmp_path) == [1]


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    with refused("checkpoint of step 2", "goes on from the start"), no_file_larger_than(1000):
        save_checkpoint(tmp_path, 2, state(2), keep_last=1)
    assert load_newest(tmp_path) is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with refused("checkpoint of step 2", f"{tmp_path / 'run'}"):
        save_checkpoint(tmp_path / "run", 2, state(2), keep_last=1)


# --- damaged ones of later steps, from which a run could not go on


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_damaged_one_of_a_later_step_takes_no_place(keep: int, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep_last=3)
    damage(tmp_path / "step-00000003.pt", "truncated")
    (tmp_path / "step-00000001.pt").unlink()
    assert newest(tmp_path) == 2
    assert save_checkpoint(tmp_path, 2, state(2), keep).exists()
    assert newest(tmp_path) == 2
    save_checkpoint(tmp_path, 1, state(1), keep)
    assert kept_steps(tmp_path) == {1: [1], 2: [1, 2], 3: [1, 2, 3]}[keep]
