"""Model folders: written whole or not at all, read strictly."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import refused, small_var, small_vqvae
from tiny_aim import SIZES, small_aim
from torch import nn

from tokenizer.errors import InputError
from var.hub import checkpoint
from var.hub.checkpoint import (
    CONFIG,
    WEIGHTS,
    load_aim,
    load_encoder,
    load_tokenizer,
    load_transformer,
    read_class_names,
    read_config,
    save_model,
)
from var.hub.start import start_from
from var.models.aim import Encoder, EncoderConfig, sincos_2d_pos_embed
from var.pipeline import VARPipeline
from var.utils.files import atomic_folder
from var.utils.provenance import file_sha256


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "tokenizer", small_vqvae())
    return tmp_path / "tokenizer"


@pytest.fixture
def var_folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "var", small_var())
    return tmp_path / "var"


@pytest.mark.parametrize("variant", [{}, {"cosine": True, "num_phi": 3, "multipliers": (1, 1, 2)}], ids=str)
def test_tokenizer_round_trip(tmp_path: Path, variant: dict[str, Any]) -> None:
    vqvae = small_vqvae(**variant)
    vqvae.quantizer.usage.fill_(0.5)
    save_model(tmp_path / "model", vqvae)
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.config == vqvae.config
    assert equal(loaded, vqvae)
    assert not loaded.training


@pytest.mark.parametrize("variant", [{}, {"shared_adaln": True, "drop_path": 0.25}, {"qk_norm": False}], ids=str)
def test_var_round_trip(tmp_path: Path, variant: dict[str, Any]) -> None:
    model = small_var(**variant)
    save_model(tmp_path / "model", model)
    loaded = load_transformer(tmp_path / "model")
    assert loaded.config == model.config
    assert equal(loaded, model)
    assert not loaded.training
    labels, features = torch.tensor([0, 1]), torch.ones(2, 20, 8)
    assert torch.equal(loaded(labels, features), model(labels, features))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_stored_in_bfloat16_read_as_float32(tmp_path: Path) -> None:
    model = small_var()
    save_model(tmp_path / "full", model)
    save_model(tmp_path / "half", model, dtype=torch.bfloat16)
    full, half = ((tmp_path / name / WEIGHTS).stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    for name, value in load_transformer(tmp_path / "half").state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].bfloat16().float())
    assert next(model.parameters()).dtype == torch.float32  # the model itself is as it was


def test_extra_entries_are_kept_beside_the_configuration(tmp_path: Path) -> None:
    save_model(tmp_path / "model", small_var(), extra={"classes": {"207": "golden retriever"}})
    entries = read_config(tmp_path / "model")
    assert entries["classes"] == {"207": "golden retriever"}
    assert entries["model"] == "VAR"


def test_saving_replaces_an_older_model_whole(var_folder: Path) -> None:
    save_model(var_folder, small_var(seed=1, depth=3))
    assert equal(load_transformer(var_folder), small_var(seed=1, depth=3))
    assert [path.name for path in var_folder.parent.iterdir()] == ["var"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    save_model(tmp_path / "a" / "b" / "model", small_var())
    assert equal(load_transformer(tmp_path / "a" / "b" / "model"), small_var())


def break_off(*_: object, **__: object) -> None:
    raise RuntimeError("the disk is full")


def test_a_failure_while_writing_leaves_the_old_model_and_no_litter(
    var_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", break_off)
    with pytest.raises(RuntimeError, match="full"):
        save_model(var_folder, small_var(seed=1))
    monkeypatch.undo()
    assert equal(load_transformer(var_folder), small_var())
    assert [path.name for path in var_folder.parent.iterdir()] == ["var"]


def test_a_failure_while_writing_a_first_model_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", break_off)
    with pytest.raises(RuntimeError, match="full"):
        save_model(tmp_path / "model", small_var())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_last_step_brings_the_old_model_back(
    var_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with refused("cannot write", "Input/output"), atomic_folder(var_folder) as new:
        (new / CONFIG).write_text("{}")
    monkeypatch.undo()
    assert equal(load_transformer(var_folder), small_var())
    assert [path.name for path in var_folder.parent.iterdir()] == ["var"]


def test_other_files_in_a_folder_stay_and_its_model_is_replaced(var_folder: Path) -> None:
    """As in the clone of a hub repository, or where a Mac has shown the folder."""
    others = {".git/HEAD": "ref", ".gitattributes": "lfs", "README.md": "card", "figures/a.png": "", ".DS_Store": ""}
    for name, content in others.items():
        (var_folder / name).parent.mkdir(exist_ok=True)
        (var_folder / name).write_text(content)
    save_model(var_folder, small_var(seed=1))
    assert equal(load_transformer(var_folder), small_var(seed=1))
    found = {path.relative_to(var_folder).as_posix(): path for path in var_folder.rglob("*") if path.is_file()}
    assert found.keys() == {*others, CONFIG, WEIGHTS}
    assert {name: found[name].read_text() for name in others} == others


def test_a_pipeline_is_saved_beside_files_of_others_and_through_a_link(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for folder in (clone, clone / "transformer"):
        folder.mkdir()
        (folder / "README.md").write_text("card")
    (tmp_path / "link").symlink_to(clone)
    for _ in range(2):
        VARPipeline(small_var(), small_vqvae()).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in clone.iterdir()) == ["README.md", "tokenizer", "transformer"]
    assert sorted(path.name for path in (clone / "transformer").iterdir()) == ["README.md", CONFIG, WEIGHTS]
    VARPipeline.from_pretrained(clone, device="cpu")


def test_a_folder_under_the_name_of_a_file_is_refused_and_all_stays(var_folder: Path) -> None:
    (var_folder / CONFIG).unlink()
    (var_folder / CONFIG / "mine").mkdir(parents=True)
    before = (var_folder / WEIGHTS).read_bytes()
    with refused(f"cannot write {var_folder / CONFIG}", "is a folder"):
        save_model(var_folder, small_var(seed=1))
    assert (var_folder / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in var_folder.iterdir()) == [CONFIG, WEIGHTS]


def test_killed_while_files_are_replaced_a_folder_does_not_load_as_a_mixture(
    var_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment: old, new, or refused; the next save leaves nothing else there."""
    rename, outcomes = Path.rename, []
    for passes in range(5):
        save_model(var_folder, small_var())
        left = iter(range(passes))

        def killed(self: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                os._exit(9)
            return rename(self, target)

        if (child := os.fork()) == 0:
            monkeypatch.setattr(Path, "rename", killed)
            save_model(var_folder, small_var(seed=1))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if passes < 4 else 0)
        try:
            loaded = load_transformer(var_folder)
            outcomes.append("old" if equal(loaded, small_var()) else "new" if equal(loaded, small_var(seed=1)) else "?")
        except InputError:
            outcomes.append("refused")
    assert outcomes == ["old", "refused", "refused", "refused", "new"]
    save_model(var_folder, small_var())
    assert sorted(path.name for path in var_folder.iterdir()) == [CONFIG, WEIGHTS]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(str(tmp_path / "file" / "model"), "cannot write"):
        save_model(tmp_path / "file" / "model", small_var())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none"), "does not exist", CONFIG, WEIGHTS):
        load_transformer(tmp_path / "none")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(var_folder: Path, name: str) -> None:
    (var_folder / name).unlink()
    with refused(str(var_folder), f"has no {name}"):
        load_transformer(var_folder)


