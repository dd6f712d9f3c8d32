"""Provenance of a measurement: versions, devices and checksums, so that another one can be compared with it."""

import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var.utils.version import PACKAGE, version


def versions() -> dict[str, str]:
    """Versions of this package and of torch."""
    return {PACKAGE: version(PACKAGE), "torch": str(torch.__version__)}


def device_name(device: torch.device) -> str:
    """Name that a device gives itself, without its number."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def sha256(parts: Iterable[bytes | Tensor]) -> str:
    """SHA-256 of parts one after the other; of a tensor those bytes that its numbers have in memory."""
    hashing = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            hashing.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            hashing.update(part)
    return hashing.hexdigest()


def file_sha256(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def as_key(value: Any) -> bytes:
    """JSON that is the same for equal values, for `sha256`."""
    return json.dumps(value, sort_keys=True).encode()


def fingerprint(*networks: Any) -> str:
    """SHA-256 of networks' configurations, if they have one, and weights, in the type that they run in."""
    parts: list[bytes | Tensor] = []
    for network in networks:
        if hasattr(network, "config"):
            parts.append(as_key(network.config.to_dict()))
        for name, value in network.state_dict().items():
            parts += [f"{name} {value.dtype} {tuple(value.shape)}".encode(), value]
    return sha256(parts)
