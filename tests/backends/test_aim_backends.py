"""AIM in JAX and MLX against the one in PyTorch."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import largest_difference, noise, normal, refused
from tiny import ROOT
from tiny_aim import small_aim
from tiny_backends import arrays_of, both_backends, copy_into, from_array, run_in, to_array

from var.aim import AIM, load_pretrained
from var.backends.weights import convert_weights
from var.hub.checkpoint import save_model
from var.models import aim

TOLERANCE = 1e-4
SIZES: tuple[dict[str, Any], ...] = (
    {},
    {"image_size": 24, "patch_size": 8, "width": 24, "depth": 4, "heads": 3, "mlp_ratio": 2.5, "probe_layers": (3, 1)},
)
both_sizes = pytest.mark.parametrize("sizes", SIZES, ids=["one", "other"])


def images_for(model: aim.AIM, batch: int = 3) -> torch.Tensor:
    return normal(batch, 3, model.config.image_size, model.config.image_size, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", small_aim())
    return tmp_path / "model"


# --- equality


@both_backends
@both_sizes
@torch.no_grad()
def test_logits_and_features_in_float32(backend: str, sizes: dict[str, Any]) -> None:
    model = small_aim(**sizes)
    expected = model(images_for(model))
    assert expected.logits.abs().max() > 0.5
    found = run_in(backend, copy_into(backend, model), images_for(model))
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.dtype == arrays_of(backend).float32
        assert largest_difference(ours, from_array(backend, theirs)) < TOLERANCE
    assert found.logits is found[0]
    assert found.features is found[1]


@both_backends
@pytest.mark.parametrize("layers", [None, [2, 0], (1,)], ids=str)
@torch.no_grad()
def test_outputs_of_blocks(backend: str, layers: list[int] | None) -> None:
    model = small_aim()
    expected = model.extract_features(images_for(model), layers)
    found = copy_into(backend, model).extract_features(to_array(backend, images_for(model)), layers)
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        assert largest_difference(ours, from_array(backend, theirs)) < TOLERANCE


@both_backends
@both_sizes
@torch.no_grad()
def test_in_bfloat16_within_three_percent_of_the_largest_value(backend: str, sizes: dict[str, Any]) -> None:
    model = small_aim(**sizes)
    expected = model(images_for(model))
    found = run_in(backend, copy_into(backend, model, "bfloat16"), images_for(model))
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.dtype == arrays_of(backend).bfloat16
        assert largest_difference(ours, from_array(backend, theirs)) < 0.03 * ours.abs().max()


@both_backends
def test_an_empty_batch(backend: str) -> None:
    logits, features = run_in(backend, copy_into(backend, small_aim()), torch.zeros(0, 3, 8, 8))
    assert tuple(logits.shape) == (0, 5)
    assert tuple(features.shape) == (0, 4, 16)


@both_backends
def test_statistics_of_the_probe_stay_in_float32(backend: str) -> None:
    probe = copy_into(backend, small_aim(), "bfloat16").probe
    mean = probe.norm.mean[...] if backend == "jax" else probe.norm.running_mean
    assert torch.equal(from_array(backend, mean), small_aim().probe.norm.running_mean)


@both_backends
def test_every_weight_has_its_name(backend: str) -> None:
    """Of MLX, loading checks it."""
    model = small_aim()
    names = [name for name, _ in convert_weights(model, backend)]  # type: ignore[arg-type]
    assert len(set(names)) == len(names) == len(model.state_dict())  # the positions are no entry; a counter is one
    copy = copy_into(backend, model)
    if backend == "jax":
        from flax import nnx

        assert {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(copy))} == set(names)


@both_backends
@torch.no_grad()
def test_a_copy_does_not_follow_the_model(backend: str) -> None:
    model = small_aim()
    images, copy = images_for(model), copy_into(backend, model)
    expected = model(images).logits
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert largest_difference(from_array(backend, run_in(backend, copy, images).logits), expected) < TOLERANCE


# --- by name


@both_backends
@torch.no_grad()
def test_from_a_folder(backend: str, folder: Path) -> None:
    arrays_of(backend)
    images = images_for(small_aim())
    expected = AIM.from_pretrained(folder, backend="torch", device="cpu", dtype="float32")(images)
    model: Any = load_pretrained(folder, backend=backend)  # type: ignore[call-overload]
    assert type(model).__module__ == f"var.backends.aim_{backend}"
    logits, features = model(to_array(backend, images))
    assert largest_difference(from_array(backend, logits), expected.logits) < TOLERANCE
    assert largest_difference(from_array(backend, features), expected.features) < TOLERANCE
    halves: Any = load_pretrained(folder, backend=backend, dtype="bfloat16")  # type: ignore[call-overload]
    assert run_in(backend, halves, images).logits.dtype == arrays_of(backend).bfloat16
    with refused("[3]", "0..2"):
        load_pretrained(folder, backend=backend, probe_layers=[3])  # type: ignore[call-overload]


def snippets() -> dict[str, str]:
    """Python of the section on backends in the docs, by the framework that it is for."""
    section = (ROOT / "docs" / "aim.md").read_text().split("## In JAX and MLX\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return {re.findall(r'backend="(\w+)"', block)[0]: block for block in blocks}


def test_there_is_a_snippet_for_every_framework() -> None:
    assert snippets().keys() == {"torch", "jax", "mlx"}


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_snippets_of_the_docs(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend != "torch":
        arrays_of(backend)
    save_model(tmp_path / "model", small_aim(image_size=224, patch_size=56, depth=1, probe_layers=(0,)))
    noise(300, 250).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert "aim-600M-2B-imgs" in snippets()[backend]
    names: dict[str, Any] = {}
    exec(snippets()[backend].replace("aim-600M-2B-imgs", "model"), names)
    assert tuple(names["logits"].shape) == (1, 5)
    assert tuple(names["features"].shape) == (1, 16, 16)


# --- what cannot work


@pytest.mark.parametrize("backend", ["tensorflow", "JAX", "", None])
def test_unknown_backends_are_refused_before_weights_are_looked_for(backend: Any) -> None:
    with refused(f"backend={backend!r} is unknown", "torch, jax or mlx"):
        AIM.from_pretrained("aim-7B", backend=backend)


@both_backends
def test_devices_and_dtypes_are_checked_first(backend: str) -> None:
    with refused("device='cuda'", "leave it out", f"use {backend}."):
        AIM.from_pretrained("aim-7B", backend=backend, device="cuda")  # type: ignore[call-overload]
    with refused("dtype 'int8'", "float32 or bfloat16"):
        AIM.from_pretrained("aim-7B", backend=backend, dtype="int8")  # type: ignore[call-overload]


@pytest.mark.parametrize(("backend", "missing"), [("jax", "jax"), ("jax", "flax"), ("mlx", "mlx")])
def test_a_package_that_is_not_installed(backend: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"var.backends.aim_{backend}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with refused(f"{missing} is not installed", f"pip install 'var-next-scale[{backend}]'"):
        AIM.from_pretrained("aim-7B", backend=backend)  # type: ignore[call-overload]


def test_a_package_that_is_half_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(name: str) -> None:
        raise ImportError("libmlx.so: cannot open shared object file", name="mlx.core")

    monkeypatch.setattr("var.backends.choose.importlib.import_module", half)
    with refused("mlx cannot be imported", "libmlx.so", "pip install 'var-next-scale[mlx]'"):
        AIM.from_pretrained("aim-7B", backend="mlx")


@both_backends
@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (3, 8, 8), (1, 8, 8, 3), (1, 3, 16, 16)], ids=str)
def test_images_of_another_shape(backend: str, shape: tuple[int, ...]) -> None:
    with refused(f"images of shape {shape} given", "(B, 3, 8, 8)"):
        copy_into(backend, small_aim())(to_array(backend, torch.zeros(shape)))


@both_backends
def test_images_of_another_kind(backend: str) -> None:
    model = copy_into(backend, small_aim())
    with refused("images are of type Tensor of torch.float32", "floating-point array"):
        model(torch.zeros(1, 3, 8, 8))
    with refused("int32", "floating-point array"):
        model(to_array(backend, torch.zeros(1, 3, 8, 8, dtype=torch.int32)))
    with refused("images are of type list"):
        model([[0.0]])
    with refused("[7]", "0..2"):
        model.extract_features(to_array(backend, torch.zeros(1, 3, 8, 8)), [7])


def test_jax_takes_arrays_of_numpy() -> None:
    assert copy_into("jax", small_aim()).encoder.embed(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4, 16)


def test_nothing_is_imported_before_it_is_chosen() -> None:
    """JAX takes seconds and threads."""
    code = "import sys, var.aim; sys.exit(str(sorted({'jax', 'flax', 'mlx'} & sys.modules.keys())))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.stderr == "[]\n"
