"""Released weights: what is looked for where, what is refused, and that a conversion is kept."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from helpers import Tensors, refused, small_var, small_vqvae
from tiny import ROOT, run
from tiny_aim import SIZES, small_aim

from var.aim import AIM
from var.hub.checkpoint import CONFIG, WEIGHTS
from var.hub.convert import to_official
from var.hub.convert_aim import to_official_aim
from var.hub.download import convert_once, load_released, locate_file
from var.hub.presets import AIM_RELEASED, RELEASED, RELEASED_REPOSITORY, RELEASED_TOKENIZER, ReleasedAIM
from var.models.aim import EncoderConfig
from var.pipeline import VARPipeline
from var.utils.paths import cache_folder

NAME, FILE = "var-d16", "var_d16.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no network."""
    monkeypatch.setenv("VAR_CACHE", str(tmp_path / "cache"))

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> VARPipeline:
    """A pipeline whose sizes stand in for those of the released model of that name."""
    pipe = VARPipeline(small_var(), small_vqvae(base_width=32, norm_groups=32))
    monkeypatch.setitem(RELEASED, NAME, pipe.model.config)
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
        locate_file("var_d30.pth", RELEASED_REPOSITORY, (RELEASED_TOKENIZER, "var_d30.pth"))


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try again for 25 seconds, but for the mode in which it looks at its own files alone."""
    asked = []

    def metadata(url: str, timeout: float, **_: object) -> None:
        asked.append((url.rpartition("/")[2], timeout <= 5))
        raise ConnectionError

    def download(*_: object) -> str:
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with refused("var_d24.pth could not be downloaded", "fetch var_d24.pth", "and put it in"):
        locate_file("var_d24.pth", RELEASED_REPOSITORY, ("var_d24.pth",))
    assert asked == [("var_d24.pth", True)]
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_the_hub_is_asked_for_the_right_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert locate_file("var_d24.pth", RELEASED_REPOSITORY, ("var_d24.pth",)) == tmp_path / "var_d24.pth"
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


def test_of_two_at_once_the_second_waits_for_the_conversion_of_the_first(cache: Path) -> None:
    converting, release = Event(), Event()
    converted = []

    def convert(folder: Path) -> None:
        converting.set()
        assert release.wait(10)
        converted.append(folder.mkdir())

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(convert_once, NAME, convert)
        assert converting.wait(10)
        second = pool.submit(convert_once, NAME, convert)
        time.sleep(0.05)
        assert not second.done()
        release.set()
        assert first.result() == second.result() == cache / NAME
    assert len(converted) == 1
    assert list(cache.iterdir()) == [cache / NAME]


def test_a_conversion_is_kept(tiny: VARPipeline, cache: Path) -> None:
    for path in write_files(tiny, cache / "released"):
        assert path.is_file()
    assert_same(VARPipeline.from_pretrained(NAME, dtype="float32"), tiny)
    shutil.rmtree(cache / "released")  # no longer needed
    again = VARPipeline.from_pretrained(NAME, dtype="float32")
    assert_same(again, tiny)
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert again.classes is None


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


# --- AIM: a backbone and one of two heads, or one file with both

AIM_NAME = "aim-600M"
BACKBONE = "aim_600m_2bimgs_attnprobe_backbone.pth"
HEADS = {layers: f"aim_600m_2bimgs_attnprobe_head_{layers}_layers.pth" for layers in ("last", "best")}
BEST, LAST = (0, 2), (1, 2)  # of the small model that stands in for the released one


@pytest.fixture
def small_released(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ReleasedAIM(EncoderConfig(**SIZES), BEST, "aim_600m_2bimgs_attnprobe", "apple/aim-600M")
    monkeypatch.setitem(AIM_RELEASED, AIM_NAME, small)


def aim_parts(seed: int = 0, **changes: Any) -> tuple[Tensors, Tensors]:
    """State dicts of a backbone and of a head as they are released."""
    state = to_official_aim(small_aim(seed, **changes))
    head = {name: value for name, value in state.items() if name.startswith("head.")}
    return {name: value for name, value in state.items() if name not in head}, head


def write_aim(folder: Path, *names: str) -> Path:
    """The backbone and the heads of these names; the head that reads the last layers is of another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {BACKBONE: aim_parts()[0], HEADS["best"]: aim_parts()[1], HEADS["last"]: aim_parts(seed=1)[1]}
    for name in names:
        torch.save(contents[name], folder / name)
    return folder


