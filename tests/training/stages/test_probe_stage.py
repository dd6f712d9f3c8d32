"""Probes on frozen features: whom gradients reach, how candidates stay apart, which is exported, what is refused."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Tensors, largest_difference, normal, refused, small_var, small_vqvae
from tiny import image_folder, metrics, picture, tiny_pipeline, write_recipe
from tiny_aim import SIZES, small_aim
from tiny_backends import arrays_of, both_backends, from_array, run_in
from torch import Tensor

from var.aim import AIM, load_pretrained
from var.data.dataset import Batch, number_present_classes, open_dataset
from var.data.loader import collate
from var.features.sources import FeatureSource, VARFeatures, hidden_states, load_classifier, load_features
from var.hub.checkpoint import CONFIG, WEIGHTS, load_encoder, load_probe, save_model
from var.hub.presets import AIM_SIZES
from var.models.aim import AIMConfig, Encoder, EncoderConfig, Probe, ProbeConfig
from var.training.distributed import build_accelerator
from var.training.estimate.cost import Estimate, estimate
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.rng import StepRNG
from var.training.stages.aim import AIMRecipe
from var.training.stages.probe import SCORES, ProbeRecipe, Probes, ProbeStage, add_frame, candidates, name_layers
from var.training.trainer import Trainer, build_stage
from var.utils.images import normalize

BATCH = 4
BASE: dict[str, Any] = {
    "stage": "probe",
    "batch_size": BATCH,
    "steps": 6,
    "probed": 2,
    "optimizer": {"lr": 1e-2, "weight_decay": 0.01},
    "precision": "float32",
    "log_every": 1,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of two classes to train on, six to validate."""
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks, 8 px, four patches."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    save_model(folder, small_aim().encoder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAR of two blocks, 8 px, 21 tokens."""
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return folder


def probe_recipe(path: Path, source: Path, model: object, **changes: Any) -> ProbeRecipe:
    base = BASE | {"data": {"source": str(source)}, "model": str(model)}
    recipe = load_recipe(write_recipe(path.with_suffix(".yaml"), base, **changes))
    assert isinstance(recipe, ProbeRecipe)
    return recipe


def probe_stage(recipe: ProbeRecipe) -> ProbeStage:
    stage = build_stage(recipe)
    assert isinstance(stage, ProbeStage)
    return stage


def probes(stage: ProbeStage) -> Probes:
    model = stage.phases[0].model
    assert isinstance(model, Probes)
    return model


def read(stage: ProbeStage, split: str = "train", count: int = BATCH) -> Batch:
    """The first samples, as a loader would hand them over."""
    data = stage.train_data if split == "train" else stage.validation_data
    return collate([data[0, index] for index in range(count)], data.empty)


def losses(stage: ProbeStage, batch: Batch) -> Any:
    places = range(len(batch.labels))
    draws = StepRNG(0, 0, len(places), places, torch.device("cpu"))
    return stage.phases[0].loss(probes(stage), batch, draws, None)


def probe_state(folder: Path) -> Tensors:
    """The weights of an exported AIM's probe."""
    return AIM.from_pretrained(folder, device="cpu", dtype="float32").probe.state_dict()


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- candidates


def test_candidates_are_the_last_blocks_those_of_a_list_or_every_run() -> None:
    assert candidates("last", 24, 6) == [(18, 19, 20, 21, 22, 23)]
    assert candidates("last", 3, 6) == candidates("best", 3, 6) == [(0, 1, 2)]
    assert candidates("best", 4, 2) == [(0, 1), (1, 2), (2, 3)]
    assert candidates((5, 0, 2), 6, 2) == [(0, 2, 5)]
    for layers in ((6,), (-1, 0), (1, 1), ()):
        with refused(f"layers {list(layers)} must be different blocks in 0..5"):
            candidates(layers, 6, 2)


def test_names_of_candidates() -> None:
    assert [name_layers(layers) for layers in ((14, 15, 16), (5,), (0, 2, 5), (2, 3))] == ["14-16", "5", "0_2_5", "2-3"]


# --- features


