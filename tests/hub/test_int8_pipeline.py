"""Pipelines in int8: what they draw, how they are loaded and moved, what they refuse."""

from pathlib import Path

import pytest
import torch
from helpers import noise, refused, small_var
from tiny import NAMES, tiny_pipeline

from var.cli.evaluation.results import format_size
from var.evaluation.likelihood import load_pipeline
from var.evaluation.samples.sample_set import sample_settings
from var.pipeline import VARPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "model"
    tiny_pipeline(NAMES).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, params=[False, True], ids=["float32", "bfloat16"])
def fast_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of processors, whatever this one is."""
    monkeypatch.setattr("var.utils.device.has_fast_bfloat16", lambda _: request.param)
    return bool(request.param)


@pytest.fixture
def int8(folder: Path, fast_bfloat16: bool) -> VARPipeline:
    return VARPipeline.from_pretrained(folder, device="cpu", dtype="int8")


def test_the_transformer_is_in_int8_and_the_tokenizer_as_with_auto(
    folder: Path, int8: VARPipeline, fast_bfloat16: bool
) -> None:
    moved = tiny_pipeline(NAMES).to("cpu", "bfloat16").to("cpu", "int8")
    expected = torch.bfloat16 if fast_bfloat16 else torch.float32
    for pipe in (int8, moved, int8.to("cpu"), int8.to("cpu", torch.int8)):
        assert (pipe.model.dtype, pipe.vqvae.dtype) == (torch.int8, expected)
    measured = load_pipeline(folder, "cpu", "int8")
    assert (measured.model.dtype, measured.vqvae.dtype) == (torch.int8, torch.float32)
    for part in moved.vqvae.decoder.parameters():
        assert part.dtype == expected


def test_an_image_does_not_depend_on_its_batch(int8: VARPipeline) -> None:
    together = int8([3, 0, 1], num=2, top_k=0)
    assert torch.equal(int8([3, 0, 1], num=2, top_k=0).tokens, together.tokens)
    assert torch.equal(int8([0], num=2, top_k=0).tokens, together.tokens[2:4])
    assert torch.equal(int8([3, 0, 1], num=2, top_k=0, batch_size=1).tokens, together.tokens)


def test_edits_and_classes(int8: VARPipeline, fast_bfloat16: bool) -> None:
    (filled,) = int8.inpaint(noise(8, 8), (2, 2, 6, 6), label=3).images
    assert filled.size == (8, 8)
    if fast_bfloat16:
        with refused("the tokenizer is in torch.bfloat16", "load it in float32"):
            int8.classify(filled)
        int8.vqvae.cast(torch.float32)
    (ranked,) = int8.classify(filled)
    assert {found.label for found in ranked} == set(NAMES)


def test_a_refiner_by_name_is_in_int8_too(folder: Path, int8: VARPipeline) -> None:
    opened = int8.choose_refiner(folder, 1)
    assert opened is not None
    assert opened.model.dtype == torch.int8


def test_a_set_of_samples_says_so(int8: VARPipeline) -> None:
    ours, theirs = (sample_settings(pipe, "tiny", top_k=0) for pipe in (int8, tiny_pipeline(NAMES)))
    assert (ours.dtype, theirs.dtype) == ("int8", "float32")
    assert ours.weights != theirs.weights


def test_rounded_parameters_are_counted() -> None:
    wide = small_var(width=128, heads=2)
    before = format_size(wide)
    assert before != "0.0 M parameters"
    assert format_size(wide.cast(torch.int8)) == before


def test_a_model_in_int8_is_not_saved(int8: VARPipeline, tmp_path: Path) -> None:
    for dtype in (None, "float32"):
        with refused("int8", "not saved", "dtype float32"):
            int8.save_pretrained(tmp_path / "saved", dtype)
    assert not any(tmp_path.iterdir())


def test_a_model_in_int8_is_not_compiled(folder: Path, int8: VARPipeline) -> None:
    with refused("int8 is not compiled", "leave out compile"):
        int8.compile()
    with refused("int8 is not compiled"):
        VARPipeline.from_pretrained(folder, device="cpu", dtype="int8", compile=True)


def test_a_model_in_int8_stays_so_and_on_the_cpu(int8: VARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("torch.float32", "load the model again"):
        int8.to("cpu", "float32")
    monkeypatch.setattr("var.hub.pipeline.choose_device", torch.device)
    for dtype in (None, "int8", "bfloat16"):
        with refused("int8", "cuda", "CPU"):
            int8.to("cuda", dtype)
    assert (int8.model.dtype, int8.model.position.device.type) == (torch.int8, "cpu")
