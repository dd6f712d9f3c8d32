"""Likelihood of tokens: against NumPy, against a training run's own validation, and mistakes in one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, SIDES, normal, refused, small_var, small_vqvae
from scipy import stats
from scipy.special import log_softmax
from tiny import Run, image_folder, metrics, refusal, tiny_pipeline, tokenizer_recipe, var_recipe

from var.evaluation.data import image_batches, open_images
from var.evaluation.likelihood import LabeledLikelihood, Likelihood, TokenLikelihood, likelihood
from var.evaluation.metrics.stats import MeanStderr
from var.pipeline import VARPipeline
from var.training.loop import train
from var.training.stages.var import VARRecipe

N, TOKENS = 7, 21
IMAGES, LABELS = normal(N, 3, 8, 8).clamp(-1, 1), [0, 4, 2, 2, 3, 1, 0]


def of_batches(pipe: VARPipeline, batch_size: int) -> LabeledLikelihood:
    starts = range(0, N, batch_size)
    return likelihood(pipe, [(IMAGES[i : i + batch_size], LABELS[i : i + batch_size]) for i in starts])


@torch.no_grad()
def by_numpy(pipe: VARPipeline, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(N, L) cross-entropy and whether the token is not the most probable one, one image at a time."""
    losses, wrong = [], []
    for image, label in zip(IMAGES, labels, strict=True):
        tokens = pipe.vqvae.encode(image[None])
        logits = pipe.model(torch.tensor([label]), pipe.vqvae.quantizer.teacher_forcing_input(tokens))[0]
        log_p = log_softmax(logits.double().numpy(), axis=-1)
        losses.append(-log_p[np.arange(TOKENS), tokens[0].numpy()])
        wrong.append(log_p.argmax(axis=-1) != tokens[0].numpy())
    return np.array(losses), np.array(wrong)


def assert_equal(found: TokenLikelihood, losses: np.ndarray, wrong: np.ndarray) -> None:
    assert found.tokens == losses.shape[1]
    assert found.loss == pytest.approx((losses.mean(), stats.sem(losses.mean(axis=1))), rel=1e-5)
    assert found.error == pytest.approx((wrong.mean(), stats.sem(wrong.mean(axis=1))), rel=1e-9)


def test_all_scales_each_and_the_last_are_numpys_with_and_without_the_label() -> None:
    pipe = tiny_pipeline()
    found = of_batches(pipe, 3)
    assert found.num_images == N
    columns = {"given": LABELS, "null": [CLASSES] * N}
    for name, labels in columns.items():
        losses, wrong = by_numpy(pipe, labels)
        column: Likelihood = getattr(found, name)
        assert_equal(column.whole, losses, wrong)
        for of, start, stop in zip(column.of_scales, (0, 1, 5), (1, 5, 21), strict=True):
            assert_equal(of, losses[:, start:stop], wrong[:, start:stop])
        assert column.last is column.of_scales[-1]
    saved = (by_numpy(pipe, [CLASSES] * N)[0] - by_numpy(pipe, LABELS)[0]).sum(axis=1)
    assert found.gain == pytest.approx((saved.mean(), stats.sem(saved)), rel=1e-4)


def test_the_label_is_what_is_told() -> None:
    found = of_batches(tiny_pipeline(), N)
    assert abs(found.given.whole.loss.mean - found.null.whole.loss.mean) > 1e-3
    other = likelihood(tiny_pipeline(), [(IMAGES, [0] * N)])
    assert other.given.whole.loss != found.given.whole.loss
    assert other.null == found.null


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_any_batch_size_gives_the_same_numbers(batch_size: int) -> None:
    pipe = tiny_pipeline()
    ours, theirs = of_batches(pipe, batch_size), of_batches(pipe, N)
    for column in ("given", "null"):
        a, b = getattr(ours, column), getattr(theirs, column)
        for x, y in zip((a.whole, *a.of_scales), (b.whole, *b.of_scales), strict=True):
            assert x.loss == pytest.approx(y.loss, rel=1e-6)
            assert x.error == pytest.approx(y.error, rel=1e-6)
    assert ours.num_images == theirs.num_images


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_codebook() -> None:
    pipe = VARPipeline(small_var(), small_vqvae())
    torch.nn.init.zeros_(pipe.model.head.weight)
    torch.nn.init.zeros_(pipe.model.head.bias)
    whole = of_batches(pipe, 4).given.whole
    assert whole.loss == pytest.approx((math.log(32), 0), abs=1e-6)
    assert whole.bits.mean == pytest.approx(5, rel=1e-6)
    assert whole.perplexity.mean == pytest.approx(32, rel=1e-6)
    assert whole.nats_per_image.mean == pytest.approx(TOKENS * math.log(32), rel=1e-6)
    assert whole.bits_per_pixel(8).mean == pytest.approx(TOKENS * 5 / 64, rel=1e-6)


def test_units_carry_their_errors() -> None:
    of = TokenLikelihood(16, MeanStderr(2.0, 0.1), MeanStderr(0.9, 0.01))
    assert of.bits == pytest.approx((2 / math.log(2), 0.1 / math.log(2)))
    assert of.perplexity == pytest.approx((math.exp(2), 0.1 * math.exp(2)))
    assert of.nats_per_image == pytest.approx((32, 1.6))
    assert of.bits_per_pixel(8) == pytest.approx((0.5 / math.log(2), 0.025 / math.log(2)))
    assert TokenLikelihood(16, MeanStderr(2.0, None), MeanStderr(1.0, None)).perplexity.error is None