@torch.no_grad()
def test_an_encoders_features_are_of_standardised_images(encoder: Path) -> None:
    source = load_features(str(encoder), EncoderConfig(**SIZES))
    assert (source.image_size, source.patches, source.depth, source.width, source.heads) == (8, 4, 3, 16, 2)
    x = normal(2, 3, 8, 8).clamp(-1, 1)
    found = source.features(x, [2, 0])
    expected = small_aim().encoder.extract_features(normalize(x), [2, 0])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_hidden_states_of_a_var_are_those_of_its_training_pass(pipeline: Path) -> None:
    """What the head makes of the last block's output are the logits of teacher forcing under the null class."""
    source = load_features(str(pipeline))
    assert (source.image_size, source.patches, source.depth, source.width, source.heads) == (8, 21, 2, 32, 4)
    model, vqvae = small_var(), small_vqvae()
    x = normal(3, 3, 8, 8).clamp(-1, 1)
    first, last = source.features(x, [0, 1])
    null = torch.full((3,), model.config.num_classes)
    inputs = vqvae.quantizer.teacher_forcing_input(vqvae.encode(x))
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    logits = model(null, inputs)
    assert torch.equal(first, outputs[0])
    assert torch.equal(last, outputs[1])
    assert torch.equal(model._logits(last, model.condition(null)), logits)
    assert not torch.equal(logits, model(torch.zeros_like(null), inputs))
    outputs.clear()
    assert torch.equal(hidden_states(model, null, inputs, [0])[0], first)
    assert len(outputs) == 1  # the second block is not run


def test_pixels_are_the_patches() -> None:
    source = load_features("pixels", EncoderConfig(**SIZES))
    assert (source.patches, source.depth, source.width, source.networks) == (4, 1, 48, {})
    x = normal(2, 3, 8, 8)
    (found,) = source.features(x, [0])
    expected = normalize(x)[:, :, 4:, :4].permute(0, 2, 3, 1).flatten(1)  # the patch at the bottom left
    assert torch.equal(found[:, 2], expected)
    with refused("layers [1] must be different blocks in 0..0"):
        source.features(x, [1])


@pytest.mark.parametrize("kind", ["encoder", "pipeline", "pixels"])
def test_features_of_images_of_another_size_or_kind(kind: str, request: pytest.FixtureRequest) -> None:
    source = (
        load_features("pixels", EncoderConfig(**SIZES))
        if kind == "pixels"
        else load_features(str(request.getfixturevalue(kind)))
    )
    for side in (10, 16):  # one that patches do not divide, one that they do
        with refused(f"(2, 3, {side}, {side})", "(B, 3, 8, 8)"):
            source.features(normal(2, 3, side, side), [0])
    with refused("torch.uint8"):
        source.features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0])
    with refused("layers='last' must be a list"):
        source.features(normal(2, 3, 8, 8), "last")


def test_untrained_weights_are_those_that_pretraining_begins_with(tmp_path: Path, images: Path) -> None:
    pretraining = {
        "stage": "aim",
        "batch_size": 4,
        "steps": 1,
        "seed": 5,
        "model": SIZES,
        "head": {"depth": 1, "width": 8},
        "optimizer": {"lr": 1e-3},
        "data": {"source": str(images)},
    }
    recipe = load_recipe(write_recipe(tmp_path / "aim.yaml", pretraining))
    assert isinstance(recipe, AIMRecipe)
    begun = build_stage(recipe).phases[0].model.get_submodule("encoder")
    ours = probe_stage(probe_recipe(tmp_path / "probe", images, "untrained", sizes=SIZES, seed=5)).source
    other = probe_stage(probe_recipe(tmp_path / "other", images, "untrained", sizes=SIZES, seed=6)).source
    assert_same(ours.networks["encoder"].state_dict(), begun.state_dict())
    assert not torch.equal(other.networks["encoder"].get_parameter("patchify.weight"), begun.patchify.weight)


# --- a step


