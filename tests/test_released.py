"""Released weights: what is looked for where, what is refused, and that a conversion is kept."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from helpers import Tensors, refused, small_var, small_vqvae
from tiny import ROOT, run

from var.convert import to_official
from var.pipeline import VARPipeline
from var.presets import RELEASED, RELEASED_REPOSITORY, RELEASED_TOKENIZER, Released
from var.released import cache_folder, find, load_released, read_weights

NAME, FILE = "var-d16", "var_d16.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no network."""
    monkeypatch.setenv("VAR_CACHE", str(tmp_path / "cache"))

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> VARPipeline:
    """A pipeline whose sizes stand in for those of the released model of that name."""
    pipe = VARPipeline(small_var(), small_vqvae(base_width=32, norm_groups=32))
    monkeypatch.setitem(RELEASED, NAME, Released(pipe.model.config, FILE))
    return pipe


def write_files(pipe: VARPipeline, folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True)
    paths = folder / RELEASED_TOKENIZER, folder / FILE
    for state, path in zip(to_official(pipe.vqvae, pipe.model), paths, strict=True):
        torch.save(state, path)
    return paths


def assert_same(ours: VARPipeline, theirs: VARPipeline) -> None:
    for a, b in ((ours.model, theirs.model), (ours.vqvae, theirs.vqvae)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name])


def test_offline_a_name_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    """In a process of its own, with the hub's own client."""
    done = run(
        ROOT / "sample.py", "--model", "var-d20", cwd=tmp_path, VAR_CACHE=tmp_path / "c", HF_HOME=tmp_path / "hf"
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    for part in (RELEASED_TOKENIZER, "var_d20.pth", RELEASED_REPOSITORY, str(tmp_path / "c" / "released")):
        assert part in line


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("client closed"), TimeoutError()])
def test_whatever_the_client_raises_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with refused(type(error).__name__, RELEASED_TOKENIZER, "var_d30.pth"):
        find("var_d30.pth", "var-d30")


def test_the_hub_is_asked_for_the_right_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find("var_d24.pth", "var-d24") == tmp_path / "var_d24.pth"
    assert asked == [("FoundationVision/var", "var_d24.pth")]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("VAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "var-next-scale"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "var-next-scale"


def test_files_by_path(tiny: VARPipeline, tmp_path: Path) -> None:
    vae, var = write_files(tiny, tmp_path / "files")
    pipe = VARPipeline.from_pretrained(NAME, vae_file=str(vae), var_file=var, dtype="float32")
    assert_same(pipe, tiny)
    assert torch.equal(pipe([3, 0]).tokens, tiny([3, 0]).tokens)


def test_one_file_by_path_and_the_other_from_the_cache(tiny: VARPipeline, tmp_path: Path, cache: Path) -> None:
    vae, var = write_files(tiny, tmp_path / "files")
    with refused(RELEASED_TOKENIZER, "could not be downloaded", str(cache / "released")):
        load_released(NAME, var_file=var)
    (cache / "released").mkdir(parents=True)
    shutil.move(vae, cache / "released")
    vqvae, _ = load_released(NAME, var_file=var)
    assert vqvae.config == tiny.vqvae.config


def test_a_conversion_is_kept(tiny: VARPipeline, cache: Path) -> None:
    for path in write_files(tiny, cache / "released"):
        assert path.is_file()
    assert_same(VARPipeline.from_pretrained(NAME, dtype="float32"), tiny)
    shutil.rmtree(cache / "released")  # no longer needed
    again = VARPipeline.from_pretrained(NAME, dtype="float32")
    assert_same(again, tiny)
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert again.classes is None


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["weight"], torch.arange(3.0))


class Sly:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3), "sly": Sly(tmp_path / "ran")}, tmp_path / FILE)
    with refused(str(tmp_path / FILE), "something else than weights"):
        read_weights(tmp_path / FILE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "zeros", "text"])
def test_damaged_files(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    state: Tensors = {"weight": torch.zeros(1000)}
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    data = path.read_bytes()
    damaged = {"truncated": data[:-900], "empty": b"", "zeros": bytes(len(data)), "text": b"not found\n" * 99}
    path.write_bytes(damaged[damage])
    with refused(str(path), "download it again"):
        read_weights(path)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"model": {"weight": torch.zeros(3)}}, {"a": 1}])
def test_files_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / FILE)
    with refused(str(tmp_path / FILE), "not a state dict"):
        read_weights(tmp_path / FILE)


def test_a_missing_file(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none.pth"), "does not exist"):
        read_weights(tmp_path / "none.pth")


def test_the_wrong_model(tiny: VARPipeline, tmp_path: Path) -> None:
    vae, var = write_files(tiny, tmp_path / "files")
    with refused(str(vae), str(var), "are not the files of var-d16", "missing"):
        load_released(NAME, var, vae)  # the one for the other
    deeper = VARPipeline(small_var(depth=3), tiny.vqvae)
    _, other = write_files(deeper, tmp_path / "deeper")
    with refused(str(other), "another model than var-d16", "depth=3"):
        load_released(NAME, vae, other)
    with refused("(3, 32), (10, 32) expected", str(vae), "var-d20"):
        load_released("var-d20", vae, var)
