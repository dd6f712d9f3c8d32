"""Refiners by name, by folder and as pipelines, and those that cannot continue what a model draws."""

from pathlib import Path

import pytest
import torch
from helpers import refused, small_var, small_vqvae
from tiny import NAMES, tiny_pipeline

from var.pipeline import VARPipeline


def test_a_folder_and_a_pipeline_draw_the_same(pipe: VARPipeline, tmp_path: Path) -> None:
    other = VARPipeline(small_var(seed=7, depth=1), pipe.vqvae, NAMES)
    other.save_pretrained(tmp_path / "other")
    drawn = pipe([3, 0], num=2, refiner=other, refine_from=1, top_k=0)
    assert not torch.equal(drawn.tokens, pipe([3, 0], num=2, top_k=0).tokens)
    assert torch.equal(pipe([3, 0], num=2, refiner=tmp_path / "other", refine_from=1, top_k=0).tokens, drawn.tokens)


def test_a_refiner_of_another_number_type(pipe: VARPipeline) -> None:
    half = tiny_pipeline(NAMES)
    half.model.cast(torch.bfloat16)
    half.vqvae.cast(torch.bfloat16)
    assert pipe(3, refiner=half, refine_from=1).tokens.shape == (1, 21)
    assert half(3, refiner=pipe, refine_from=1).tokens.shape == (1, 21)


def test_a_refiner_with_another_tokenizer(pipe: VARPipeline) -> None:
    for vqvae in (small_vqvae(seed=8), small_vqvae(base_width=16)):
        with refused("the refiner has another tokenizer than the model"):
            pipe(3, refiner=VARPipeline(small_var(), vqvae, NAMES), refine_from=1)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ({**NAMES, 3: "heron"}, "class 3 is 'crane' to the model and 'heron' to the refiner"),
        ({0: "red fox"}, "class 1 is 'tabby_cat' to the model and 'unknown' to the refiner"),
    ],
)
def test_a_refiner_with_other_classes(pipe: VARPipeline, names: dict[int, str], part: str) -> None:
    with refused(part):
        pipe(3, refiner=tiny_pipeline(names), refine_from=1)


def test_a_refiner_that_knows_more_classes(pipe: VARPipeline) -> None:
    for more in (tiny_pipeline({**NAMES, 2: "heron"}), tiny_pipeline()):
        assert pipe(3, refiner=more, refine_from=2).labels == [3]


@pytest.mark.parametrize("options", [{"refiner": "var-mini"}, {"refine_from": 1}])
def test_half_of_a_refiner(pipe: VARPipeline, options: dict[str, object]) -> None:
    with refused("refiner and refine_from go together"):
        pipe(3, **options)
