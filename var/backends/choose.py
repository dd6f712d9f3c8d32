"""The framework that a model is loaded into: by name, and imported only then."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tokenizer.errors import InputError, one_line
from var.models import aim
from var.utils.device import choose_dtype
from var.utils.optional_packages import optional_packages

TORCH = "torch"
OTHERS = ("jax", "mlx")  # each the name of its extra, and the end of that of its module


def choose_backend(name: str, device: str, dtype: str) -> Callable[[aim.AIM], Any]:
    """Return the function that copies a model of PyTorch into JAX or MLX.

    Args:
        name: one of OTHERS.
        device: auto alone, which is what the framework takes.
        dtype: of the weights: auto and float32, or bfloat16.

    Raises InputError: another backend, device or dtype; its packages are not installed.
    """
    if name not in OTHERS:
        raise InputError(f"backend={name!r} is unknown: take {TORCH}, {' or '.join(OTHERS)}")
    if str(device) != "auto":
        where = {"jax": "jax.default_device", "mlx": "mlx.core.set_default_device"}[name]
        raise InputError(f"device={str(device)!r} is of backend {TORCH}: leave it out, and use {where}")
    chosen = choose_dtype("float32" if dtype == "auto" else dtype, torch.device("cpu"))
    try:
        with optional_packages(name):
            module = importlib.import_module(f"var.backends.aim_{name}")
    except ImportError as error:  # such as mlx on Linux without its part for the CPU
        raise InputError(
            f"{name} cannot be imported ({one_line(error)}): pip install 'var-next-scale[{name}]'"
        ) from error
    return partial(module.from_torch, dtype=str(chosen).removeprefix("torch."))