def test_images_that_a_model_cannot_take_are_refused() -> None:
    pipe = tiny_pipeline({0: "fox", 3: "crane"})
    with refused("label 1", "not trained on", "known labels: 2, from 0 to 3"):
        likelihood(pipe, [(IMAGES[:2], [0, 1])])
    with refused("no images"):
        likelihood(pipe, [])
    with refused("(1, 3, 16, 16)"):
        likelihood(pipe, [(normal(1, 3, 16, 16), [0])])
    pipe.vqvae.cast(torch.bfloat16)
    with refused("bfloat16", "float32"):
        likelihood(pipe, [(IMAGES[:1], [0])])


def test_damaged_weights_are_told() -> None:
    pipe = tiny_pipeline()
    torch.nn.init.constant_(pipe.model.head.bias, float("nan"))
    with refused("not finite", "damaged"):
        of_batches(pipe, 4)


# --- against training


@pytest.fixture(scope="module")
def var_run(tmp_path_factory: pytest.TempPathFactory) -> VARRecipe:
    """Both stages on six validation images, in batches of four."""
    folder = tmp_path_factory.mktemp("run")
    images = image_folder(folder / "images", train=4, validation=3)
    tokenizer = train(tokenizer_recipe(folder / "tokenizer", images, steps=4))
    recipe = var_recipe(folder / "var", images, tokenizer, steps=10, ema=0.5, label_drop=0.1, validate_every=10)
    train(recipe)
    return recipe


def test_the_numbers_are_those_of_trainings_validation(var_run: VARRecipe) -> None:
    (line,) = metrics(var_run.output, "validation")
    pipe = VARPipeline.from_pretrained(var_run.output / "model", dtype="float32")
    dataset = open_images(var_run.data.source, "validation", pipe.vqvae.config.image_side)
    found = likelihood(pipe, image_batches(dataset, 5)).given
    parts = {"": found.whole, **{f"/{s}x{s}": of for s, of in zip(SIDES, found.of_scales, strict=True)}}
    for suffix, of in parts.items():
        assert of.loss.mean == pytest.approx(line[f"loss{suffix}"], rel=1e-6)
        assert 1 - of.error.mean == pytest.approx(line[f"accuracy{suffix}"], rel=1e-6, abs=1e-7)
    assert found.whole.loss.mean < math.log(16)


# --- the command


def test_the_command_prints_and_writes(var: Run, var_run: VARRecipe, tmp_path: Path) -> None:
    recipe = var_run.output.with_suffix(".yaml")
    code, out, err = var(
        "evaluate",
        "likelihood",
        "--data",
        recipe,
        "--model",
        var_run.output / "model",
        "--json",
        "r.json",
        "--dtype",
        "float32",
    )
    assert (code, err) == (0, "")
    assert "6 images of 6" in out
    assert "classes that the model knows: 2" in out
    assert "4x4, last" in out
    written = json.loads((tmp_path / "r.json").read_text())
    (line,) = metrics(var_run.output, "validation")
    assert written["with_label"]["all"]["loss"]["mean"] == pytest.approx(line["loss"], rel=1e-6)
    assert written["with_label"]["last"] == written["with_label"]["scales"]["4x4"]
    assert written["null_class"]["all"]["tokens"] == TOKENS
    assert written["data"] == {
        "source": var_run.data.source,
        "split": "validation",
        "classes": "classes that the model knows: 2",
        "images": 6,
        "unreadable": 0,
        "in_split": 6,
        "crop": "short side to 9 px (Lanczos), center 8x8",
    }
    assert len(written["model"]["weights"]) == 64
    assert written["versions"]["torch"] == torch.__version__
    assert f"{line['loss']:.4f} ±" in out


def test_the_command_measures_the_classes_that_the_model_knows(var: Run, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    tiny_pipeline({1: "cup", 4: "crane"}).save_pretrained(tmp_path / "model")
    code, out, err = var("evaluate", "likelihood", "--data", folder, "--model", "model", "--num", 2)
    assert (code, err) == (0, "")
    assert "2 images of 3" in out
    assert "classes that the model knows: 1; others left out: 1 (images: 3)" in out


def test_the_command_warns_of_classes_with_other_names(var: Run, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    tiny_pipeline({0: "Bar", 1: "tabby cat"}).save_pretrained(tmp_path / "model")
    code, _, err = var("evaluate", "likelihood", "--data", folder, "--model", "model")
    assert code == 0
    assert "warning: the class names of data and model differ for 1 of 2 labels" in err
    assert "1: 'cup' and 'tabby cat'" in err


def test_the_command_tells_mistakes_in_one_line(var: Run, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    tiny_pipeline({1: "cup"}).save_pretrained(tmp_path / "model")
    given = ("--data", folder, "--model", "model")
    for more, parts in {
        ("--classes", "0"): ["class 0", "not one that this model was trained on"],
        ("--classes", "0,x"): ["has no class 'x'"],
        ("--classes", "0,,1"): ["--classes '0,,1'"],
        ("--num", "0"): ["num=0"],
        ("--batch", "0"): ["batch=0"],
        ("--dtype", "int4"): ["int4"],
        ("--model", "var-d17"): ["var-d17"],
        ("--json", "images"): ["images", "likelihood.json"],
        ("--json", "images/val/cup/0.png"): ["is inside"],
        ("data.resize=1",): ["give a recipe"],
        ("--split", "test"): ["test"],
    }.items():
        refusal(var("evaluate", "likelihood", *given, *more), *parts)
