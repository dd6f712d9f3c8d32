"""Models to and from the Hugging Face hub, by its own client, on a stand-in for it."""

import socket
import time
from pathlib import Path

import pytest
import torch
from helpers import refused, small_vqvae
from huggingface_hub import constants
from tiny import NAMES, ROOT, Run, refusal, run, tiny_pipeline
from tiny_aim import small_aim
from tiny_hub import TOKEN, Hub, Repository, commit_of, serve, use
from torch import nn

from var import AIM, VQVAE, VARPipeline
from var.features.sources import EncoderFeatures, VARFeatures, load_features
from var.hub.client import FILES, is_repository
from var.hub.load import find_folder, load_pipeline
from var.sampling.params import SamplingParams

NAME = "someone/tiny"


def own_vqvae() -> VQVAE:
    model = VQVAE(small_vqvae().config)
    model.load_state_dict(small_vqvae().state_dict())
    return model


def own_aim() -> AIM:
    model = AIM(small_aim().config)
    model.load_state_dict(small_aim().state_dict())
    return model


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_pipeline_comes_back_as_it_was_pushed(hub: Hub) -> None:
    pipe = tiny_pipeline(NAMES)
    pipe.sampling = SamplingParams(cfg=1.5)
    address = pipe.push_to_hub(NAME, private=True, license="mit", commit_message="The first")
    repository = hub.repositories[NAME]
    assert (repository.private, repository.messages) == (True, ["The first"])
    assert address == f"{hub.url}/{NAME}/commit/{commit_of(1)}"
    repository.states[-1]["pytorch_model.bin"] = b"never read"
    back = VARPipeline.from_pretrained(NAME, device="cpu", dtype="float32")
    assert_same(pipe.model, back.model)
    assert_same(pipe.vqvae, back.vqvae)
    assert (back.classes, back.sampling) == (pipe.classes, pipe.sampling)
    assert not any(request.endswith(".bin") for request in hub.requests)
    assert isinstance(load_features(NAME), VARFeatures)
    assert_same(VQVAE.from_pretrained(NAME, dtype="float32"), pipe.vqvae)


def test_the_card_says_what_follows_from_the_model_alone(hub: Hub) -> None:
    pipe = tiny_pipeline({0: "red fox", 3: "```\n# crane"})
    pipe.sampling = SamplingParams(cfg=1.5)
    pipe.push_to_hub(NAME, license="mit")
    card = hub.repositories[NAME].states[-1]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: var-next-scale\nlicense: mit\ntags:\n- image-generation\n")
    for line in ("- images: 8 x 8 px", "- classes: 2 of 5", "0 red fox", "3 ``` # crane", "- cfg: 1.5"):
        assert line in card.splitlines()
    assert f'pipe = VARPipeline.from_pretrained("{NAME}")\npipe(0).images[0].save("image.png")' in card


def test_a_tokenizer_alone_and_that_of_a_pipeline(hub: Hub) -> None:
    vqvae = own_vqvae()
    vqvae.push_to_hub(NAME)
    assert hub.repositories[NAME].states[-1].keys() == {"config.json", "model.safetensors", "README.md"}
    assert b"license" not in hub.repositories[NAME].states[-1]["README.md"]
    assert_same(VQVAE.from_pretrained(NAME, dtype="float32"), vqvae)
    with refused("no folder tokenizer"):
        VARPipeline.from_pretrained(NAME)
    tiny_pipeline().push_to_hub("someone/pipeline")
    VQVAE.from_pretrained("someone/pipeline")
    assert not any("transformer/" in request for request in hub.requests if request.startswith("GET"))


def test_an_aim_comes_back_and_gives_features(hub: Hub, tmp_path: Path) -> None:
    model = own_aim()
    model.push_to_hub(NAME)
    assert_same(AIM.from_pretrained(NAME, dtype="float32"), model)
    assert isinstance(load_features(NAME), EncoderFeatures)
    with refused("reads layers [0, 2]"):
        AIM.from_pretrained(NAME, probe_layers="last")
    model.save_pretrained(tmp_path / "half", torch.bfloat16)
    half = AIM.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert torch.equal(half.encoder.norm.weight, model.encoder.norm.weight.bfloat16())


def test_a_type_is_taken_as_text_and_none_of_whole_numbers(hub: Hub, tmp_path: Path) -> None:
    for number, model in enumerate((tiny_pipeline(NAMES), own_vqvae(), own_aim())):
        with refused("dtype 'int8' is none that weights are stored in"):
            model.push_to_hub(NAME, dtype=torch.int8)
        with refused("dtype 'half' is none"):
            model.save_pretrained(tmp_path / "half", "half")
        model.save_pretrained(tmp_path / f"text{number}", "bfloat16")
        model.save_pretrained(tmp_path / f"type{number}", torch.bfloat16)
        for file in (tmp_path / f"type{number}").rglob("*.safetensors"):
            twin = tmp_path / f"text{number}" / file.relative_to(tmp_path / f"type{number}")
            assert twin.read_bytes() == file.read_bytes()
    assert hub.requests == []
    assert not (tmp_path / "half").exists()
    VARPipeline.from_pretrained(tmp_path / "text0")


def test_a_card_stays_where_the_hub_does_not_say_whether_there_is_one(hub: Hub) -> None:
    own_aim().push_to_hub(NAME)
    before = dict(hub.repositories[NAME].states[-1])
    for status in (429, 503, 403):
        hub.failing = {f"/{NAME}/resolve/main/README.md": status}
        with refused(f"'{NAME}' could not be pushed"):
            own_aim().push_to_hub(NAME)
    assert hub.repositories[NAME].states[-1] == before


