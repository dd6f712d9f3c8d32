"""What a measurement has to say of itself, so that another one can be compared with it."""

import hashlib
import json
import platform
from importlib import metadata
from typing import Any

import torch

PACKAGE = "var-next-scale"


def versions() -> dict[str, str]:
    """Of what computed."""
    return {package: version(package) for package in (PACKAGE, "torch")}


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # ours, run from a clone
        return "unknown"


def device_name(device: torch.device) -> str:
    """What a device calls itself, without its number."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def fingerprint(*networks: Any) -> str:
    """SHA-256 of models' configurations and weights, as they were loaded and in the type that they run in."""
    hashing = hashlib.sha256()
    for network in networks:
        hashing.update(json.dumps(network.config.to_dict(), sort_keys=True).encode())
        for name, value in network.state_dict().items():
            hashing.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            hashing.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashing.hexdigest()