def write_joined(folder: Path, **config: Any) -> Path:
    """One file with the backbone and a head, and the configuration beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(to_official_aim(small_aim(seed=2)), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"embed_dim": 16, **config}))
    return folder / WEIGHTS


def load_small(**options: Any) -> AIM:
    return AIM.from_pretrained(AIM_NAME, dtype="float32", **options)


def assert_is(model: AIM, seed: int, layers: tuple[int, ...], backbone_seed: int = 0) -> None:
    """The head of that seed, reading these layers."""
    assert model.config == small_aim(probe_layers=layers).config
    assert not model.training
    for part, expected in (("probe.", small_aim(seed)), ("encoder.", small_aim(backbone_seed))):
        for name, value in expected.state_dict().items():
            assert not name.startswith(part) or torch.equal(model.state_dict()[name], value), name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """Give the hub some files; what was asked of it fills up."""

    def serve(*served: Path) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []

        def download(repository: str, file: str) -> str:
            asked.append((repository, file))
            found = [str(path) for path in served if path.name == file]
            if not found:
                raise huggingface_hub.errors.EntryNotFoundError("404")
            return found[0]

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return asked

    return serve


@pytest.mark.parametrize(
    ("asked", "seed", "layers"),
    [(None, 0, BEST), ("best", 0, BEST), ([2, 0], 0, BEST), ("last", 1, LAST), ([2, 1], 1, LAST)],
)
def test_aim_by_name(asked: Any, seed: int, layers: tuple[int, ...], small_released: None, cache: Path) -> None:
    write_aim(cache / "released", BACKBONE, *HEADS.values())
    assert_is(load_small(probe_layers=asked), seed, layers)


def test_a_conversion_of_aim_is_kept_for_each_head(small_released: None, cache: Path) -> None:
    write_aim(cache / "released", BACKBONE, *HEADS.values())
    for _ in range(2):
        assert_is(load_small(), 0, BEST)
        assert_is(load_small(probe_layers="last"), 1, LAST)
        shutil.rmtree(cache / "released", ignore_errors=True)  # no longer needed
    assert sorted(path.name for path in cache.iterdir()) == ["aim-600M-best", "aim-600M-last"]


def test_layers_that_no_released_head_reads(small_released: None, cache: Path) -> None:
    write_aim(cache / "released", BACKBONE, *HEADS.values())
    with refused("layers [0, 1]", "last [1, 2]", "best [0, 2]", "head_file"):
        load_small(probe_layers=[0, 1])
    with refused("[3]", "0..2"):
        load_small(probe_layers=[3])
    with refused("'first'", "last, best"):
        load_small(probe_layers="first")
    assert not (cache / "aim-600M-best").exists()


def test_offline_aim_says_what_to_fetch_and_where_to_put_it(cache: Path) -> None:
    for name, size, images in (("600M", "600m", "2b"), ("1B", "1b", "5b"), ("3B", "3b", "5b"), ("7B", "7b", "5b")):
        files = (f"aim_{size}_{images}imgs_attnprobe_{part}.pth" for part in ("backbone", "head_last_layers"))
        with refused(*files, "apple/AIM", str(cache / "released"), "LocalEntryNotFoundError"):
            AIM.from_pretrained(f"aim-{name}", probe_layers="last")


def test_offline_the_hub_is_asked_once(small_released: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(_: str, file: str) -> str:
        asked.append(file)
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with refused(BACKBONE, "apple/AIM"):
        load_small()
    assert asked == [BACKBONE]


def test_backbone_and_head_are_downloaded(
    small_released: None, cache: Path, tmp_path: Path, hub: Callable[..., list[tuple[str, str]]]
) -> None:
    files = write_aim(tmp_path / "hub", BACKBONE, HEADS["last"])
    asked = hub(files / BACKBONE, files / HEADS["last"])
    assert_is(load_small(probe_layers="last"), 1, LAST)
    assert asked == [("apple/AIM", BACKBONE), ("apple/AIM", HEADS["last"])]


def test_only_what_is_not_here_is_downloaded(
    small_released: None, cache: Path, tmp_path: Path, hub: Callable[..., list[tuple[str, str]]]
) -> None:
    write_aim(cache / "released", BACKBONE)
    asked = hub(write_aim(tmp_path / "hub", HEADS["best"]) / HEADS["best"])
    assert_is(load_small(), 0, BEST)
    assert asked == [("apple/AIM", HEADS["best"])]


@pytest.mark.parametrize("stated", [list(BEST), "best"], ids=str)
def test_one_file_with_both_is_the_second_choice(
    stated: Any, small_released: None, tmp_path: Path, hub: Callable[..., list[tuple[str, str]]]
) -> None:
    weights = write_joined(tmp_path / "hub", probe_layers=stated)
    asked = hub(weights, weights.with_name(CONFIG))
    assert_is(load_small(), 2, BEST, backbone_seed=2)
    assert asked == [("apple/AIM", BACKBONE), ("apple/aim-600M", CONFIG), ("apple/aim-600M", WEIGHTS)]


@pytest.mark.parametrize("config", [{"probe_layers": list(LAST)}, {"probe_layers": 2}, {}], ids=str)
def test_one_file_whose_head_reads_other_layers_is_not_taken(
    config: dict[str, Any],
    small_released: None,
    cache: Path,
    tmp_path: Path,
    hub: Callable[..., list[tuple[str, str]]],
) -> None:
    write_joined(cache / "released" / AIM_NAME, **config)
    weights = write_joined(tmp_path / "hub", **config)
    asked = hub(weights, weights.with_name(CONFIG))
    with refused(BACKBONE, "apple/AIM"):
        load_small()
    assert ("apple/aim-600M", WEIGHTS) not in asked


def test_one_file_that_is_here_goes_before_a_download(small_released: None, cache: Path) -> None:
    write_joined(cache / "released" / AIM_NAME, probe_layers=list(BEST))
    assert_is(load_small(), 2, BEST, backbone_seed=2)
    shutil.rmtree(cache / "aim-600M-best")
    write_aim(cache / "released", BACKBONE, HEADS["best"])  # the pair goes first here as on the hub
    assert_is(load_small(), 0, BEST)


def test_aim_files_by_path(small_released: None, tmp_path: Path) -> None:
    folder = write_aim(tmp_path / "files", BACKBONE, *HEADS.values())
    backbone, last = folder / BACKBONE, folder / HEADS["last"]
    assert_is(load_small(backbone_file=str(backbone), head_file=folder / HEADS["best"]), 0, BEST)
    assert_is(load_small(backbone_file=backbone, head_file=last), 1, LAST)
    assert_is(load_small(backbone_file=backbone, head_file=last, probe_layers="last"), 1, LAST)
    for layers in ("best", [0, 1]):
        with refused(str(last), "reads layers [1, 2]", "leave probe_layers out"):
            load_small(backbone_file=backbone, head_file=last, probe_layers=layers)


def test_a_head_whose_name_does_not_tell_its_layers(small_released: None, tmp_path: Path) -> None:
    folder = write_aim(tmp_path, BACKBONE, HEADS["last"])
    own = (folder / HEADS["last"]).rename(folder / "own_head.pth")
    with refused("it is not stated", str(own), "pass probe_layers"):
        load_small(backbone_file=folder / BACKBONE, head_file=own)
    model = load_small(backbone_file=folder / BACKBONE, head_file=own, probe_layers=[1])
    assert_is(model, 1, (1,))


def test_one_aim_file_by_path_and_the_other_from_the_cache(small_released: None, cache: Path, tmp_path: Path) -> None:
    backbone = write_aim(tmp_path / "files", BACKBONE) / BACKBONE
    with refused(HEADS["last"], "could not be downloaded"):
        load_small(backbone_file=backbone, probe_layers="last")
    write_aim(cache / "released", HEADS["last"])
    assert_is(load_small(backbone_file=backbone, probe_layers="last"), 1, LAST)
    head = write_aim(tmp_path / "files", HEADS["best"]) / HEADS["best"]
    with refused(BACKBONE, "could not be downloaded"):
        load_small(head_file=head)
    shutil.move(backbone, cache / "released")
    assert_is(load_small(head_file=head), 0, BEST)
    assert not list(cache.glob("aim-*"))  # files by path are not kept under the model's name


def test_one_aim_file_with_both_by_path(small_released: None, tmp_path: Path) -> None:
    weights = write_joined(tmp_path / "stated", probe_layers=list(LAST))
    assert_is(load_small(backbone_file=weights), 2, LAST, backbone_seed=2)
    with refused(str(weights), "reads layers [1, 2]"):
        load_small(backbone_file=weights, probe_layers="best")
    silent = write_joined(tmp_path / "silent")
    with refused("it is not stated", str(silent)):
        load_small(backbone_file=silent)
    assert_is(load_small(backbone_file=silent, probe_layers="best"), 2, BEST, backbone_seed=2)
    with refused("keys are in both files", "head.", str(weights)):
        load_small(backbone_file=weights, head_file=write_aim(tmp_path, HEADS["best"]) / HEADS["best"])


def test_the_wrong_aim_files(small_released: None, tmp_path: Path) -> None:
    folder = write_aim(tmp_path, BACKBONE, HEADS["best"], HEADS["last"])
    backbone, head = folder / BACKBONE, folder / HEADS["best"]
    with refused(str(backbone), str(head), "not what aim-1B is made of"):
        AIM.from_pretrained("aim-1B", backbone_file=backbone, head_file=head)
    with refused("keys are in both files", "preprocessor."):
        load_small(backbone_file=backbone, head_file=shutil.copy(backbone, folder / f"x_{HEADS['best']}"))
    with refused("not what aim-600M is made of", "missing"):
        load_small(backbone_file=shutil.copy(head, folder / "swapped.pth"), probe_layers="best")
    torch.save(aim_parts(depth=4)[0], backbone)
    with refused(str(backbone), "another model than aim-600M", "depth=4"):
        load_small(backbone_file=backbone, head_file=head)
    with refused("none.pth", "does not exist"):
        load_small(backbone_file=folder / "none.pth")
    for options in ({"probe_layers": None}, {"probe_layers": "best"}):  # before what its name does not tell
        with refused("own_head.pth", "does not exist"):
            load_small(head_file=folder / "own_head.pth", **options)