def test_another_kind_of_model_is_refused(var_folder: Path, tokenizer_folder: Path) -> None:
    with refused("'VAR'", "'VQVAE' is needed"):
        load_tokenizer(var_folder)
    with refused("'VQVAE'", "'VAR' is needed"):
        load_transformer(tokenizer_folder)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "cannot be read"),
        ("{not json", "cannot be read"),
        ("[1, 2]", "needs the entries model and config"),
        ('{"model_type": "llama", "hidden_size": 4096}', "needs the entries model and config"),
        ('{"model": "VAR", "config": [1]}', "needs the entries model and config"),
        ('{"model": "llama", "config": {}}', "'llama'"),
        ('{"model": "VAR", "config": {"layers": 3}}', "layers"),
        ('{"model": "VAR", "config": {"depth": 0}}', "depth=0"),
        ('{"model": "VAR", "config": {"depth": "two"}}', CONFIG),
        ('{"model": "VAR", "config": {"scales": 7}}', CONFIG),
        ('{"model": "VAR", "config": {"depth": %s}}' % ("9" * 5000), "a whole number of 5000 digits is too large"),
        ('{"model": "VAR", "config": {"depth": 2.5}}', CONFIG),
    ],
)
def test_foreign_configurations_are_refused(var_folder: Path, content: str, part: str) -> None:
    (var_folder / CONFIG).write_text(content)
    with refused(part):
        load_transformer(var_folder)


def test_a_configuration_that_is_not_text_is_refused(var_folder: Path) -> None:
    (var_folder / CONFIG).write_bytes(b"\xff\xfe\x00\x80")
    with refused(str(var_folder / CONFIG), "cannot be read"):
        load_transformer(var_folder)


