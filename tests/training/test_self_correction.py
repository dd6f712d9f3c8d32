"""Self-correction: wrong tokens in training, and targets that make up for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIDES, VOCAB, random_tokens, small_quantizer, small_vqvae
from tiny import image_folder, metrics, var_recipe

from tokenizer.quantizer import resize_down
from var.hub.checkpoint import save_model
from var.training.loop import train
from var.training.self_correction import nearest_codewords, perturb

BATCH, LENGTH = 5, sum(side * side for side in SIDES)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_codewords(cosine: bool) -> None:
    quantizer = small_quantizer(cosine=cosine)
    codebook = quantizer.codebook.weight
    if cosine:
        codebook = codebook / codebook.norm(dim=1, keepdim=True)
    distances = (codebook[:, None] - codebook[None]).norm(dim=-1)
    found = nearest_codewords(quantizer, 3)
    assert found.shape == (VOCAB, 3)
    assert torch.equal(found, distances.argsort(dim=1)[:, 1:4])  # the first is the codeword itself
    assert nearest_codewords(quantizer, 10 * VOCAB).shape == (VOCAB, VOCAB - 1)


def test_where_nothing_is_replaced_all_is_as_without() -> None:
    quantizer, tokens = small_quantizer(), random_tokens(BATCH, LENGTH)
    noise = torch.rand(BATCH, LENGTH, 2, generator=torch.Generator().manual_seed(0))
    inputs, targets = perturb(quantizer, tokens, nearest_codewords(quantizer, 4), torch.zeros(BATCH), noise)
    assert torch.equal(targets, tokens)
    assert torch.equal(inputs, quantizer.teacher_forcing_input(tokens))


def test_a_share_is_replaced_by_neighbors_of_what_is_right() -> None:
    """Each sample's share is its own; the first scale's target stays, and its input shows the replacement."""
    quantizer, tokens = small_quantizer(), random_tokens(BATCH, LENGTH)
    neighbors = nearest_codewords(quantizer, 4)
    noise = torch.rand(BATCH, LENGTH, 2, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    inputs, targets = perturb(quantizer, tokens, neighbors, share, noise)
    clean = quantizer.teacher_forcing_input(tokens)
    assert torch.equal(targets[:, 0], tokens[:, 0])
    for row, part in enumerate(share):
        assert torch.equal(inputs[row], clean[row]) == (part == 0)
    shown = neighbors[tokens[:, 0], (noise[:, 0, 1] * 4).long()]
    first = quantizer.next_input(quantizer.scale_update(quantizer.codebook(shown)[:, None], 0), 1)
    torch.testing.assert_close(inputs[1, :4], first[1])


def test_targets_are_nearest_to_what_is_then_left() -> None:
    quantizer, tokens = small_quantizer(), random_tokens(BATCH, LENGTH)
    neighbors = nearest_codewords(quantizer, 4)
    noise = torch.rand(BATCH, LENGTH, 2, generator=torch.Generator().manual_seed(0))
    noise[:, 1:, 0] = 1.0  # only the first token is replaced
    _, targets = perturb(quantizer, tokens, neighbors, torch.full((BATCH,), 0.999), noise)
    shown = neighbors[tokens[:, 0], (noise[:, 0, 1] * 4).long()]
    codes = quantizer.codebook
    right, wrong = (quantizer.scale_update(codes(each)[:, None], 0) for each in (tokens[:, 0], shown))
    wanted = codes(tokens[:, 1:5]) + resize_down(right - wrong, 2).flatten(2).transpose(1, 2)
    expected = torch.cdist(wanted, codes.weight[None]).argmin(dim=-1)
    assert torch.equal(targets[:, 1:5], expected)
    assert not torch.equal(expected, tokens[:, 1:5])


def test_a_run_with_self_correction(tmp_path: Path) -> None:
    """Null is training without it, bit for bit; with it the model reads something else."""
    source = image_folder(tmp_path / "images")
    save_model(tmp_path / "tokenizer", small_vqvae())

    def lines(name: str, **changes: Any) -> list[dict[str, Any]]:
        recipe = var_recipe(tmp_path / name, source, tmp_path / "tokenizer", steps=2, **changes)
        train(recipe)
        return metrics(recipe.output, "train")

    without = lines("without")
    assert lines("null", self_correction=None) == without
    assert lines("with", self_correction={"share": 1.0, "neighbors": 3})[0]["loss"] != without[0]["loss"]
