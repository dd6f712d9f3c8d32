"""Where the networks run, and in which type."""

import pytest
import torch
from helpers import refused

from var.utils.device import (
    VAR_DTYPES,
    choose_device,
    choose_dtype,
    choose_stored_dtype,
    cpu_capabilities,
    has_fast_bfloat16,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_there_is(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda, mps)
    assert choose_device() == choose_device("auto") == torch.device(expected)


def test_a_device_by_name() -> None:
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "cuda:99", "cuda:-1", "cpu:x", "meta", "xla", "hpu", "opencl", "xpu"]
)
def test_devices_that_cannot_be_used(name: str) -> None:
    with refused(f"device {name!r}", "take cpu"):
        choose_device(name)


def test_only_devices_that_are_there_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, offered in (({}, "cpu or auto"), ({"cuda": True, "mps": True}, "cpu, mps, cuda, cuda:N or auto")):
        pretend(monkeypatch, **here)
        with refused(f"device 'gpu' is unknown: take {offered}"):
            choose_device("gpu")
    pretend(monkeypatch)
    with refused("device 'cuda:99' cannot be used (", "): take cpu or auto"):
        choose_device("cuda:99")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({}, False),
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),  # ARM
    ],
)
def test_bfloat16_on_the_cpu(capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "any", **capabilities}, raising=False)
    assert has_fast_bfloat16(CPU) == fast
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)


def test_older_torch_knows_the_instructions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = cpu_capabilities()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_avx2_supported", "_is_avx512_supported", "_is_vnni_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)  # torch's own now ask get_capabilities
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    before = cpu_capabilities()
    assert [name for name, here in before.items() if here] == ["avx2", "avx512_f", "avx512_vnni", "avx512_bf16"]
    assert before.keys() <= now.keys() or "neon" in now
    assert has_fast_bfloat16(CPU)


def test_bfloat16_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        # Older GPUs run it only emulated, which is slower than float32.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, n=native: including_emulation or n
        )
        assert has_fast_bfloat16(CUDA) == native
    assert not has_fast_bfloat16(MPS)


def test_a_type_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16  # slow, but asked for
    assert choose_dtype("float32", CUDA) == torch.float32
    for name in ("float16", "bf16", "", "Float32"):
        with refused(f"dtype {name!r} is unknown", "auto, float32 or bfloat16"):
            choose_dtype(name, CPU)


def test_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("int8", CPU, VAR_DTYPES) == choose_dtype(torch.int8, CPU, VAR_DTYPES) == torch.int8
    assert choose_dtype("bfloat16", CUDA, VAR_DTYPES) == torch.bfloat16
    with refused("dtype 'int8' is unknown", "auto, float32 or bfloat16"):
        choose_dtype("int8", CPU)
    with refused("dtype 'int4' is unknown", "auto, float32, bfloat16 or int8"):
        choose_dtype("int4", CPU, VAR_DTYPES)
    for device in (CUDA, MPS):
        with refused("int8 runs on a CPU", device.type, "device cpu"):
            choose_dtype("int8", device, VAR_DTYPES)
    monkeypatch.setattr(torch._C, "_get_qengine", lambda: 0)
    with refused("this build of torch has no products in int8", "float32"):
        choose_dtype("int8", CPU, VAR_DTYPES)


def test_types_that_weights_are_stored_in() -> None:
    for given in ("bfloat16", "torch.bfloat16", torch.bfloat16):
        assert choose_stored_dtype(given) is torch.bfloat16
    assert choose_stored_dtype(torch.float64) is torch.float64
    assert choose_stored_dtype(None) is choose_stored_dtype("auto") is None
    for wrong in ("int8", torch.int8, torch.bool, "half", torch.complex64):
        with refused("dtype", "take auto, float32, bfloat16, float16, float64"):
            choose_stored_dtype(wrong)
