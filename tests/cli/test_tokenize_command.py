"""`var data tokenize RECIPE`: what it prints, how it stops, and that every mistake is one line, exit code 2."""

import os
import signal
from pathlib import Path

import pytest
from helpers import small_vqvae
from tiny import TOKENIZER, VAR, Run, image_folder, merged, refusal, write_recipe

from var.data import token_cache
from var.hub.checkpoint import save_model


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """14 images, two views of eight of them: 22 to encode."""
    images = image_folder(tmp_path / "images")
    save_model(tmp_path / "tokenizer", small_vqvae())
    base = merged(VAR, {"data": {"source": str(images)}, "tokenizer": str(tmp_path / "tokenizer"), "token_views": 2})
    return write_recipe(tmp_path / "recipe.yaml", base)


def test_it_tells_what_was_encoded_and_then_that_nothing_is_left_to_do(var: Run, recipe: Path) -> None:
    code, out, err = var("data", "tokenize", recipe, "token_cache=here")
    assert (code, err) == (0, "")
    *progress, last = out.splitlines()
    assert progress[-1].startswith("encoded 22 of 22  ")
    assert progress[-1].endswith("images/s  0:00:00 left")
    assert last.startswith("tokens: here holds 22 encoded images in 0.0 MB, 22 now, ")
    assert last.endswith(" images/s")
    code, out, err = var("data", "tokenize", recipe, "token_cache=here")
    assert (code, out, err) == (0, "tokens: here holds 22 encoded images in 0.0 MB, all of them there already\n", "")


def test_it_counts_and_names_what_cannot_be_read(
    var: Run, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images" / "val" / "bar" / "4.png").write_bytes(b"no picture")
    code, out, _ = var("data", "tokenize", recipe, "token_cache=here")
    assert code == 0
    assert out.splitlines()[-1].endswith("; 1 image could not be read")
    assert f"cannot read {tmp_path / 'images/val/bar/4.png'} (" in caplog.text


def test_a_damaged_shard_is_told_of(var: Run, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert var("data", "tokenize", recipe, "token_cache=here")[0] == 0
    (tmp_path / "here" / "validation-v0-00000.bin").write_bytes(b"")
    code, out, _ = var("data", "tokenize", recipe, "token_cache=here")
    assert code == 0
    assert "here/validation-v0-00000.bin is damaged: encoding it again" in caplog.messages
    assert "holds 22 encoded images in 0.0 MB, 6 now" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(var: Run, recipe: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends where it stands; the same command goes on, and signals are what they were before."""
    before = signal.getsignal(number)
    write = token_cache.write_files

    def stopped(folder: Path, files: dict[str, bytes]) -> None:
        write(folder, files)
        if token_cache.MANIFEST not in files:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "write_files", stopped)
        code, out, err = var("data", "tokenize", recipe, "token_cache=here")
    assert code == 128 + number
    assert "tokens:" not in out
    assert err == "stopped: the same command goes on with what is missing\n"
    assert signal.getsignal(number) == before
    code, out, _ = var("data", "tokenize", recipe, "token_cache=here")
    assert (code, "holds 22 encoded images in 0.0 MB, 14 now" in out) == (0, True)


def test_mistakes(var: Run, recipe: Path, tmp_path: Path) -> None:
    refusal(var("data", "tokenize"), "RECIPE", "--help lists the options")
    refusal(var("data", "tokenize", tmp_path / "none.yaml"), "none.yaml does not exist")
    refusal(var("data", "tokenize", recipe), "has no token_cache", "token_cache=FOLDER")
    refusal(var("data", "tokenize", recipe, "token=here"), 'token="here" is not a known key', "did you mean")
    refusal(var("data", "tokenize", recipe, "token_cache=here", "token_views=0"), "token_views=0")
    refusal(
        var("data", "tokenize", recipe, "token_cache=here", "tokenizer=nowhere"), "tokenizer='nowhere' does not exist"
    )
    refusal(
        var("data", "tokenize", recipe, "token_cache=here", "data.source=/nowhere"),
        "data.source='/nowhere'",
        "does not exist",
    )
    stage_1 = write_recipe(tmp_path / "first.yaml", merged(TOKENIZER, {"data": {"source": str(tmp_path / "images")}}))
    refusal(var("data", "tokenize", stage_1), "first.yaml has stage=tokenizer", "var, raster and mar train on tokens")
    assert not (tmp_path / "here").exists()
    assert var("data", "tokenize", recipe, "token_cache=here")[0] == 0
    refusal(
        var("data", "tokenize", recipe, "token_cache=here", "seed=1"),
        "token_cache='here'",
        "seed=0, not 1",
        "give another token_cache",
    )
