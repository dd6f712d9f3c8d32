"""Accuracy of a VAR as a classifier: by hand, against one class at a time, the command, and mistakes in one line."""

import json
from pathlib import Path

import pytest
import torch
from helpers import random_images, refused
from tiny import Run, image_folder, refusal, tiny_pipeline
from torch import Tensor

from var.evaluation.classification import Classification, classification, position_in_ranking
from var.pipeline import VARPipeline
from var.sampling.class_likelihood import Pruning

N, CLASSES = 8, 5
IMAGES, LABELS = random_images(N, 8), [0, 4, 2, 2, 3, 1, 0, 3]


@pytest.fixture(scope="module")
def pipe() -> VARPipeline:
    return tiny_pipeline()


def of_batches(pipe: VARPipeline, size: int, pruning: Pruning | None = None, rows: int = 64) -> Classification:
    starts = range(0, N, size)
    return classification(pipe, [(IMAGES[i : i + size], LABELS[i : i + size]) for i in starts], pruning, rows)


@torch.no_grad()
def log_likelihoods(pipe: VARPipeline, num_tokens: int) -> Tensor:
    """(N, M) of the first tokens, by the model's forward pass for one class after the other."""
    tokens = pipe.vqvae.encode(IMAGES)
    inputs = pipe.vqvae.quantizer.teacher_forcing_input(tokens)
    columns = []
    for label in range(CLASSES):
        each = pipe.model(torch.full((N,), label), inputs).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        columns.append(each[:, :num_tokens].double().sum(dim=1))
    return torch.stack(columns, dim=1)


def test_a_position_counts_the_classes_before() -> None:
    ranking = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert position_in_ranking(ranking, torch.tensor([2, 0])).tolist() == [0, 2]


def test_accuracy_of_all_scales_and_of_the_first_ones(pipe: VARPipeline) -> None:
    found = of_batches(pipe, 3)
    assert (found.num_images, found.num_classes) == (N, CLASSES)
    assert (found.pruned, found.agreement) == (None, None)
    for accuracy, num_tokens in zip(found.of_first_scales, (1, 5, 21), strict=True):
        correct = (log_likelihoods(pipe, num_tokens).argmax(dim=1) == torch.tensor(LABELS)).double()
        assert accuracy.top1 == pytest.approx((correct.mean().item(), correct.std().item() / N**0.5))
        assert accuracy.top5.mean == 1  # of five classes
    assert found.whole.accuracy == found.of_first_scales[-1]
    assert found.whole.tokens == CLASSES * 21
    assert found.whole.seconds > 0


def test_pruned_beside_whole(pipe: VARPipeline) -> None:
    found = of_batches(pipe, 3, Pruning(((1, 2),)))
    first, everything = log_likelihoods(pipe, 1), log_likelihoods(pipe, 21)
    kept = first.topk(2).indices
    chosen = kept.gather(1, everything.gather(1, kept).argmax(dim=1, keepdim=True))[:, 0]
    assert found.pruned is not None
    assert found.agreement is not None
    assert found.agreement.mean == pytest.approx((chosen == everything.argmax(dim=1)).double().mean().item())
    assert found.pruned.accuracy.top1.mean == pytest.approx((chosen == torch.tensor(LABELS)).double().mean().item())
    assert found.pruned.tokens == CLASSES * 1 + 2 * 20
    all_kept = of_batches(pipe, 3, Pruning(((1, 5),)))
    assert all_kept.agreement is not None
    assert all_kept.agreement.mean == 1
    assert all_kept.pruned is not None
    assert all_kept.pruned.accuracy == all_kept.whole.accuracy == found.whole.accuracy


@pytest.mark.parametrize(("size", "rows"), [(1, 64), (8, 1), (5, 7)])
def test_batches_change_nothing(pipe: VARPipeline, size: int, rows: int) -> None:
    ours, theirs = of_batches(pipe, size, Pruning(((2, 3),)), rows), of_batches(pipe, N, Pruning(((2, 3),)))
    assert ours.of_first_scales == theirs.of_first_scales
    assert ours.agreement == theirs.agreement


def test_input_that_cannot_work_is_refused(pipe: VARPipeline) -> None:
    with refused("no images"):
        classification(pipe, [])
    with refused("after 3 scales"):
        of_batches(pipe, N, Pruning(((3, 1),)))
    with refused("class 3 alone", "two classes"):
        classification(tiny_pipeline({3: "crane"}), [(IMAGES[:1], [3])])
    with refused("label 1", "not trained on"):
        classification(tiny_pipeline({0: "fox", 3: "crane"}), [(IMAGES[:2], [0, 1])])
    with refused("bfloat16", "float32"):
        halved = tiny_pipeline()
        halved.vqvae.cast(torch.bfloat16)
        classification(halved, [(IMAGES[:1], [0])])


# --- the command


@pytest.fixture
def given(tmp_path: Path) -> tuple[object, ...]:
    """Options that name a model and images of two classes."""
    tiny_pipeline({0: "bar", 1: "cup", 4: "crane"}).save_pretrained(tmp_path / "model")
    return ("--data", image_folder(tmp_path / "images"), "--model", "model")


def test_the_command_prints_and_writes(var: Run, given: tuple[object, ...], tmp_path: Path) -> None:
    command = ("evaluate", "classification", *given, "--keep", "1:2", "--batch", 4, "--rows", 5, "--json", "r.json")
    code, out, err = var(*command)
    assert (code, err) == (0, "")
    assert "6 images of 6" in out
    assert "all scales, --keep 1:2" in out
    assert "scales up to 4x4" in out
    assert "pruned and whole agree on " in out
    assert "among 3 classes: chance is 33.3 %" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["command"] == "classification"
    assert written["num_classes"] == 3
    assert written["data"]["images"] == 6
    assert written["whole"]["tokens_per_image"] == 63
    assert written["pruned"]["keep"] == "1:2"
    assert written["pruned"]["tokens_per_image"] == 3 + 2 * 20
    assert list(written["up_to_scale"]) == ["1x1", "2x2", "4x4"]
    assert written["up_to_scale"]["4x4"]["top1"] == written["whole"]["top1"]
    assert 0 <= written["agreement"]["mean"] <= 1
    code, out, _ = var("evaluate", "classification", *given)
    assert code == 0
    assert "--keep" not in out
    assert "agree" not in out


def test_the_command_reports_mistakes_in_one_line(var: Run, given: tuple[object, ...]) -> None:
    for more, parts in {
        ("--keep", "1"): ["'1'", "3:25%,5:8"],
        ("--keep", "3:1"): ["after 3 scales", "the model has 3"],
        ("--rows", "0"): ["rows=0"],
        ("--num", "0"): ["num=0"],
        ("--json", "images"): ["images", "classification.json"],
    }.items():
        refusal(var("evaluate", "classification", *given, *more), *parts)