@pytest.mark.parametrize("cut", [0, 4, 200, -1])
def test_truncated_weights_are_refused(var_folder: Path, cut: int) -> None:
    path = var_folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:cut])
    with refused(str(path), "damaged", "again"):
        load_transformer(var_folder)


def test_weights_that_are_something_else_are_refused(var_folder: Path) -> None:
    (var_folder / WEIGHTS).write_text("<html>404 not found</html>")
    with refused(str(var_folder / WEIGHTS), "damaged"):
        load_transformer(var_folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("head.bias"),
        lambda state: state.update(surplus=torch.zeros(1)),
        lambda state: state.update({"head.bias": torch.zeros(7)}),
    ],
    ids=["missing", "too many", "other shape"],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    var_folder: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    state = safetensors.torch.load_file(var_folder / WEIGHTS)
    change(state)
    safetensors.torch.save_file(state, var_folder / WEIGHTS)
    with refused("1 tensors differ", "surplus" if "surplus" in state else "head.bias"):
        load_transformer(var_folder)


def test_weights_of_another_size_are_refused(var_folder: Path) -> None:
    entries = json.loads((var_folder / CONFIG).read_text())
    entries["config"]["depth"] = 3
    (var_folder / CONFIG).write_text(json.dumps(entries))
    with refused("does not fit", "blocks.2."):
        load_transformer(var_folder)


# --- AIM


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_aim_round_trip(tmp_path: Path, dtype: torch.dtype | None) -> None:
    model = small_aim()
    save_model(tmp_path / "model", model, dtype=dtype)
    loaded = load_aim(tmp_path / "model")
    assert read_config(tmp_path / "model")["model"] == "AIM"
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.encoder.position, model.encoder.position)  # not stored, and not left without values
    for name, value in model.state_dict().items():
        stored = value if dtype is None or not value.is_floating_point() else value.to(dtype).to(value.dtype)
        assert loaded.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(loaded.state_dict()[name], stored), name


def test_encoder_round_trip(tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(**SIZES))
    save_model(tmp_path / "model", encoder)
    loaded = load_encoder(tmp_path / "model")
    assert read_config(tmp_path / "model")["model"] == "Encoder"
    assert loaded.config == encoder.config
    assert equal(loaded, encoder)
    assert torch.equal(loaded.position, sincos_2d_pos_embed(2, 16))
    assert not loaded.training


def test_the_encoder_of_an_aim_can_be_loaded_and_saved_alone(tmp_path: Path) -> None:
    model = small_aim()
    save_model(tmp_path / "aim", model)
    encoder = load_encoder(tmp_path / "aim")
    save_model(tmp_path / "encoder", encoder)
    again = load_encoder(tmp_path / "encoder")
    assert equal(encoder, model.encoder)
    assert equal(again, model.encoder)
    assert again.config == EncoderConfig(**SIZES)


def test_what_is_no_aim_or_encoder_is_refused(tmp_path: Path, var_folder: Path) -> None:
    save_model(tmp_path / "encoder", Encoder(EncoderConfig(**SIZES)))
    with refused(str(tmp_path / "encoder"), "no probe", "stage probe"):
        load_aim(tmp_path / "encoder")
    with refused("'VAR'", "'AIM' is needed"):
        load_aim(var_folder)
    with refused("'VAR'", "'Encoder' is needed"):
        load_encoder(var_folder)
    save_model(tmp_path / "aim", small_aim())
    with refused("'AIM'", "'VAR' is needed"):
        load_transformer(tmp_path / "aim")
    for load in (load_aim, load_encoder):
        with refused("does not exist"):
            load(tmp_path / "none")


# --- damage


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_changed_byte_of_the_weights_is_noticed(var_folder: Path, place: float) -> None:
    data = bytearray((var_folder / WEIGHTS).read_bytes())
    data[int(place * len(data))] ^= 1
    (var_folder / WEIGHTS).write_bytes(data)
    with refused(str(var_folder / WEIGHTS), "damaged", "copy the folder again"):
        load_transformer(var_folder)
    with refused(str(var_folder / WEIGHTS), "damaged", "copy the folder again"):
        start_from(var_folder, small_var())


