"""Stages cca and ddo on tiny models: they train, go on bit for bit, validate, export, and refuse what cannot work."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused, small_var, small_vqvae
from tiny import assert_same_weights, merged, metrics, stop_at, tiny_pipeline, write_recipe

from tokenizer.vqvae import VQVAE
from var.data.dataset import Batch
from var.pipeline import VARPipeline
from var.sampling.generate import generate
from var.sampling.params import SamplingParams
from var.training.alignment_stage import AlignmentStage
from var.training.config import Recipe
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.reference_samples import open_reference_samples, write_reference_samples
from var.training.rng import StepRNG
from var.training.stages.base import find_stage
from var.training.trainer import Trainer, build_stage
from var.utils.ranks import ALONE

STAGES = pytest.mark.parametrize("stage", ["cca", "ddo"])
BASE: dict[str, Any] = {
    "batch_size": 4,
    "steps": 4,
    "model": {"depth": 2, "width": 32, "heads": 4, "num_classes": 5, "drop_path": 0.3},
    "optimizer": {"lr": 1e-3},
    "precision": "float32",
    "log_every": 1,
    "validate_every": 2,
    "checkpoint_every": 1,
    "negative_weight": 3.0,
    "beta": 0.1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of random weights."""
    folder = tmp_path_factory.mktemp("trained") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return folder


def alignment(path: Path, stage: str, images: Path, trained: Path, **changes: Any) -> Recipe:
    base = BASE | {"stage": stage, "init": str(trained), "tokenizer": str(trained)}
    return load_recipe(
        write_recipe(path.with_suffix(".yaml"), merged(base, {"data": {"source": str(images)}}), **changes)
    )


def built(recipe: Recipe) -> AlignmentStage[Any]:
    """The stage as a run has it at its first step."""
    cls = find_stage(recipe.stage)
    cls.prepare(recipe, torch.device("cpu"), ALONE)
    stage = build_stage(recipe)
    assert isinstance(stage, AlignmentStage)
    stage.phases[0].model.load_state_dict(small_var().state_dict())
    return stage


def batch_of(stage: AlignmentStage[Any]) -> Batch:
    samples = [stage.train_data[0, index] for index in (0, 1, 4, 5)]
    images = torch.stack([sample.content for sample in samples])  # type: ignore[union-attr]  # all are readable
    return Batch(images, torch.tensor([0, 0, 1, 1]), [], [])


def rng(step: int = 0) -> StepRNG:
    return StepRNG(0, step, 4, range(4), torch.device("cpu"))


@STAGES
def test_it_trains_resumes_validates_and_exports(
    stage: str, images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = alignment(tmp_path / "whole", stage, images, trained, label_drop=0.4)
    halves = alignment(tmp_path / "halves", stage, images, trained, label_drop=0.4)
    exported = train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(SystemExit):
            train(halves)
    assert metrics(halves.output, "train")[-1]["step"] == 2
    train(halves)
    assert metrics(whole.output) == metrics(halves.output)
    assert_same_weights(whole.output / "model", halves.output / "model")
    first, *_, last = metrics(whole.output, "train")
    assert first["loss"] == pytest.approx(4 * math.log(2), abs=1e-4)  # 1 + the weight of 3
    assert first["positive_log_ratio"] == pytest.approx(0, abs=1e-3)
    assert last["loss"] < first["loss"]
    for line in metrics(whole.output, "validation"):
        assert line.keys() >= {"loss", "positive_log_ratio", "negative_log_ratio", "accuracy", "cross_entropy"}
    pipeline = VARPipeline.from_pretrained(exported, device="cpu", dtype="float32")
    assert pipeline.sampling is not None
    assert pipeline.sampling.cfg == 0


@STAGES
def test_the_first_loss_is_that_of_a_classifier_that_knows_nothing(
    stage: str, images: Path, trained: Path, tmp_path: Path
) -> None:
    """The log-ratio is 0 although the recipe has stochastic depth; and the gradient passes by the reference."""
    ready = built(alignment(tmp_path / "run", stage, images, trained, negative_weight=50.0))
    losses = ready.losses(ready.phases[0].model.train(), batch_of(ready), rng(), None)
    assert losses.total.item() == pytest.approx(51 * math.log(2), rel=1e-5)
    assert losses.logs["cross_entropy"].item() > 0
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in ready.phases[0].model.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in ready.reference.parameters())