@pytest.mark.parametrize("kind", ["encoder", "pipeline"])
def test_gradients_reach_all_probes_and_nothing_else(
    tmp_path: Path, images: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    stage = probe_stage(probe_recipe(tmp_path / "r", images, request.getfixturevalue(kind), probed=1))
    losses(stage, read(stage)).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in probes(stage).parameters())
    for network in stage.frozen.values():
        assert not network.training
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_the_loss_is_the_sum_over_candidates_and_what_is_shown_their_means(
    tmp_path: Path, images: Path, encoder: Path
) -> None:
    stage = probe_stage(probe_recipe(tmp_path / "r", images, encoder))
    assert stage.names == ["0-1", "1-2"]
    batch = read(stage)
    found = losses(stage, batch)
    features = stage.source.features(batch.content, [0, 1, 2])
    expected = []
    for name, pair in (("0-1", features[:2]), ("1-2", features[1:])):
        logits = probes(stage).probes[name]((pair[0] + pair[1]) / 2)
        expected.append(F.cross_entropy(logits, batch.labels).item())
        assert found.logs[f"loss/{name}"].item() == pytest.approx(expected[-1], rel=1e-5)
        assert found.logs[f"top1/{name}"] == (logits.argmax(dim=1) == batch.labels).float().mean()
    assert found.total.item() == pytest.approx(sum(expected), rel=1e-5)
    assert found.logs["loss"].item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_features_are_computed_once_for_all_candidates(
    tmp_path: Path, images: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = probe_stage(probe_recipe(tmp_path / "r", images, encoder, probed=1))
    calls: list[list[int]] = []
    extract = Encoder.extract_features
    monkeypatch.setattr(
        Encoder, "extract_features", lambda self, x, layers: calls.append(layers) or extract(self, x, layers)
    )
    losses(stage, read(stage))
    assert calls == [[0, 1, 2]]


def test_an_encoder_is_the_same_bit_for_bit_after_training(tmp_path: Path, images: Path, encoder: Path) -> None:
    before = load_encoder(encoder).state_dict()
    recipe = probe_recipe(tmp_path / "r", images, encoder)
    train(recipe)
    assert_same(load_encoder(encoder).state_dict(), before)
    assert_same(load_encoder(recipe.output / "model").state_dict(), before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_candidate_learns_the_same_alone_as_among_others(
    tmp_path: Path, images: Path, encoder: Path, accumulate: int
) -> None:
    common: dict[str, Any] = {"accumulate": accumulate, "data": {"crop": "resized", "flip": True}}
    runs = {}
    for name, layers in (("all", "best"), ("alone", [1, 2])):
        recipe = probe_recipe(tmp_path / name, images, encoder, probe_layers=layers, **common)
        trained = Trainer(recipe, build_accelerator(recipe))
        model = trained.stage.phases[0].model
        assert isinstance(model, Probes)
        begun = deepcopy(model.probes["1-2"].state_dict())
        for step in range(3):
            indices = [range(step, step + 4)[i::accumulate] for i in range(accumulate)]
            data = trained.stage.train_data
            trained.take_step([collate([data[0, i] for i in part], data.empty) for part in indices])
        runs[name] = model.probes["1-2"].state_dict()
        assert not torch.equal(runs[name]["value.weight"], begun["value.weight"])
    assert_same(runs["all"], runs["alone"])


def test_statistics_of_the_norms_become_the_mean_over_processes(tmp_path: Path, images: Path, encoder: Path) -> None:
    stage = probe_stage(probe_recipe(tmp_path / "r", images, encoder))
    norms = [probe.norm for probe in probes(stage).probes.values()]
    for i, norm in enumerate(norms):
        norm.running_mean.fill_(float(i))
        norm.running_var.fill_(3.0 + i)
        norm.num_batches_tracked.fill_(9)
    other = 10.0  # what another process has more
    stage.after_step(
        StepRNG(0, 0, 4, range(4), torch.device("cpu")),
        [],
        lambda value: value + (value if value.ndim == 0 else value + other),
    )
    for i, norm in enumerate(norms):
        assert torch.equal(norm.running_mean, torch.full((16,), i + other / 2))
        assert torch.equal(norm.running_var, torch.full((16,), 3.0 + i + other / 2))
        assert norm.num_batches_tracked == 9


def test_the_query_is_not_decayed(tmp_path: Path, images: Path, encoder: Path) -> None:
    recipe = probe_recipe(
        tmp_path / "r", images, encoder, optimizer={"lr": 0.5, "weight_decay": 0.5}, schedule={"warmup": 0}
    )
    trained = Trainer(recipe, build_accelerator(recipe))
    groups = trained.runners[0].optimizer.param_groups
    queries = {id(p) for name, p in trained.stage.phases[0].model.named_parameters() if name.endswith("query")}
    assert len(queries) == 2
    assert queries == {id(p) for group in groups for p in group["params"] if not group["decays"]}


def test_gradients_are_not_clipped_unless_asked_for(tmp_path: Path, images: Path, encoder: Path) -> None:
    assert probe_recipe(tmp_path / "r", images, encoder).optimizer.grad_clip is None
    assert probe_recipe(tmp_path / "s", images, encoder, optimizer={"grad_clip": 1.5}).optimizer.grad_clip == 1.5


def test_half_precision_and_an_empty_batch(tmp_path: Path, images: Path, encoder: Path) -> None:
    stage = probe_stage(probe_recipe(tmp_path / "r", images, encoder))
    exact = losses(stage, read(stage)).total
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(stage, read(stage)).total
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)
    nothing = stage.validate(probes(stage).eval(), collate([], stage.validation_data.empty))
    assert {tuple(value.shape) for value in nothing.values()} == {(0,)}


# --- what is told and exported


class Telling(FeatureSource):
    """Three blocks whose outputs are noise; some of them tell the class: pictures of class 1 are greener than red."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__({}, image_size=8, patches=4, depth=3, width=8, heads=2)
        self.layers = layers

    def _outputs(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        red, green, _ = images.mean(dim=(2, 3)).unbind(dim=1)
        signs = torch.where(green > red, 1.0, -1.0)[:, None, None] * torch.tensor([1.0, -1.0]).repeat(4)
        noise = [normal(len(images), self.patches, self.width, seed=layer) for layer in layers]
        return [x + 9 * signs if layer in self.layers else x for layer, x in zip(layers, noise, strict=True)]


def told(folder: Path) -> Any:
    return json.loads((folder / SCORES).read_text())


@pytest.mark.parametrize(
    ("telling", "best"), [([0], 0), ([1], 1), ([0, 1, 2], 2)], ids=["the first", "the second", "all: the later one"]
)
def test_the_candidate_that_tells_the_classes_is_exported(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, telling: list[int], best: int
) -> None:
    source: FeatureSource = Telling(telling)
    monkeypatch.setattr("var.features.sources.load_features", lambda model, sizes: source)
    recipe = probe_recipe(tmp_path / "r", images, "made up", probed=1, steps=30)
    train(recipe)
    for name in ("model", "best"):
        found = told(recipe.output / name)
        assert (found["images"], found["best"]) == (6, [best])
        assert [entry["layers"] for entry in found["probes"]] == [[0], [1], [2]]
        assert [entry["top1"] == 1 for entry in found["probes"]] == [layer in telling for layer in range(3)]
        assert [entry["top5"] for entry in found["probes"]] == [1, 1, 1]  # of two classes
        assert load_probe(recipe.output / name).config.layers == (best,)


def test_validation_tells_each_candidate_of_each_image(tmp_path: Path, images: Path, encoder: Path) -> None:
    stage = probe_stage(probe_recipe(tmp_path / "r", images, encoder, num_classes=7))
    batch = read(stage, "val", 3)._replace(labels=torch.tensor([0, 1, 6]))
    logits = torch.zeros(2, 3, 7)
    logits[0] = torch.tensor([[7, 6, 5, 4, 3, 2, 1], [7, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 7]])
    logits[1] = torch.tensor([[3, 7, 6, 5, 4, 2, 1], [2, 1, 3, 4, 5, 6, 7], [7, 6, 5, 4, 2, 1, 3]])
    seen: list[Sequence[Tensor]] = []

    def model(features: Sequence[Tensor]) -> Tensor:
        seen.append(features)
        return logits

    found = stage.validate(model, batch)  # type: ignore[arg-type]  # called like a module
    assert found["top1/0-1"].tolist() == [1, 0, 1]
    assert found["top5/0-1"].tolist() == [1, 0, 1]
    assert found["top1/1-2"].tolist() == [0, 0, 0]
    assert found["top5/1-2"].tolist() == [1, 0, 1]
    assert found["error"].tolist() == [0.5, 1, 0.5]
    assert found["loss/1-2"].tolist() == pytest.approx(F.cross_entropy(logits[1], batch.labels, reduction="none"))
    assert torch.equal(found["loss"], (found["loss/0-1"] + found["loss/1-2"]) / 2)
    assert [tuple(x.shape) for x in seen[0]] == [(3, 4, 16)] * 2
    assert stage.best == "error"


def test_what_is_exported_of_an_encoder_is_an_aim(tmp_path: Path, images: Path, encoder: Path) -> None:
    recipe = probe_recipe(tmp_path / "r", images, encoder, validate_every=3)
    trained = Trainer(recipe, build_accelerator(recipe))
    stage = trained.stage
    assert isinstance(stage, ProbeStage)
    trained.take_step([read(stage)])
    folder = trained.export("model")
    found = told(folder)
    first = found["best"][0]
    model = AIM.from_pretrained(folder, device="cpu", dtype="float32")
    expected = AIMConfig(**SIZES, probe_layers=(first, first + 1), num_classes=2)
    assert model.config == expected
    assert json.loads((folder / CONFIG).read_text())["classes"] == {"0": "bar", "1": "cup"}
    batch = read(stage, "val", 6)
    logits = probes(stage).eval()(stage._features(batch.content))[first]
    assert torch.equal(model(normalize(batch.content)).logits, logits)
    right = (logits.argmax(dim=1) == batch.labels).float().mean().item()
    assert found["probes"][first]["top1"] == pytest.approx(right)
    assert right == pytest.approx(max(entry["top1"] for entry in found["probes"]))
    trained.export("model")  # again, over what is there
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, SCORES]
    (folder / "notes.txt").write_text("mine")
    trained.export("model")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, "notes.txt", SCORES]


@both_backends
def test_an_aim_that_was_trained_runs_in_the_other_frameworks(
    tmp_path: Path, images: Path, encoder: Path, backend: str
) -> None:
    recipe = probe_recipe(tmp_path / "r", images, encoder)
    trained = Trainer(recipe, build_accelerator(recipe))
    assert isinstance(trained.stage, ProbeStage)
    batch = read(trained.stage)
    trained.take_step([batch])
    folder = trained.export("model")
    arrays_of(backend)
    found = run_in(backend, load_pretrained(folder, backend=backend), normalize(batch.content))  # type: ignore[call-overload]
    with torch.no_grad():
        expected = AIM.from_pretrained(folder, device="cpu", dtype="float32")(normalize(batch.content))
    for ours, theirs in zip(expected, found, strict=True):
        assert largest_difference(ours, from_array(backend, theirs)) < 1e-4


@pytest.mark.parametrize("model", ["pipeline", "pixels"])
def test_what_is_exported_of_other_features_is_the_probe_alone(
    tmp_path: Path, images: Path, model: str, request: pytest.FixtureRequest
) -> None:
    sizes = {"sizes": SIZES} if model == "pixels" else {}
    given = model if model == "pixels" else request.getfixturevalue(model)
    recipe = probe_recipe(tmp_path / "r", images, given, probe_layers="last", heads=4, **sizes)
    train(recipe)
    probe = load_probe(recipe.output / "model")
    layers = [0] if model == "pixels" else [0, 1]
    assert (probe.config.layers, probe.config.heads, probe.config.num_classes) == (tuple(layers), 4, 2)
    entries = json.loads((recipe.output / "model" / CONFIG).read_text())
    assert entries["features_of"]["model"] == str(given)
    assert (entries["features_of"]["sizes"] is None) == (model == "pipeline")
    data = open_dataset(recipe.data, "validation", 8, 0)
    right = 0
    source = load_features(recipe.model, recipe.sizes)
    classify = load_classifier(recipe.output / "model", device="cpu", dtype="float32")
    for index in range(len(data)):
        batch = collate([data[0, index]], data.empty)
        features = torch.stack(source.features(batch.content, layers)).mean(dim=0)
        right += int(probe(features).argmax(dim=1).item() == batch.labels.item())
        output = classify(batch.content)
        assert torch.equal(output.features, features)
        assert torch.equal(output.logits, probe(features))
    assert told(recipe.output / "model")["probes"] == [{"layers": layers, "top1": right / 6, "top5": 1}]


def test_a_classifier_is_of_what_its_probe_reads(tmp_path: Path, pipeline: Path) -> None:
    folder = tmp_path / "probe"
    probe = Probe(ProbeConfig(width=32, heads=4, num_classes=3, layers=(1,)))
    save_model(folder, probe, {"features_of": {"model": str(pipeline), "sizes": None}})
    x = normal(2, 3, 8, 8).clamp(-1, 1)
    classify = load_classifier(str(folder), device="cpu", dtype="float32")
    (expected,) = load_features(str(pipeline)).features(x, [1])
    assert torch.equal(classify(x).logits, probe.eval()(expected))
    assert not classify(x).logits.requires_grad
    half = load_classifier(folder, device="cpu", dtype="bfloat16")
    assert half.source.dtype == torch.bfloat16
    assert half(x).logits.dtype == torch.float32
    assert float((half(x).features - expected).abs().max()) < 0.05 * float(expected.abs().max())
    # The folder of the probe stands for what it reads, and the layers that it reads are the best ones.
    assert isinstance(load_features(str(folder)), VARFeatures)
    assert load_features(str(folder)).choose(None) == (1,)
    moved = pipeline.rename(tmp_path / "moved")
    with refused(f"{str(pipeline)!r} is neither a folder nor a known name"):
        load_classifier(folder)
    assert torch.equal(load_classifier(folder, str(moved), "cpu", "float32")(x).logits, classify(x).logits)
    moved.rename(pipeline)
    for given, parts in (
        (x.byte(), ("torch.uint8", "resize_and_center_crop")),
        (x.numpy(), ("ndarray",)),
        (normal(2, 3, 9, 9), ("(2, 3, 9, 9)", "(B, 3, 8, 8)")),
    ):
        with refused(*parts):
            classify(given)


def test_folders_that_are_no_classifiers(tmp_path: Path, encoder: Path, pipeline: Path) -> None:
    with refused("holds a 'Encoder', a 'Probe' is needed"):
        load_classifier(encoder)
    probe = Probe(ProbeConfig(width=32, heads=4, num_classes=3, layers=(2,)))
    save_model(tmp_path / "deep", probe, {"features_of": {"model": str(pipeline), "sizes": None}})
    with refused("reads layers [2] of width 32", "has 2 of width 32"):
        load_classifier(tmp_path / "deep")
    for i, told in enumerate(({}, {"features_of": {}}, {"features_of": {"model": "pixels", "sizes": {"side": 8}}})):
        save_model(tmp_path / str(i), probe, told)
        with refused("does not say what its probe reads"):
            load_classifier(tmp_path / str(i))
    with refused("holds a probe on other features", "load_classifier"):
        AIM.from_pretrained(tmp_path / "deep")


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, images: Path, encoder: Path) -> None:
    common: dict[str, Any] = {
        "checkpoint_every": 3,
        "validate_every": 2,
        "keep_last": 9,
        "ema": 0.5,
        "data": {"crop": "resized"},
    }
    recipe = probe_recipe(tmp_path / "r", images, encoder, **common)
    train(recipe)
    lines, state, scores = metrics(recipe.output), probe_state(recipe.output / "model"), told(recipe.output / "model")
    lost = [path for path in (recipe.output / "checkpoints").iterdir() if path.name > "step-00000003.pt"]
    assert lost
    for path in lost:
        path.unlink()
    train(recipe)
    assert metrics(recipe.output) == lines
    assert_same(probe_state(recipe.output / "model"), state)
    assert told(recipe.output / "model") == scores


def test_a_run_learns_and_shows_every_candidate(tmp_path: Path, images: Path, encoder: Path) -> None:
    recipe = probe_recipe(tmp_path / "r", images, encoder, steps=40, batch_size=8, data={"crop": "center"})
    train(recipe)
    lines = metrics(recipe.output, "train")
    assert {"loss", "loss/0-1", "loss/1-2", "top1/0-1", "top1/1-2", "gradient_norm", "lr"} <= lines[0].keys()
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert lines[-1]["top1/0-1"] == lines[-1]["top1/1-2"] == 1
    (validation,) = metrics(recipe.output, "validation")
    found = told(recipe.output / "model")["probes"]
    for entry, name in zip(found, ("0-1", "1-2"), strict=True):
        assert (validation[f"top1/{name}"], validation[f"top5/{name}"]) == pytest.approx((entry["top1"], entry["top5"]))
    assert validation["error"] == pytest.approx(1 - sum(entry["top1"] for entry in found) / 2)


def test_frames_tell_right_from_wrong(tmp_path: Path, images: Path, encoder: Path) -> None:
    x = normal(2, 3, 8, 8).clamp(-1, 1)
    sheet = add_frame(x, torch.tensor([True, False]))
    assert sheet.shape == (2, 3, 10, 10)
    assert torch.equal(sheet[:, :, 1:-1, 1:-1], x)
    corners = sheet[:, :, 0, -1]
    assert corners[0].argmax() == 1
    assert corners[1].argmax() == 0
    stage = probe_stage(probe_recipe(tmp_path / "r", images, encoder))
    drawn = stage.preview(probes(stage).eval(), read(stage, "val", 3))
    assert drawn.size == (3 * 12 - 2, 2 * 12 - 2)


def folder_of_labels(folder: Path, train: Mapping[int, int], validation: Sequence[int]) -> Path:
    """Class folders that are labels: so many training images of each, two validation images of some."""
    for split, counts in (("train", train), ("val", dict.fromkeys(validation, 2))):
        for label, count in counts.items():
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(count):
                picture(list(train).index(label) % 2, index).save(folder / split / str(label) / f"{index}.png")
    return folder


def test_a_probe_of_the_classes_present_has_an_output_for_each(tmp_path: Path, encoder: Path) -> None:
    """Labels 3, 40 and 978 among ImageNet's thousand: the same probe as of folders that are 0, 1 and 2."""
    sparse = folder_of_labels(tmp_path / "sparse", {3: 4, 40: 2, 978: 3}, [3, 978])
    dense = folder_of_labels(tmp_path / "dense", {0: 4, 1: 2, 2: 3}, [0, 2])
    (sparse / "classes.json").write_text(json.dumps({"3": {"name": "shark"}, "40": {"name": "chameleon"}}))
    recipe = probe_recipe(tmp_path / "s", sparse, encoder, num_classes="present")
    assert trained(estimate(recipe)) == {"probes": 2 * (2 * 16**2 + 4 * 16)}
    stage = probe_stage(recipe)
    assert stage.num_classes == 3
    assert {*stage.train_data.class_names.items()} == {(0, "shark"), (1, "chameleon"), (2, "978")}
    for given in (recipe, probe_recipe(tmp_path / "d", dense, encoder)):
        train(given)
    assert_same(probe_state(tmp_path / "s" / "model"), probe_state(tmp_path / "d" / "model"))
    assert told(tmp_path / "s" / "model") == told(tmp_path / "d" / "model")
    entries = json.loads((tmp_path / "s" / "model" / CONFIG).read_text())
    assert (entries["config"]["num_classes"], entries["classes"]) == (3, {"0": "shark", "1": "chameleon", "2": "978"})
    assert probe_stage(probe_recipe(tmp_path / "all", sparse, encoder)).num_classes == 979
    with refused("do not go with this data", "label 0"):
        train(probe_recipe(tmp_path / "s", sparse, encoder))


def test_classes_present_that_cannot_be_numbered(tmp_path: Path, encoder: Path) -> None:
    source = folder_of_labels(tmp_path / "images", {3: 1, 40: 1}, [3, 40])
    only = probe_recipe(tmp_path / "r", source, encoder, num_classes="present", data={"classes": [3]})
    with refused("the training images have no labels, or a single class"):
        probe_stage(only)
    recipe = probe_recipe(tmp_path / "r", source, encoder, num_classes="present")
    images = [open_dataset(recipe.data, split, 8, 0) for split in ("train", "validation")]
    images[0].labels = np.array([3, 3])
    with refused("has validation images of labels [40], but no training images"):
        number_present_classes(*images)
    images[0].labels = None
    with refused("cannot be numbered, for their labels are inside shards"):
        number_present_classes(*images)


# --- what a dry run tells


@pytest.mark.parametrize("model", ["encoder", "pipeline", "untrained", "pixels", "not there"])
def test_a_dry_run_plans_it(tmp_path: Path, images: Path, model: str, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(model) if model in ("encoder", "pipeline") else model
    recipe = probe_recipe(tmp_path / "r", images, given, **({} if model == "pipeline" else {"sizes": SIZES}))
    found = estimate(recipe)
    width, runs = {"pipeline": (32, 1), "pixels": (48, 1)}.get(model, (16, 2))
    assert trained(found) == {"probes": runs * (2 * width**2 + 3 * width)}  # two products, the query, two classes
    kinds = {"pipeline": {"transformer", "tokenizer"}, "pixels": set()}
    assert frozen(found).keys() == kinds.get(model, {"encoder"})
    assert found.steps == 6
    assert ("does not exist: assumed an encoder of the recipe's sizes" in " ".join(found.notes)) == (
        model == "not there"
    )


def test_a_dry_run_downloads_nothing(tmp_path: Path, images: Path) -> None:
    found = estimate(probe_recipe(tmp_path / "a", images, "aim-600M", probe_layers=[0], num_classes=1000))
    assert trained(found) == {"probes": 2 * 1536**2 + 1001 * 1536}
    assert frozen(found)["encoder"] == pytest.approx(680e6, rel=0.01)
    found = estimate(probe_recipe(tmp_path / "v", images, "var-d16", probe_layers=[0], num_classes=1000))
    assert frozen(found) == {"transformer": pytest.approx(310e6, rel=0.01), "tokenizer": pytest.approx(109e6, rel=0.01)}
    assert found.tokens == BATCH * 680


def trained(found: Estimate) -> dict[str, int]:
    return {network.name: network.parameters for network in found.networks if network.trained}


def frozen(found: Estimate) -> dict[str, int]:
    return {network.name: network.parameters for network in found.networks if not network.trained}


def test_a_dry_run_counts_the_products(tmp_path: Path, images: Path) -> None:
    """Features have no gradient: a probe's products are done again for its weights alone."""
    found = estimate(probe_recipe(tmp_path / "r", images, "pixels", sizes=SIZES))
    width, tokens, classes = 48, BATCH * 4, 2
    products = 2 * (2 * tokens * width**2) + 2 * (2 * BATCH * classes * width)
    (part,) = found.passes
    assert part.flops == pytest.approx(2 * products, rel=0.05)  # attention of one query comes on top


# --- what is refused


def test_recipes_that_cannot_work(tmp_path: Path, images: Path) -> None:
    for layers in ("first", 5, [1, "2"], [1.5], True):
        with refused("probe_layers: ", "must be best, last, or a list of blocks such as [3, 4, 5]"):
            probe_recipe(tmp_path / "r", images, "somewhere", probe_layers=layers)
    for word in ("untrained", "pixels"):
        with refused(f"sizes is missing: model={word} needs sizes.image_size"):
            probe_recipe(tmp_path / "r", images, word)
    with refused("sizes.width=10 must be a multiple of heads=3"):
        probe_recipe(tmp_path / "r", images, "untrained", sizes={"width": 10, "heads": 3})
    for number in (1, 3.0, True, "absent"):
        with refused(f"num_classes={number!r} must be present, or a whole number in 2.."):
            probe_recipe(tmp_path / "r", images, "somewhere", num_classes=number)


def test_probe_layers_are_given_on_the_command_line(tmp_path: Path, images: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", BASE | {"data": {"source": str(images)}, "model": "somewhere"})
    for override, expected in (("last", "last"), ("best", "best"), ("[3,4,5]", (3, 4, 5))):
        recipe = load_recipe(path, [f"probe_layers={override}"])
        assert isinstance(recipe, ProbeRecipe)
        assert recipe.probe_layers == expected


def test_sizes_by_name(tmp_path: Path, images: Path) -> None:
    """Beside the name of a model, which stays one."""
    path = write_recipe(tmp_path / "r.yaml", BASE | {"data": {"source": str(images)}, "model": "aim-600M"})
    tiny = AIM_SIZES["aim-tiny"]
    for overrides, expected in (
        (["sizes=aim-tiny"], tiny),
        (["sizes=aim-tiny", "sizes.image_size=28"], replace(tiny, image_size=28)),
        ([], None),
    ):
        recipe = load_recipe(path, overrides)
        assert isinstance(recipe, ProbeRecipe)
        assert (recipe.model, recipe.sizes) == ("aim-600M", expected)
    recipe = load_recipe(path, ["model=untrained", "sizes=aim-tiny", "sizes.image_size=28"])
    assert frozen(estimate(recipe))["encoder"] == pytest.approx(2.8e6, rel=0.02)
    with refused("sizes.preset='aim-9' is unknown"):
        load_recipe(path, ["sizes=aim-9"])


def test_layers_that_there_are_not(tmp_path: Path, images: Path, encoder: Path) -> None:
    with refused("layers [1, 3] must be different blocks in 0..2"):
        build_stage(probe_recipe(tmp_path / "r", images, encoder, probe_layers=[1, 3]))


def test_folders_and_names_that_are_no_model(tmp_path: Path, images: Path) -> None:
    with refused("model 'nowhere' is neither a folder nor a known name", "aim-600M", "var-mini", "untrained"):
        load_features("nowhere")
    with refused("has no config.json: a model folder holds"):
        load_features(str(images))
    save_model(tmp_path / "vqvae", small_vqvae())
    with refused("holds a 'VQVAE'"):
        load_features(str(tmp_path / "vqvae"))
    (tmp_path / "half" / "transformer").mkdir(parents=True)
    with refused("half has no folder tokenizer"):
        load_features(str(tmp_path / "half"))


def test_sizes_are_a_check_on_an_encoder(encoder: Path, pipeline: Path) -> None:
    with refused(f"model='{encoder}' has depth=3, not sizes.depth=2: correct it, or set sizes=null"):
        load_features(str(encoder), EncoderConfig(**(SIZES | {"depth": 2})))
    with refused("sizes are an encoder's", "set sizes=null"):
        load_features(str(pipeline), EncoderConfig(**SIZES))


def test_data_without_labels(tmp_path: Path, encoder: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        picture(0, 1).save(tmp_path / "flat" / split / "a.png")
    for column in ("label", None):
        recipe = probe_recipe(
            tmp_path / "r", tmp_path / "flat", encoder, data={"source": str(tmp_path / "flat"), "label_column": column}
        )
        with refused("the training images have no labels, or a single class, and a probe is a classifier"):
            build_stage(recipe)
    recipe = probe_recipe(tmp_path / "r", tmp_path / "flat", encoder, num_classes=5)
    with refused("the training images have no labels"):
        build_stage(recipe)


def test_more_classes_than_the_probe_has_room_for(tmp_path: Path, encoder: Path) -> None:
    source = tmp_path / "images"
    for split in ("train", "val"):
        for label in range(3):
            (source / split / str(label)).mkdir(parents=True)
            picture(label, 0).save(source / split / str(label) / "a.png")
    recipe = probe_recipe(tmp_path / "r", source, encoder, num_classes=2)
    with refused("the data has label 2, num_classes=2 allows 0..1: set num_classes to at least 3, or to null"):
        build_stage(recipe)
    stage = probe_stage(probe_recipe(tmp_path / "r", source, encoder, num_classes=3))
    batch = read(stage, count=3)._replace(labels=torch.tensor([0, 3, 1]))
    stage.train_data.labels = None  # type: ignore[misc]  # as those of shards, which only reading tells
    for model in (probes(stage), probes(stage).eval()):
        with refused("the data has label 3, num_classes=3 allows 0..2"):
            stage.validate(model, batch)


def test_heads_that_do_not_fit(tmp_path: Path, images: Path, encoder: Path, pipeline: Path) -> None:
    with refused("heads=4 must be the encoder's, 2: leave heads out"):
        build_stage(probe_recipe(tmp_path / "r", images, encoder, heads=4))
    with refused("heads=5 must divide the width of the features, 32"):
        build_stage(probe_recipe(tmp_path / "r", images, pipeline, heads=5))
    sizes = {"image_size": 8, "patch_size": 2, "width": 20, "depth": 1, "heads": 5}
    with refused("heads=5 must divide the width of the features, 12: give heads"):
        build_stage(probe_recipe(tmp_path / "r", images, "pixels", sizes=sizes))


def test_a_checkpoint_of_other_layers_or_sizes(tmp_path: Path, images: Path) -> None:
    common: dict[str, Any] = {"model": "untrained", "source": images, "sizes": SIZES, "steps": 1}
    train(probe_recipe(tmp_path / "r", **common))
    with refused("belong to another recipe, with probe_layers=best, not last"):
        train(probe_recipe(tmp_path / "r", **common, probe_layers="last"))
    with refused("belong to another recipe, with sizes="):
        train(probe_recipe(tmp_path / "r", **(common | {"sizes": SIZES | {"patch_size": 2}})))
