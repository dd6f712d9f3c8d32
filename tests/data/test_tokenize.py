"""That encoding survives damage, kills and a full disk, and is shared by processes."""

import errno
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import refused
from tiny import run
from tiny_tokens import (
    SHARD,
    TRAIN,
    VALIDATION,
    VIEWS,
    changed,
    contents,
    file,
    identities,
    waits,
    write,
)

from tokenizer.vqvae import VQVAE
from var.data.tokenize import write_tokens
from var.training.stages.var import VARRecipe
from var.utils.locks import locked
from var.utils.ranks import ALONE, Ranks

# Damage, kills and several processes


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_label(path: Path) -> None:
    record = json.loads(path.read_bytes())
    record["labels"][0] ^= 1
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-v1-00002.bin", flip_a_bit),
        ("train-v1-00002.bin", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("train-v1-00002.bin", Path.unlink),
        ("train-v1-00002.json", other_label),
        ("train-v1-00002.json", lambda path: path.write_text("{")),
        ("train-v1-00002.json", Path.unlink),
    ],
)
def test_only_a_damaged_shard_is_encoded_again(
    recipe: VARRecipe,
    vqvae: VQVAE,
    name: str,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(recipe, vqvae)
    before, whole = identities(recipe), contents(recipe)
    damage(file(recipe, name))
    with caplog.at_level(logging.WARNING):
        assert write(recipe, vqvae).encoded == SHARD
    assert contents(recipe) == whole
    now = identities(recipe)
    assert {name for name in before if before[name] != now[name]} == {"train-v1-00002.bin", "train-v1-00002.json"}
    gone = damage is Path.unlink and name.endswith("json")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ([] if gone else [f"{file(recipe, 'train-v1-00002.bin')} is damaged: encoding it again"])


def killed_at(recipe: VARRecipe, vqvae: VQVAE, moment: int) -> bool:
    """Encode in a process that is killed at one of the moments when it has encoded a batch or is writing a file.

    Returns:
        Whether the process came that far.
    """

    def child() -> None:
        passed = 0

        def moment_passes(*_: object) -> None:
            nonlocal passed
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1

        replace = Path.replace
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", moment_passes)  # a file is whole beside its place
            patch.setattr(Path, "replace", lambda path, target: (replace(path, target), moment_passes()))
            write(recipe, vqvae, progress=moment_passes)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path
) -> None:
    recipe = changed(recipe, token_views=1)
    write(recipe, vqvae)
    for moment in range(0, 27, 2):
        other = changed(recipe, token_cache=tmp_path / f"killed-{moment}")
        assert killed_at(other, vqvae, moment)
        done = [path.stem for path in (other.token_cache or Path()).glob("*-*.json")]
        before = identities(other)
        summary = write(other, vqvae)
        assert contents(other) == contents(recipe)
        assert summary.encoded <= TRAIN + VALIDATION - sum({"train-v0-00003": 2}.get(name, SHARD) for name in done)
        kept = identities(other)
        assert all(kept[f"{name}.bin"] == before[f"{name}.bin"] for name in done)
    assert not killed_at(changed(recipe, token_cache=tmp_path / "through"), vqvae, 1000)


def test_killed_again_and_again_it_comes_to_an_end(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    """Each attempt is killed after one shard; none of them is lost."""
    write(recipe, vqvae)
    other, attempts = changed(recipe, token_cache=tmp_path / "killed"), 0
    while killed_at(other, vqvae, 5):
        attempts += 1
    assert attempts == VIEWS * 4 + 1  # the manifest goes first; the last attempt ends before it can be killed
    assert contents(other) == contents(recipe)


def test_processes_share_the_shards(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    """Whatever their number, and also when it changes between two attempts."""
    whole = write(recipe, vqvae)
    other = changed(recipe, token_cache=tmp_path / "shared")
    with pytest.raises(StopIteration):  # the others have not come: their shards are missing
        write(other, vqvae, ranks=Ranks(0, 3, waits(1)))
    assert 0 < len(contents(other)) < len(contents(recipe))
    summary = write(other, vqvae, ranks=ALONE)
    assert 0 < summary.encoded < whole.encoded
    assert contents(other) == contents(recipe)


def test_two_processes_write_what_one_writes(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    write_tokens(recipe, vqvae)
    other = changed(recipe, token_cache=tmp_path / "two")
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 0, "--standalone")
    result = run(*launch, "-m", "var", "data", "tokenize", tmp_path / "recipe.yaml", f"token_cache={other.token_cache}")
    assert result.returncode == 0, result.stderr
    assert contents(other) == contents(recipe)
    assert f"holds {VIEWS * TRAIN + VALIDATION} encoded images" in result.stdout
    assert f"{VIEWS * TRAIN + VALIDATION} now" in result.stdout


def test_a_full_disk(recipe: VARRecipe, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with refused("token_cache=", "No space left on device", "the same command encodes only"):
        write(recipe, vqvae)
    assert sorted(contents(recipe)) == [
        "manifest.json",
        *(f"train-v{view}-00000.{end}" for view in range(2) for end in ("bin", "json")),
    ]
    assert write(recipe, vqvae).encoded == VIEWS * TRAIN + VALIDATION - 2 * SHARD


def test_one_process_at_a_time_encodes_and_any_number_reads(recipe: VARRecipe, vqvae: VQVAE) -> None:
    folder = recipe.token_cache
    assert folder is not None
    with locked(folder), refused(f"{folder} is in use by process "):
        write(recipe, vqvae)
    write(recipe, vqvae)
    with locked(folder):
        assert write(recipe, vqvae).encoded == 0
    file(recipe, "train-v1-00002.bin").unlink()
    with locked(folder), refused(f"{folder} is in use by process "):
        write(recipe, vqvae)