@STAGES
def test_the_loss_is_that_of_the_two_models_likelihoods(
    stage: str, images: Path, trained: Path, tmp_path: Path
) -> None:
    ready = built(alignment(tmp_path / "run", stage, images, trained))
    model = small_var(seed=1)
    batch = batch_of(ready)
    values = ready.validate(model, batch)
    tokens = ready.vqvae.encode(batch.content)

    def log_p(network: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            logits = network(labels, ready.vqvae.quantizer.teacher_forcing_input(tokens)).double()
        each = logits.log_softmax(-1).gather(-1, tokens[..., None])
        return each.sum(dim=(1, 2)).numpy()

    positive = log_p(model, tokens, batch.labels) - log_p(small_var(), tokens, batch.labels)
    np.testing.assert_allclose(values["positive_log_ratio"].numpy(), positive, atol=1e-3)
    if stage == "cca":  # of two classes the wrong label is the other one
        negative = log_p(model, tokens, 1 - batch.labels) - log_p(small_var(), tokens, 1 - batch.labels)
        np.testing.assert_allclose(values["negative_log_ratio"].numpy(), negative, atol=1e-3)
    negative = values["negative_log_ratio"].double().numpy()
    loss = np.log1p(np.exp(-0.1 * positive)) + 3 * np.log1p(np.exp(0.1 * negative))
    np.testing.assert_allclose(values["loss"].numpy(), loss, rtol=1e-4)
    np.testing.assert_array_equal(values["accuracy"].numpy(), positive > negative)


def test_of_dropped_labels_cca_keeps_the_wrong_one(images: Path, trained: Path, tmp_path: Path) -> None:
    ready = built(alignment(tmp_path / "run", "cca", images, trained, label_drop=0.5))
    seen: list[torch.Tensor] = []
    model = ready.phases[0].model
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for step in range(8):
        ready.losses(model, batch_of(ready), rng(step), None)
    right, wrong = torch.stack(seen).chunk(2, dim=1)
    assert set(right.flatten().tolist()) == {0, 1, 5}  # 5: the null class
    assert torch.equal(wrong, torch.tensor([[1, 1, 0, 0]]).expand(8, 4))


def test_wrong_labels_and_drawn_images_do_not_depend_on_micro_batches(
    images: Path, trained: Path, tmp_path: Path
) -> None:
    for stage in ("cca", "ddo"):
        whole = alignment(tmp_path / f"{stage}-whole", stage, images, trained, label_drop=0.3)
        parts = alignment(tmp_path / f"{stage}-parts", stage, images, trained, label_drop=0.3, accumulate=3)
        train(whole)
        train(parts)
        for one, other in zip(metrics(whole.output, "train"), metrics(parts.output, "train"), strict=True):
            assert one.pop("split") == other.pop("split")
            assert one == pytest.approx(other, rel=2e-3, abs=2e-3)


def test_drawn_images_are_the_references_own_without_guidance(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = alignment(tmp_path / "run", "ddo", images, trained, reference_samples=7)
    with monkeypatch.context() as patched:
        patched.setattr(VQVAE, "pixels", lambda *_: pytest.fail("tokens alone are needed"))
        built(recipe)
    folder = recipe.output / "reference_samples"
    train_set, held_out = open_reference_samples(folder, "train"), open_reference_samples(folder, "validation")
    assert train_set.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    labels = [0, 0, 0, 1, 1, 1, 1, held_out.labels.item()]
    drawn = generate(small_var(), small_vqvae(), labels, SamplingParams(cfg=0.0, top_k=0, top_p=0.0)).tokens
    assert torch.equal(torch.cat([train_set.take(range(7))[0], held_out.take([0])[0]]), drawn)


def test_drawn_images_that_are_there_stay_and_damaged_ones_are_drawn_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels: Any = {"train": [0, 1, 1], "validation": [1]}
    folder = tmp_path / "samples"
    write_reference_samples(folder, small_var(), small_vqvae(), labels, 3, ALONE)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = (folder / "validation-v0-00000.bin").stat().st_mtime_ns
    (folder / "train-v0-00000.bin").write_bytes(b"cut off")
    with caplog.at_level(logging.INFO):
        write_reference_samples(folder, small_var(), small_vqvae(), labels, 3, ALONE)
    assert "drew 1 of 1 shards" in caplog.text
    assert "is damaged: drawing it again" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (folder / "validation-v0-00000.bin").stat().st_mtime_ns == kept
    for other in ({"seed": 4}, {"model": small_var(seed=1)}, {"labels": labels | {"train": [0, 1]}}):
        given = {"model": small_var(), "labels": labels, "seed": 3} | other
        with refused("were drawn by another model, or with another seed, number or labels: give another output"):
            write_reference_samples(folder, vqvae=small_vqvae(), ranks=ALONE, **given)


@STAGES
def test_a_resumed_run_has_the_same_reference(stage: str, images: Path, trained: Path, tmp_path: Path) -> None:
    train(alignment(tmp_path / "run", stage, images, trained, steps=1))
    VARPipeline(small_var(seed=1), small_vqvae()).save_pretrained(tmp_path / "other")
    changed = alignment(tmp_path / "run", stage, images, tmp_path / "other", tokenizer=str(trained), steps=1)
    with refused("the reference had other weights" if stage == "cca" else "were drawn by another model"):
        train(changed)


@STAGES
def test_it_refuses_what_cannot_work(stage: str, images: Path, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with refused("init is missing: give the trained model to align"):
        alignment(path, stage, images, trained, init=None)
    with refused("self_correction changes the tokens whose likelihood is compared: set it to null"):
        alignment(path, stage, images, trained, self_correction={"share": 0.1})
    with refused("model.num_classes"):
        alignment(path, stage, images, trained, data={"classes": [7]})
    with refused("has 5 classes, model.num_classes is 4: give", "model.num_classes=5"):
        train(alignment(path, stage, images, trained, model={"num_classes": 4}))
    with refused("has 5 classes, the data has "):
        train(alignment(path, stage, images, trained, model={"num_classes": None}))
    with refused("has no blocks.2.", "of the model's tensors are missing)"):
        train(alignment(path, stage, images, trained, model={"depth": 3}))
    with refused("beta"):
        alignment(path, stage, images, trained, beta=0)


@STAGES
def test_the_reference_has_seen_the_tokens_and_other_classes_are_named(
    stage: str, images: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VARPipeline(small_var(), small_vqvae(seed=1), {0: "zoo"}).save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    with refused("was trained on the tokens of another tokenizer than tokenizer=", "give its own tokenizer"):
        built(alignment(tmp_path / "run", stage, images, trained, tokenizer=other))
    assert "class 0" not in caplog.text
    built(alignment(tmp_path / "run", stage, images, trained, init=other, tokenizer=other))
    assert "its class 0 is 'zoo', that of the data is 'bar'" in caplog.text


@STAGES
def test_a_run_goes_on_with_the_same_loss_alone(stage: str, images: Path, trained: Path, tmp_path: Path) -> None:
    train(alignment(tmp_path / "run", stage, images, trained, steps=1))
    for change in ({"beta": 0.2}, {"negative_weight": 4.0}):
        with refused(f"{next(iter(change))}="):
            train(alignment(tmp_path / "run", stage, images, trained, steps=2, **change))


def test_cca_needs_two_classes(images: Path, trained: Path, tmp_path: Path) -> None:
    with refused("the data has one class, 1: stage cca needs two, for wrong labels"):
        train(alignment(tmp_path / "run", "cca", images, trained, data={"classes": [1]}))


def test_the_papers_lambda_follows_the_depth(images: Path, trained: Path, tmp_path: Path) -> None:
    for depth, weight in ((2, 50), (16, 50), (20, 50), (24, 100), (30, 1000), (36, 1000)):
        recipe: Any = alignment(tmp_path / "run", "cca", images, trained, negative_weight=None, model={"depth": depth})
        assert recipe.weight == weight
    recipe = alignment(tmp_path / "run", "ddo", images, trained, negative_weight=None)
    assert recipe.weight == 1


def test_guidance_is_off_unless_the_recipe_gives_it(images: Path, trained: Path, tmp_path: Path) -> None:
    def sampling(**given: Any) -> Any:
        recipe: Any = alignment(tmp_path / "run", "cca", images, trained, **given)
        return recipe.sampling

    assert sampling().cfg == 0
    assert sampling(sampling=None).cfg == 0
    assert (sampling(sampling={"top_k": 5}).cfg, sampling(sampling={"top_k": 5}).top_k) == (0, 5)
    assert sampling(sampling={"cfg": 1.5}).cfg == 1.5
    given = sampling(sampling={"cfg_scales": [0, 2], "temperature": [1, 1, 0.9], "use_scales": [1, 2, 4]})
    assert (given.cfg, given.cfg_scales, given.temperature, given.use_scales) == (0, (0, 2), (1, 1, 0.9), (1, 2, 4))


@STAGES
def test_the_dry_run_counts_the_reference_and_the_images_that_it_draws(
    stage: str, images: Path, trained: Path, tmp_path: Path
) -> None:
    recipe = alignment(tmp_path / "run", stage, images, trained)
    estimated = estimate(recipe)
    names = {network.name: network for network in estimated.networks}
    assert names["reference"].parameters == names["model"].parameters
    assert not names["reference"].trained
    assert bool(estimated.preparation) == (stage == "ddo")
    assert any("drawing 9 images with the reference" in note for note in estimated.notes) == (stage == "ddo")
    assert not recipe.output.exists()


def test_the_trainer_starts_where_the_reference_is(images: Path, trained: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    trainer = Trainer(alignment(tmp_path / "run", "cca", images, trained), Accelerator(cpu=True))
    assert isinstance(trainer.stage, AlignmentStage)
    ours, theirs = trainer.stage.phases[0].model.state_dict(), trainer.stage.reference.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert "reference" in trainer.origin["networks"]
