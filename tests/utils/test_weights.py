"""Files of weights: read in both formats, nothing in them run, and refused in one line."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import Tensors, random_tokens, refused, small_var, small_vqvae
from torch import nn
from torch.overrides import TorchFunctionMode

from tokenizer.errors import InputError
from var.models.var import VAR
from var.utils.weights import check_finite, load_strict, on_meta, read_weights, unwrap

FILE = "weights.pth"


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


@pytest.mark.parametrize("order", [("model", "state_dict"), ("state_dict", "model"), ("model", "inner", "state_dict")])
def test_wrappers_stand_in_any_order(order: tuple[str, ...]) -> None:
    inside = {"a": torch.zeros(1)}
    wrapped: Any = inside
    for name in reversed(order):
        wrapped = {name: wrapped, "epoch": 3}
    assert unwrap(wrapped, ["inner"]) == inside


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


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {"ema": {"weight": torch.zeros(3)}}, {"a": 1}, {"model": {"a": 1}}]
)
def test_files_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / FILE)
    with refused(str(tmp_path / FILE), "not a state dict"):
        read_weights(tmp_path / FILE)


TENSORS = {"a.weight": torch.zeros(3), "b": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        {"model": TENSORS, "epoch": 3, "optimizer": {"state": {}}},
        {"state_dict": {f"module.{name}": value for name, value in TENSORS.items()}},
        {f"_orig_mod.{name}": value for name, value in TENSORS.items()},
        {f"module._orig_mod.{name}": value for name, value in TENSORS.items()},
        {"a._orig_mod.weight": TENSORS["a.weight"], "b": TENSORS["b"]},
        {f"_fsdp_wrapped_module.{name}": value for name, value in TENSORS.items()},
        {"a._fsdp_wrapped_module._orig_mod.weight": TENSORS["a.weight"], "b": TENSORS["b"]},
        {"trainer": {"part": TENSORS, "other": {"c": torch.zeros(1)}}, "args": {"depth": 16}},
    ],
)
def test_a_state_dict_is_taken_out_of_a_training_checkpoint(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / FILE)
    found = read_weights(tmp_path / FILE, ("trainer", "part"))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("wrapper", ["model_state_dict", "net", "ema"])
def test_the_entries_of_an_unknown_checkpoint_are_named(wrapper: str, tmp_path: Path) -> None:
    torch.save({wrapper: TENSORS, "epoch": 3}, tmp_path / FILE)
    with refused(f"not a state dict of tensors, but has the entries ['{wrapper}', 'epoch']", "inside it alone"):
        read_weights(tmp_path / FILE)


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3), "b": torch.eye(3).to_sparse()}, tmp_path / FILE)
    with refused("holds sparse tensors, such as b"):
        read_weights(tmp_path / FILE)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_numbers_than_floating_point_are_refused(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 1)
    state = {"weight": torch.zeros(1, 2, dtype=dtype), "bias": torch.zeros(1)}
    with refused("a.pt has numbers of type", str(dtype).removeprefix("torch."), "in weight, where floating-point"):
        load_strict(module, state, "a.pt", "does not fit")


class Calls(TorchFunctionMode):
    """Names of the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_nothing_is_initialized_on_meta(shared_adaln: bool) -> None:
    expected, calls = small_var(shared_adaln=shared_adaln), Calls()
    with calls, on_meta():
        model = VAR(expected.config).eval()
    assert "empty" in calls.names
    assert not {"normal_", "constant_", "kaiming_uniform_", "mul_", "div_"} & calls.names
    assert all(parameter.is_meta for parameter in model.parameters())
    load_strict(model, expected.state_dict(), "it", "does not fit")
    tokens, labels = random_tokens(2, 21), torch.tensor([0, 1])
    features = small_vqvae().quantizer.teacher_forcing_input(tokens)
    assert torch.equal(model(labels, features), expected(labels, features))


def test_tensors_elsewhere_are_written_to_beside_a_module_on_meta() -> None:
    with on_meta():
        here = torch.ones(2, device="cpu").mul_(3).div_(2)
        filled = nn.init.constant_(torch.ones(2, device="cpu"), 4)
    assert here.tolist() == [1.5, 1.5]
    assert filled.tolist() == [4, 4]


def test_names_that_only_begin_alike_are_kept() -> None:
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert unwrap(state) == state
    with refused("two tensors differ in '_orig_mod.'"):
        unwrap({"a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "pointer of Git LFS"),
        ("<!DOCTYPE html>\n<html><body>Log in</body></html>", "web page"),
        ("\ufeff\n <!-- no --> <HTML>", "web page"),
        ("\ufeffversion https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "pointer of Git LFS"),
        ("<script>location = 'login'</script>", "web page"),
        ('<meta charset="utf-8">', "web page"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (" \n\t\n", "nothing but blanks"),
        ("", "empty file"),
    ],
)
def test_what_stands_in_place_of_weights_is_named(suffix: str, content: str, part: str, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").write_text(content)
    with refused(str(tmp_path / f"w{suffix}"), part, "download it again"):
        read_weights(tmp_path / f"w{suffix}")


def test_a_changed_byte_of_a_torch_file_is_noticed(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / FILE)
    data = bytearray((tmp_path / FILE).read_bytes())
    data[data.index(torch.arange(500.0, 502.0).numpy().tobytes())] ^= 1
    (tmp_path / FILE).write_bytes(data)
    with refused(FILE, "is damaged", "checksum", "download it again"):
        read_weights(tmp_path / FILE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    check_finite({"count": torch.zeros(1, dtype=torch.int64), "bias": torch.zeros(1)}, "a.pth")
    with refused("a.pth holds values that are not finite", "weight"):
        check_finite({"bias": torch.zeros(1), "weight": torch.tensor([[0.0, value]])}, "a.pth")


def test_a_missing_file(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none.pth"), "does not exist"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_foreign_files_are_told_in_our_words_alone(tmp_path: Path) -> None:
    """torch advises to run what is in them, and warns of TorchScript."""
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "pops.pth").write_bytes(b"\x80\x02000.")
    for name in ("module.pth", "script.pth", "text.pth", "pops.pth"):
        with warnings.catch_warnings(record=True) as told, pytest.raises(InputError) as caught:
            read_weights(tmp_path / name)
        assert not told
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name} is damaged or holds something else than weights")
        assert "nothing in it was run" in message
        assert "weights_only" not in message


def test_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(3.0)}, tmp_path / FILE, _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / FILE)["weight"], torch.arange(3.0))


def test_strict_loading_takes_all_tensors_in_the_modules_dtypes() -> None:
    with torch.device("meta"):
        module = torch.nn.BatchNorm1d(2)
    state = torch.nn.BatchNorm1d(2).half().state_dict()
    load_strict(module, state, "it", "does not fit")
    assert {name: value.dtype for name, value in module.state_dict().items()} == {
        name: torch.int64 if name == "num_batches_tracked" else torch.float32 for name in state
    }
    for wrong in ({}, state | {"more": torch.zeros(1)}, state | {"weight": torch.zeros(3)}):
        with refused("it does not fit: ", "tensors differ, the first is"):
            load_strict(module, wrong, "it", "does not fit")
