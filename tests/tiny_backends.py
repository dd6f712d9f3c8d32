"""AIM in JAX and MLX, with what goes in and out as tensors of PyTorch."""

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from var.backends.choose import choose_backend
from var.models.aim import AIM

both_backends = pytest.mark.parametrize("backend", ["jax", "mlx"])


def arrays_of(backend: str) -> Any:
    """Return the module of the framework's arrays; the test is skipped where the framework is not installed."""
    if backend == "jax":
        pytest.importorskip("flax")
    return pytest.importorskip({"jax": "jax.numpy", "mlx": "mlx.core"}[backend])


def to_array(backend: str, tensor: Tensor) -> Any:
    return arrays_of(backend).array(tensor.numpy())


def from_array(backend: str, array: Any) -> Tensor:
    """Return its values in float32."""
    return torch.from_numpy(np.array(array.astype(arrays_of(backend).float32)))


def copy_into(backend: str, model: AIM, dtype: str = "float32") -> Any:
    arrays_of(backend)
    return choose_backend(backend, "auto", dtype)(model)


@cache
def _compiled() -> Any:
    from flax import nnx

    return nnx.jit(lambda model, images: model(images))


def run_in(backend: str, model: Any, images: Tensor) -> Any:
    """Return its logits and features; JAX compiles the whole model, which is quicker than each operation."""
    call = partial(_compiled(), model) if backend == "jax" else model
    return call(to_array(backend, images))
