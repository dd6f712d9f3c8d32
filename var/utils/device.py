"""Devices and number types of the networks."""

from collections.abc import Mapping
from typing import Any

import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE

KINDS = {"cpu": "cpu", "cuda": "cuda, cuda:N", "mps": "mps"}  # and how its devices are called
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VAR_DTYPES = DTYPES | {"int8": torch.int8}  # of a VAR that draws, on a CPU
STORED_DTYPES = DTYPES | {"float16": torch.float16, "float64": torch.float64}


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises InputError: a name that torch does not know, or a device that this machine does not have.
    """
    name = str(name)  # of a torch.device too
    here = {"cuda": torch.cuda.is_available(), "mps": torch.mps.is_available(), "cpu": True}
    available = [kind for kind in here if here[kind]]
    if name == "auto":
        return torch.device(available[0])
    remedy = f"take {', '.join(KINDS[kind] for kind in reversed(available))} or auto"
    if name.partition(":")[0] not in KINDS:
        raise InputError(f"device {name!r} is unknown: {remedy}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each build of torch refuses in its own way
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}): {remedy}") from error
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return True if products in bfloat16 are faster than in float32 (where they are emulated, they are slower)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = cpu_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def cpu_capabilities() -> Mapping[str, Any]:
    """Return what torch knows of the processor: its name, and which instructions it has; less with an older torch."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    older = {
        "avx2": "_is_avx2_supported",
        "avx512_f": "_is_avx512_supported",
        "avx512_vnni": "_is_vnni_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_tile": "_is_amx_tile_supported",
    }
    return {name: getattr(torch.cpu, function)() for name, function in older.items()}


def choose_dtype(
    name: str | torch.dtype, device: torch.device, known: Mapping[str, torch.dtype] = DTYPES
) -> torch.dtype:
    """The type, or that of a name; "auto" takes bfloat16 where the device is fast at it, else float32.

    Args:
        known: types by name.

    Raises InputError: an unknown name, int8 on a device or with a build of torch that has no such products.
    """
    name = str(name).removeprefix("torch.")  # of a torch.dtype too
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name not in known:
        *others, last = known
        raise InputError(f"dtype {name!r} is unknown: take auto, {', '.join(others)} or {last}")
    if known[name] == torch.int8:
        check_int8(device)
    return known[name]


def check_int8(device: torch.device) -> None:
    """Raise InputError unless there are products in int8."""
    if device.type != "cpu":
        raise InputError(f"int8 runs on a CPU, not on {device.type}: load the model with device cpu, or in bfloat16")
    if torch.backends.quantized.engine in ("", "none"):
        raise InputError("this build of torch has no products in int8 on this processor: load the model in float32")


def dtype_beside_int8() -> torch.dtype:
    """The type of what is not in int8 in a model that is: bfloat16 where the CPU is fast at it, else float32."""
    return choose_dtype("auto", torch.device("cpu"))


def check_float32(vqvae: VQVAE) -> None:
    """Raise InputError unless the tokenizer is in float32."""
    if vqvae.dtype != torch.float32:
        raise InputError(f"the tokenizer is in {vqvae.dtype}, which changes its tokens: load it in float32")


def choose_stored_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The type that weights are written in, or that of a name; None or "auto": they are written as they are.

    Raises InputError: none of STORED_DTYPES.
    """
    name = "auto" if name is None else str(name).removeprefix("torch.")
    if name == "auto":
        return None
    if name not in STORED_DTYPES:
        raise InputError(f"dtype {name!r} is none that weights are stored in: take auto, {', '.join(STORED_DTYPES)}")
    return STORED_DTYPES[name]