def test_a_second_push_leaves_what_is_not_ours_and_old_states_stay(hub: Hub) -> None:
    tiny_pipeline().push_to_hub(NAME)
    hub.repositories[NAME].states[-1].update({"README.md": b"by hand", "notes.txt": b"kept"})
    own_aim().push_to_hub(NAME)
    files = hub.repositories[NAME].states[-1]
    assert files.keys() == {"config.json", "model.safetensors", "README.md", "notes.txt"}
    assert files["README.md"] == b"by hand"
    AIM.from_pretrained(NAME)
    assert_same(VARPipeline.from_pretrained(NAME, revision=commit_of(1), dtype="float32").model, tiny_pipeline().model)
    own_aim().push_to_hub(NAME, license="other")
    assert b"license: other" in hub.repositories[NAME].states[-1]["README.md"]


def test_what_the_hub_does_not_show_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["someone/foreign"] = Repository(states=[{"pytorch_model.bin": b"", "model.onnx": b""}])
    hub.repositories["someone/secret"] = Repository(private=True)
    hub.repositories["someone/half"] = Repository(states=[{"config.json": b"{}"}])
    with refused("'someone/none' is no folder here", "shows no repository", "HF_TOKEN"):
        VARPipeline.from_pretrained("someone/none")
    with refused("someone/foreign on the Hugging Face hub holds no model of this project", "config.json"):
        VARPipeline.from_pretrained("someone/foreign")
    with refused("has no model.safetensors"):
        AIM.from_pretrained("someone/half")
    with refused("someone/foreign", "no such revision"):
        VQVAE.from_pretrained("someone/foreign", revision="v9")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for load in (VARPipeline.from_pretrained, AIM.from_pretrained, VQVAE.from_pretrained, load_features):
        with refused("'someone/secret' is no folder here", "for a private one", "hf auth login"):
            load("someone/secret")
    with refused("'someone/new' could not be pushed", "hf auth login"):
        own_aim().push_to_hub("someone/new")
    assert "someone/new" not in hub.repositories
    own_aim().push_to_hub("someone/new", token=TOKEN)


def test_without_an_answer_what_was_downloaded_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    own_aim().push_to_hub(NAME)
    AIM.from_pretrained(NAME)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        use(f"http://127.0.0.1:{closed.getsockname()[1]}", monkeypatch)
        began = time.monotonic()
        AIM.from_pretrained(NAME)
        with refused("'someone/other' is no folder here", "Hugging Face hub"):
            AIM.from_pretrained("someone/other")
        with refused("'someone/other' could not be pushed", "does not answer"):
            own_aim().push_to_hub("someone/other")
        assert time.monotonic() - began < 20
    assert constants.HF_HUB_OFFLINE is False


def test_refusals_before_any_request(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with refused("'runs/mistyped' is neither a folder nor a known name"):  # not of a user called runs
        VARPipeline.from_pretrained("runs/mistyped")
    with refused("revision='v1' goes with a repository", "var-mini"):
        VARPipeline.from_pretrained("var-mini", revision="v1")
    with refused("FoundationVision/var on the hub holds several models", "var-d16, var-d20"):
        VARPipeline.from_pretrained("FoundationVision/var")
    with refused("'apple/aim-600M' is of another kind"):
        VARPipeline.from_pretrained("apple/aim-600M")
    for name in ("tiny", "a/b/c", "a/", "/a", "a b/c", ""):
        with refused(f"repository={name!r} must be user/model"):
            own_aim().push_to_hub(name)
    with refused("license='MIT License'", "mit"):
        own_aim().push_to_hub(NAME, license="MIT License")
    broken = own_aim()
    nn.init.constant_(broken.encoder.norm.weight, torch.nan)
    with refused("not finite"):
        broken.push_to_hub(NAME)
    assert hub.requests == []


def test_names_of_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert all(map(is_repository, ("user/model", "User-1/model_2.0")))
    assert not any(map(is_repository, ("here/model", "model", "./a", "../a", "/a/b", "a/b/c", "~/a", "a\\b", "a//b")))
    assert len(FILES) == 6


def test_commands_take_repositories(hub: Hub, var: Run) -> None:
    tiny_pipeline(NAMES).push_to_hub(NAME)
    code, _, err = var("sample", "--model", NAME, "--class", 3, "--num", 1, "--out", "out")
    assert code == 0, err
    refusal(var("sample", "--model", "someone/none", "--class", 0, "--out", "none"), "'someone/none' is no folder here")
    assert find_folder(NAME) == find_folder(Path(NAME))
    assert load_pipeline(NAME).classes == NAMES


def test_the_endpoint_and_offline_mode_of_the_environment(tmp_path: Path) -> None:
    with serve() as hub:
        command = [ROOT / "sample.py", "--model", NAME, "--class", "0"]
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": tmp_path / "hf", "cwd": tmp_path}
        online = run(*command, HF_HUB_OFFLINE=0, **env)
        assert (online.returncode, online.stdout) == (2, "")
        assert online.stderr.startswith(
            "error: model 'someone/tiny' is no folder here, and the Hugging Face hub shows no"
        )
        asked = len(hub.requests)
        offline = run(*command, HF_HUB_OFFLINE=1, **env)
        assert (offline.returncode, offline.stdout, len(hub.requests)) == (2, "", asked)
        assert "HF_HUB_OFFLINE is set" in offline.stderr
        assert all(len(done.stderr.splitlines()) == 1 for done in (online, offline))