def test_weights_of_another_model_of_the_same_sizes_are_noticed(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_model(tmp_path / str(seed), small_var(seed))
    (tmp_path / "0" / WEIGHTS).write_bytes((tmp_path / "1" / WEIGHTS).read_bytes())
    with refused("sha256", "if you changed the weights yourself"):
        load_transformer(tmp_path / "0")


def test_a_changed_argument_that_no_tensor_shows_is_noticed(tmp_path: Path) -> None:
    save_model(tmp_path, small_vqvae(base_width=32, norm_groups=32))
    entries = read_config(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(entries | {"config": entries["config"] | {"norm_groups": 16}}))
    with refused(str(tmp_path / CONFIG), "damaged", "copy the folder again"):
        load_tokenizer(tmp_path)


def test_class_names_and_sampling_defaults_are_the_users_to_change(
    var_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, as long as the entry that tells of it is there: it might be damage."""
    changed = read_config(var_folder) | {"classes": {"1": "a"}, "sampling": {}}
    (var_folder / CONFIG).write_text(json.dumps(changed))
    assert equal(load_transformer(var_folder), small_var())
    (line,) = caplog.messages
    assert str(var_folder / CONFIG) in line
    assert "remove that entry if you changed them yourself" in line
    caplog.clear()
    del changed["entries_sha256"]
    (var_folder / CONFIG).write_text(json.dumps(changed))
    assert equal(load_transformer(var_folder), small_var())
    assert not caplog.messages


@pytest.mark.parametrize(
    ("written", "damaged"),
    [('"cup"', '"aup"'), ('"quantizer_sha256"', '"quantizer_sha257"'), ('"abc"', '"abd"'), ('k": 5', 'k": 7')],
)
def test_damage_that_no_tensor_and_no_size_shows_is_told(
    written: str, damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"quantizer_sha256": {"float32": "abc"}, "classes": {"1": "cup"}, "sampling": {"top_k": 5}}
    save_model(tmp_path, small_var(), extra)
    load_transformer(tmp_path)
    assert not caplog.messages
    text = (tmp_path / CONFIG).read_text()
    assert text.count(written) == 1
    (tmp_path / CONFIG).write_text(text.replace(written, damaged))
    load_transformer(tmp_path)
    assert [line for line in caplog.messages if str(tmp_path / CONFIG) in line and "entries_sha256" in line]


@pytest.mark.parametrize("name", ["sha256", "config_sha256", "entries_sha256"])
def test_a_damaged_name_switches_no_checksum_off(
    name: str, var_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (var_folder / CONFIG).read_text()
    damaged = name.replace("s", "q", 1)
    (var_folder / CONFIG).write_text(text.replace(f'"{name}"', f'"{damaged}"'))
    with refused(str(var_folder / CONFIG), f"a checksum under the name '{damaged}'", "copy the folder again"):
        load_transformer(var_folder)
    with refused(f"a checksum under the name '{damaged}'"):
        start_from(var_folder, small_var())
    entries = json.loads(text)
    del entries[name]  # as one who has changed what it is of
    (var_folder / CONFIG).write_text(json.dumps(entries))
    load_transformer(var_folder)
    assert bool(caplog.messages) == (name != "entries_sha256")


@pytest.mark.parametrize("names", [["cup"], {"one": "cup"}, {"9" * 5000: "cup"}])
def test_class_names_of_another_form_are_refused(names: object, tmp_path: Path) -> None:
    with refused(f"{tmp_path / CONFIG}: classes must map labels to names"):
        read_class_names(tmp_path, {"classes": names})


def test_a_folder_from_before_has_no_checksum_and_is_read(var_folder: Path) -> None:
    entries = read_config(var_folder)
    assert entries.pop("sha256") == file_sha256(var_folder / WEIGHTS)
    del entries["config_sha256"], entries["entries_sha256"]
    (var_folder / CONFIG).write_text(json.dumps(entries))
    assert equal(load_transformer(var_folder), small_var())


@torch.no_grad()
def test_weights_that_are_not_finite_are_neither_written_nor_read(var_folder: Path) -> None:
    diverged = small_var(seed=1)
    diverged.head.bias[3] = float("nan")
    with refused("the VAR to be written", "not finite", "head.bias"):
        save_model(var_folder, diverged)
    assert equal(load_transformer(var_folder), small_var())  # the last good ones stay
    entries = read_config(var_folder)
    safetensors.torch.save_file(diverged.state_dict(), var_folder / WEIGHTS)
    (var_folder / CONFIG).write_text(json.dumps(entries | {"sha256": file_sha256(var_folder / WEIGHTS)}))
    with refused(str(var_folder / WEIGHTS), "not finite", "head.bias"):
        load_transformer(var_folder)
    with refused(str(var_folder / WEIGHTS), "not finite", "head.bias"):
        start_from(var_folder, small_var())


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_clone_without_git_lfs_is_named(var_folder: Path, name: str) -> None:
    (var_folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with refused(str(var_folder / name), "git lfs pull"):
        load_transformer(var_folder)


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        save_model(tmp_path / "model", small_vqvae())
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
