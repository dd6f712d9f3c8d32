"""Compiled networks. The compiler's front end does its work here; what it hands over is run as it is, in seconds."""

from typing import Any

import torch
from helpers import SIDES, small_var, small_vqvae
from tiny import Graphs

from var import VARPipeline
from var.sampling.params import SamplingParams


def pipeline() -> VARPipeline:
    return VARPipeline(small_var(seed=1), small_vqvae(seed=2), sampling=SamplingParams(top_k=20))


def test_every_scale_is_compiled_once_and_the_decoder_once(graphs: Graphs) -> None:
    expected = pipeline()([1, 2], cfg=1.5)
    pipe = pipeline().compile()
    assert graphs == []
    found = pipe([1, 2], cfg=1.5)
    assert torch.equal(found.tokens, expected.tokens)
    assert [image.tobytes() for image in found.images] == [image.tobytes() for image in expected.images]
    assert len(graphs) == len(SIDES) + 1  # blocks of all depths share the code of a scale
    pipe([0, 2], cfg=1.5, seed=9)
    assert len(graphs) == len(SIDES) + 1
    pipe([1], cfg=1.5)  # another number of images
    assert len(graphs) == 2 * (len(SIDES) + 1)


def test_a_compiled_model_is_saved_as_any_other(graphs: Graphs, tmp_path: Any) -> None:
    pipe = pipeline().compile()
    pipe.save_pretrained(tmp_path / "model")
    loaded = VARPipeline.from_pretrained(tmp_path / "model", dtype="float32", compile=True)
    assert torch.equal(loaded([1]).tokens, pipeline()([1]).tokens)
    assert graphs
