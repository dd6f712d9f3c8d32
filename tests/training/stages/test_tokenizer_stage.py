"""Stage 1's losses: whom each term's gradient reaches, the discriminator's turns, and care for the codebook."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import largest_difference, normal, randomize
from tiny import image_folder, tokenizer_recipe
from torch import Tensor, nn

from tokenizer.augment import NOISE, augment
from tokenizer.discriminators import SpectralConv2d
from tokenizer.quantizer import resize_down
from tokenizer.vqvae import VQVAE
from var.data.dataset import Batch, open_dataset
from var.hub.checkpoint import load_tokenizer
from var.networks import backbones, perceptual
from var.networks.frozen import Frozen
from var.training.adversary import Adversary, Carry
from var.training.codebook import CodebookHealth
from var.training.rng import StepRNG
from var.training.stages.base import Losses, require
from var.training.stages.tokenizer import TokenizerStage, frozen_networks
from var.utils.images import image_grid, to_pil

BATCH, STEPS, BEGINS = 6, 20, 5  # the discriminator has a turn from step 5 on
ALL = range(BATCH)
PATCHES = {
    "discriminator": "patchgan",
    "width": 8,
    "layers": 1,
    "start": BEGINS / STEPS,
    "ramp": 0.2,
    "spectral_norm": True,
}
FEATURES = {
    "discriminator": "features",
    "network": "vgg16",
    "start": BEGINS / STEPS,
    "ramp": 0.2,
    "spectral_norm": True,
}
PERCEPTUAL = {"network": "vgg16", "weight": 0.7}


class SmallDistance(Frozen):
    """In place of a perceptual network, which would need larger images."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3))
        randomize(self, seed=3)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return (self.network(reconstruction) - self.network(images)).square().mean(dim=(1, 2, 3))


class SmallBackbone(Frozen):
    """In place of a frozen feature network."""

    channels = (8, 8)

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)]))
        randomize(self, seed=4)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = F.gelu(self.network[0](images))
        return [first, self.network[1](first)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


Build = Callable[..., TokenizerStage]


@pytest.fixture
def build(source: Path, tmp_path: Path) -> Build:
    """Stages with the same weights, whatever their losses; "vgg16" stands for the networks above."""

    def backbone(name: str, weights: Path | None) -> Any:
        return SmallBackbone() if name == "vgg16" else backbones.load_backbone(name, weights)

    def distance(name: str, weights: Path | None) -> nn.Module:
        return SmallDistance() if name == "vgg16" else perceptual.load_perceptual(name, weights)

    def built(**changes: Any) -> TokenizerStage:
        recipe = tokenizer_recipe(tmp_path / "run", source, batch_size=BATCH, steps=STEPS, **changes)
        data = open_dataset(recipe.data, "train", recipe.model.image_side, recipe.seed)
        torch.manual_seed(0)  # the spectral norms' first vectors
        stage = TokenizerStage(recipe, frozen_networks(recipe, backbone, distance), data, data)
        randomize(stage.vqvae, seed=1)
        if stage.adversary:
            randomize(stage.adversary.discriminator, seed=2)
        return stage

    return built


def pictures(side: int = 8) -> Tensor:
    return normal(BATCH, 3, side, side, seed=7).clamp(-1, 1)


def draws(step: int = BEGINS, indices: range = ALL) -> StepRNG:
    return StepRNG(0, step, BATCH, indices, torch.device("cpu"))


def batch(indices: range = ALL, side: int = 8) -> Batch:
    images = pictures(side)[list(indices)]
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), ["somewhere"] * len(images), [])


def first_turn(stage: TokenizerStage, step: int = BEGINS, indices: range = ALL, side: int = 8) -> Losses:
    return stage.phases[0].loss(stage.vqvae, batch(indices, side), draws(step, indices), None)


def second_turn(stage: TokenizerStage, kept: Carry, step: int = BEGINS, indices: range = ALL, side: int = 8) -> Losses:
    model = adversary(stage).discriminator
    return stage.phases[1].loss(model, batch(indices, side), draws(step, indices), kept)


def adversary(stage: TokenizerStage) -> Adversary:
    assert stage.adversary is not None
    return stage.adversary


def health(stage: TokenizerStage) -> CodebookHealth:
    return require(CodebookHealth, stage.upkeep)


def gradients(model: nn.Module, total: Tensor) -> dict[str, Tensor]:
    """Of every parameter of the model, zeros where there is none, and then forgotten."""
    total.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def untouched(*models: nn.Module | None) -> bool:
    return all(p.grad is None for model in models if model is not None for p in model.parameters())


# --- whom each term reaches

PARTS = ("encoder", "quant_conv", "quantizer.codebook", "quantizer.phi", "post_quant_conv", "decoder")
AROUND = {"encoder", "quant_conv", "post_quant_conv", "decoder"}  # the quantizer, which passes gradients by
TERMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "l2": ({"l2": 1.0}, AROUND),
    "perceptual": ({"perceptual": PERCEPTUAL}, AROUND),
    "adversarial": ({"adversarial": {**PATCHES, "ramp": 0}}, AROUND),
    "adversarial features": ({"adversarial": {**FEATURES, "ramp": 0}}, AROUND),
    "vq": ({"vq": 1.0}, {"encoder", "quant_conv", "quantizer.codebook", "quantizer.phi"}),
    "entropy": ({"entropy": 0.5}, {"encoder", "quant_conv", "quantizer.codebook"}),
}
ONLY_L1 = {"l1": 1.0, "l2": 0.0, "vq": 0.0}


def reached(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> set[str]:
    """Parts of the tokenizer where the gradients differ; of those all parameters that are trained must."""
    names = {part: [name for name in ours if name.startswith(f"{part}.")] for part in PARTS}
    assert sum(map(len, names.values())) == len(ours)
    return {part for part in PARTS if any(not torch.equal(ours[name], theirs[name]) for name in names[part])}


def test_pixels_reach_all_but_the_quantiser(build: Build) -> None:
    stage = build(loss=ONLY_L1)
    found = gradients(stage.vqvae, first_turn(stage).total)
    assert reached(found, {name: torch.zeros_like(value) for name, value in found.items()}) == AROUND
    assert all(value.any() for name, value in found.items() if not name.startswith("quantizer."))


@pytest.mark.parametrize("term", TERMS)
def test_each_term_reaches_what_it_should_and_nothing_else(build: Build, term: str) -> None:
    loss, expected = TERMS[term]
    without, with_term = build(loss=ONLY_L1), build(loss=ONLY_L1 | loss)
    step = BEGINS + 1
    before = gradients(without.vqvae, first_turn(without, step).total)
    total = first_turn(with_term, step).total
    after = gradients(with_term.vqvae, total)
    assert reached(after, before) == expected
    assert all(torch.isfinite(value).all() for value in after.values())
    assert untouched(with_term.perceptual)
    if with_term.adversary:
        assert untouched(with_term.adversary.discriminator, with_term.adversary.sees)


def test_the_two_parts_of_the_vq_loss(build: Build) -> None:
    """Commitment, weighted by beta, pulls the encoder; the other pulls codebook and phi, whatever beta."""
    none, quarter, half = (
        build(loss={"l1": 1, "l2": 0, "vq": vq}, model={"beta": beta}) for vq, beta in ((0, 0.25), (1, 0.25), (1, 0.5))
    )
    of_none, of_quarter, of_half = (gradients(stage.vqvae, first_turn(stage).total) for stage in (none, quarter, half))
    for name, value in of_quarter.items():
        if name.startswith(("encoder.", "quant_conv.")):
            pull = value - of_none[name]
            torch.testing.assert_close(of_half[name] - of_none[name], 2 * pull, rtol=1e-2, atol=1e-5)
        else:
            assert torch.equal(value, of_half[name])
    used = first_turn(quarter).carry.tokens.unique()
    touched = of_quarter["quantizer.codebook.weight"].abs().sum(dim=1).nonzero().flatten()
    assert torch.equal(touched, used)
    zero = build(loss={"l1": 1, "l2": 0, "vq": 1}, model={"beta": 0.0})
    of_zero = gradients(zero.vqvae, first_turn(zero).total)
    assert reached(of_zero, of_none) == {"quantizer.codebook", "quantizer.phi"}


@pytest.mark.parametrize("kind", [PATCHES, FEATURES, {**PATCHES, "spectral_norm": False}, {**PATCHES, "r1": 0.1}])
def test_the_discriminators_turn_reaches_the_discriminator_alone(build: Build, kind: dict[str, Any]) -> None:
    stage = build(loss={"perceptual": PERCEPTUAL, "adversarial": {**kind, "r1_every": 1}})
    kept = first_turn(stage).carry
    given = batch()
    total = stage.phases[1].loss(adversary(stage).discriminator, given, draws(), kept).total
    found = gradients(adversary(stage).discriminator, total)
    biases = [name for name in found if name.endswith("to_logits.bias")]
    assert [name for name, value in found.items() if not value.any() and name not in biases] == []
    assert untouched(stage.vqvae, stage.perceptual, adversary(stage).sees)
    assert not given.content.requires_grad
    assert not any(value.requires_grad for value in (kept.reconstruction, kept.features, kept.tokens, kept.gradients))


@pytest.mark.parametrize("kind", [PATCHES, FEATURES])
def test_a_turn_changes_no_weights_or_buffers(build: Build, kind: dict[str, Any]) -> None:
    stage = build(loss={"adversarial": {**kind, "r1": 0.1, "r1_every": 1}})
    models = (stage.vqvae, adversary(stage).discriminator)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    second_turn(stage, first_turn(stage).carry).total.backward()
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# --- what the numbers are


def test_total_is_the_weighted_sum(build: Build) -> None:
    weights = {"l1": 0.3, "l2": 0.9, "vq": 0.8, "entropy": 0.2}
    stage = build(loss={**weights, "perceptual": PERCEPTUAL})
    losses = first_turn(stage)
    logs, images = losses.logs, pictures()
    output = stage.vqvae(images)
    difference = output.reconstruction - images
    expected = {
        "l1": difference.abs().mean(),
        "l2": difference.square().mean(),
        "vq": output.regularization,
        "entropy": stage.vqvae.quantizer.entropy_loss(output.features),
        "perceptual": SmallDistance()(output.reconstruction, images).mean(),
    }
    assert all(logs[name].item() == pytest.approx(value.item(), rel=1e-5) for name, value in expected.items())
    total = torch.stack([weight * expected[name] for name, weight in (weights | {"perceptual": 0.7}).items()]).sum()
    assert logs["loss"].item() == losses.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert logs.keys() == {"loss", "psnr", *expected}
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())


def adversarial_term(stage: TokenizerStage, reconstruction: Tensor, step: int) -> Tensor:
    """Minus the mean logit of what the discriminator sees, written out."""
    ours = adversary(stage)
    noise = draws(step).uniform("DiffAugment generator", NOISE)
    logits = ours.discriminator(ours.sees(augment(reconstruction, noise, ours.config.augment)))
    return -torch.stack([head.mean() for head in logits]).mean()


@pytest.mark.parametrize("kind", [PATCHES, FEATURES])
def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_one_step_late(build: Build, kind: dict[str, Any]) -> None:
    stage = build(loss={"l1": 0.2, "l2": 1.0, "perceptual": PERCEPTUAL, "adversarial": {**kind, "ramp": 0}})
    images, kernel = pictures(), stage.vqvae.decoder.conv_out.weight

    output = stage.vqvae(images)
    difference = output.reconstruction - images
    of_pixels = 0.2 * difference.abs().mean() + difference.square().mean()
    of_pixels = of_pixels + 0.7 * SmallDistance()(output.reconstruction, images).mean()
    term = adversarial_term(stage, output.reconstruction, BEGINS)
    norms = [torch.autograd.grad(loss, kernel, retain_graph=True)[0].norm().item() for loss in (of_pixels, term)]
    plain = (of_pixels + output.regularization).item()

    begun = first_turn(stage, BEGINS)
    assert begun.total.item() == pytest.approx(plain, rel=1e-5)  # measured, not yet used
    assert begun.logs["adversarial"].item() == pytest.approx(term.item(), rel=1e-4, abs=1e-6)
    stage.after_step(draws(BEGINS), [begun.carry], lambda value: value)
    assert adversary(stage).adaptive.item() == pytest.approx(norms[0] / norms[1], rel=1e-4)
    # The upkeep also advanced the spectral norms, so the term is another one now.
    late = adversarial_term(stage, output.reconstruction, BEGINS + 1).item()
    following = first_turn(stage, BEGINS + 1)
    assert following.total.item() == pytest.approx(plain + 0.4 * norms[0] / norms[1] * late, rel=1e-4)


def test_the_adaptive_weight_is_clamped_or_left_out(build: Build) -> None:
    for bounds, expected in (([1e-4, 2e-4], 2e-4), ([5e3, 6e3], 5e3), (None, 1.0)):
        stage = build(loss={"adversarial": {**PATCHES, "adaptive": bounds}})
        stage.after_step(draws(), [first_turn(stage).carry], lambda value: value)
        assert adversary(stage).adaptive.item() == pytest.approx(expected)


def test_the_adversarial_term_starts_late_and_rises(build: Build) -> None:
    stage = build(loss={"adversarial": {**PATCHES, "weight": 0.5}})  # rises over 4 of the 20 steps
    assert [phase.name for phase in stage.phases] == ["model", "discriminator"]
    assert [phase.start_step for phase in stage.phases] == [0, BEGINS]
    weights = [float(adversary(stage).weight(step)) for step in range(BEGINS, BEGINS + 7)]
    assert weights == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    early = first_turn(stage, BEGINS - 1)
    assert "adversarial" not in early.logs
    assert not early.carry.gradients.any()
    layers = [layer for layer in adversary(stage).discriminator.modules() if isinstance(layer, SpectralConv2d)]
    state = [layer.u.clone() for layer in layers]
    stage.after_step(draws(BEGINS - 1), [early.carry], lambda value: value)
    assert adversary(stage).adaptive == 1  # nothing was measured
    assert all(torch.equal(layer.u, u) for layer, u in zip(layers, state, strict=True))
    begun = first_turn(stage, BEGINS)
    assert begun.carry.gradients[0].any()
    assert begun.carry.gradients[1].any()
    stage.after_step(draws(BEGINS), [begun.carry], lambda value: value)
    same = [torch.equal(layer.u, u) for layer, u in zip(layers, state, strict=True)]
    assert same == [False, False, True]  # the last layer has but one direction


def test_without_an_adversary_there_is_one_turn(build: Build) -> None:
    stage = build()
    assert [phase.name for phase in stage.phases] == ["model"]
    assert stage.state_dict().keys() == {"codebook"}


@pytest.mark.parametrize("kind", [PATCHES, FEATURES])
def test_the_discriminators_losses_written_out(build: Build, kind: dict[str, Any]) -> None:
    stage = build(loss={"adversarial": {**kind, "r1": 0.3, "r1_every": 3, "augment": 0.7}})
    discriminator, sees, images = adversary(stage).discriminator, adversary(stage).sees, pictures().requires_grad_()
    for step in range(6, 10):
        kept = first_turn(stage, step).carry
        seen = [
            augment(side, draws(step).uniform(f"DiffAugment {name}", NOISE), 0.7)
            for name, side in (("real", images), ("fake", kept.reconstruction))
        ]
        real, fake = (discriminator(sees(part)) for part in seen)
        hinge = torch.stack([F.relu(1 - head).mean() for head in real]).mean()
        hinge = hinge + torch.stack([F.relu(1 + head).mean() for head in fake]).mean()
        found = second_turn(stage, kept, step)
        assert found.logs["discriminator/hinge"].item() == pytest.approx(hinge.item(), rel=1e-4)
        for name, heads in (("real", real), ("fake", fake)):
            mean = torch.stack([head.mean() for head in heads]).mean().item()
            assert found.logs[f"discriminator/{name}"].item() == pytest.approx(mean, rel=1e-3, abs=1e-5)
        assert ("discriminator/r1" in found.logs) is (step % 3 == 0)
        expected = hinge
        if step % 3 == 0:
            (gradient,) = torch.autograd.grad(sum(head.sum() for head in real), images, create_graph=True)
            r1 = gradient.square().sum(dim=(1, 2, 3)).mean()
            assert r1 > 0
            assert found.logs["discriminator/r1"].item() == pytest.approx(r1.item(), rel=1e-3)
            expected = hinge + 0.3 * 3 * r1
        assert found.total.item() == pytest.approx(expected.item(), rel=1e-4)
        ours, theirs = (gradients(discriminator, total) for total in (found.total, expected))
        assert max(largest_difference(ours[name], theirs[name]) for name in ours) < 1e-4 * max(
            value.abs().max().item() for value in theirs.values()
        )


# --- however the batch is divided


def with_everything(kind: dict[str, Any]) -> dict[str, Any]:
    """All that a sample draws numbers for, and all terms that are means over samples."""
    adversarial = {**kind, "augment": 0.8, "r1": 0.1, "r1_every": 2}
    return {"quantizer_dropout": 0.7, "loss": {"perceptual": PERCEPTUAL, "adversarial": adversarial}}


DIVISIONS = {
    "two": [range(0, BATCH, 2), range(1, BATCH, 2)],
    "three": [range(i, BATCH, 3) for i in range(3)],
    "unequal": [range(4), range(4, BATCH)],
}


@pytest.mark.parametrize("kind", [PATCHES, FEATURES])
@pytest.mark.parametrize("division", DIVISIONS)
def test_losses_and_gradients_of_a_batch_are_the_means_of_its_parts(
    build: Build, division: str, kind: dict[str, Any]
) -> None:
    stage, step = build(**with_everything(kind)), 8
    whole, whole_second = first_turn(stage, step), second_turn(stage, first_turn(stage, step).carry, step)
    means: dict[str, Any] = {}
    parts, total, second_total = [], torch.zeros(()), torch.zeros(())
    for indices in DIVISIONS[division]:
        share = len(indices) / BATCH
        part = first_turn(stage, step, indices)
        second = second_turn(stage, part.carry, step, indices)
        total, second_total = total + share * part.total, second_total + share * second.total
        for name, value in {**part.logs, **second.logs}.items():
            means[name] = means.get(name, 0) + share * value
        parts.append(part.carry)
        assert largest_difference(part.carry.reconstruction, whole.carry.reconstruction[list(indices)]) < 1e-5
        assert torch.equal(part.carry.tokens, whole.carry.tokens[list(indices)])
    expected = {**whole.logs, **whole_second.logs}
    assert means.keys() == expected.keys() >= {"discriminator/r1", "adversarial", "perceptual"}
    for name, value in expected.items():
        assert means[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    models = ((stage.vqvae, total, whole.total), (adversary(stage).discriminator, second_total, whole_second.total))
    for model, of_parts, of_whole in models:
        ours, theirs = gradients(model, of_parts), gradients(model, of_whole)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4 * (1 + value.abs().max().item()))

    other = build(**with_everything(kind))
    stage.after_step(draws(step), parts, lambda value: value)
    other.after_step(draws(step), [whole.carry], lambda value: value)
    assert adversary(stage).adaptive.item() == pytest.approx(adversary(other).adaptive.item(), rel=1e-3)
    assert torch.equal(health(stage).counts, health(other).counts)


def test_quantiser_dropout_draws_a_share_of_images_from_fewer_scales(build: Build) -> None:
    stage = build(quantizer_dropout=0.25)
    many = StepRNG(0, 3, 4000, range(4000), torch.device("cpu"))
    kept = stage._num_scales(many)
    assert kept is not None
    counts = torch.bincount(kept, minlength=4)
    assert counts[0] == 0
    assert len(counts) == 4
    assert counts[1:3].tolist() == pytest.approx([4000 * 0.25 / 3] * 2, rel=0.2)  # a dropped one may still have all
    first = first_turn(stage, 3)
    output = stage.vqvae(pictures(), stage._num_scales(draws(3)))
    assert torch.equal(first.carry.reconstruction, output.reconstruction)
    assert build()._num_scales(many) is None


# --- care for the codebook


class Processes:
    """A sum over processes that are threads here."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=30)
        self.slots: list[Tensor] = [torch.zeros(())] * world

    def reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def summed(value: Tensor) -> Tensor:
            self.slots[rank] = value.clone()
            self.barrier.wait()
            total = sum(self.slots[1:], self.slots[0].clone())
            self.barrier.wait()
            return total

        return summed


def part_of(kept: Carry, indices: range) -> Carry:
    rows = list(indices)
    return kept._replace(
        indices=indices,
        reconstruction=kept.reconstruction[rows],
        features=kept.features[rows],
        tokens=kept.tokens[rows],
    )


def spread_features(stage: TokenizerStage) -> Carry:
    """What a step leaves behind, with features far from every codeword."""
    features = normal(BATCH, 4, 4, 4, seed=11) * 2 + 3
    return first_turn(stage, 0).carry._replace(features=features, tokens=stage.vqvae.quantizer.encode(features))


def test_dead_codewords_move_to_vectors_that_the_scales_look_up(build: Build) -> None:
    stage = build(restart_dead_codes=1)
    quantizer, kept = stage.vqvae.quantizer, spread_features(stage)
    before = quantizer.codebook.weight.detach().clone()
    vectors = []
    for k, side in enumerate(quantizer.scales.sides):
        coarser = quantizer.decode(kept.tokens, num_scales=k).detach() if k else torch.zeros_like(kept.features)
        vectors.append(resize_down(kept.features - coarser, side).permute(0, 2, 3, 1).reshape(-1, 4))
    alive = kept.tokens.unique().tolist()
    dead = [code for code in range(16) if code not in alive]
    assert len(dead) >= 4
    assert len(alive) >= 2

    stage.after_step(draws(0), [kept], lambda value: value)
    after = quantizer.codebook.weight.detach()
    assert torch.equal(after[alive], before[alive])
    distances = (after[dead][:, None] - torch.cat(vectors)).abs().amax(dim=-1)
    assert distances.amin(dim=-1).max() < 1e-5
    assert len(after[dead].unique(dim=0)) > len(dead) / 2  # at different positions
    from_scale = torch.repeat_interleave(torch.arange(3), torch.tensor([len(part) for part in vectors]))
    assert len(from_scale[distances.argmin(dim=-1)].unique()) > 1
    assert not health(stage).age[dead].any()
    assert quantizer.codebook.weight.requires_grad


def test_dead_codewords_are_given_time_and_live_ones_stay(build: Build) -> None:
    stage = build(restart_dead_codes=3)
    before = stage.vqvae.quantizer.codebook.weight.detach().clone()
    kept = spread_features(stage)
    changed = []
    for step in range(6):
        stage.after_step(draws(step), [kept], lambda value: value)
        after = stage.vqvae.quantizer.codebook.weight.detach()
        changed.append(not torch.equal(after, before))
        before = after.clone()
    assert changed == [False, False, True, False, False, True]  # restarted ones that nothing meets die again

    never = build()
    weights = never.vqvae.quantizer.codebook.weight.detach().clone()
    for step in range(6):
        never.after_step(draws(step), [kept], lambda value: value)
    assert torch.equal(never.vqvae.quantizer.codebook.weight, weights)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_agree_on_the_codebook_and_with_one_process(build: Build, accumulate: int) -> None:
    world, steps = 2, 3
    parts = world * accumulate
    one, *two = (build(restart_dead_codes=2, usage_window=2) for _ in range(1 + world))
    kept = spread_features(one)
    processes = Processes(world)
    shown: list[list[Any]] = [[], [], []]

    def upkeep(
        stage: TokenizerStage, shares: Sequence[range], reduce: Callable[[Tensor], Tensor], out: list[Any]
    ) -> None:
        for step in range(steps):
            mine = [part_of(kept, indices) for indices in shares]
            out.append(stage.after_step(draws(step, shares[0]), mine, reduce))

    upkeep(one, [ALL], lambda value: value, shown[2])
    with ThreadPoolExecutor(world) as pool:
        shares = [[range(i * world + rank, BATCH, parts) for i in range(accumulate)] for rank in range(world)]
        jobs = [
            pool.submit(upkeep, two[rank], shares[rank], processes.reduce(rank), shown[rank]) for rank in range(world)
        ]
        for job in jobs:
            job.result()
    ours, before = one.vqvae.quantizer, build().vqvae.quantizer
    assert not torch.equal(ours.codebook.weight, before.codebook.weight)
    for rank, stage in enumerate(two):
        assert largest_difference(stage.vqvae.quantizer.codebook.weight, ours.codebook.weight) < 1e-6
        assert torch.equal(stage.vqvae.quantizer.usage, ours.usage)
        assert torch.equal(health(stage).age, health(one).age)
        assert [dict(step) for step in shown[rank]] == [dict(step) for step in shown[2]]
    assert torch.equal(two[0].vqvae.quantizer.codebook.weight, two[1].vqvae.quantizer.codebook.weight)


def test_usage_and_perplexity_are_told_once_a_window(build: Build) -> None:
    stage = build(usage_window=2)
    kept = first_turn(stage, 0).carry
    first, second = kept, kept._replace(tokens=torch.full_like(kept.tokens, 5))
    assert stage.after_step(draws(0), [first], lambda value: value) == {}
    assert not stage.vqvae.quantizer.usage.any()
    shown = stage.after_step(draws(1), [second], lambda value: value)
    assert shown.keys() == {f"{name}/{side}" for name in ("usage", "perplexity") for side in ("1x1", "2x2", "4x4")}
    tokens = torch.cat([first.tokens, second.tokens])
    for side, part in zip((1, 2, 4), stage.vqvae.scales.split(tokens), strict=True):
        counts = torch.bincount(part.flatten(), minlength=16).double()
        share = counts[counts > 0] / counts.sum()
        reachable = min(16, part.numel())
        assert shown[f"usage/{side}x{side}"].item() == pytest.approx(int((counts > 0).sum()) / reachable)
        perplexity = (-(share * share.log()).sum()).exp().item()
        assert shown[f"perplexity/{side}x{side}"].item() == pytest.approx(perplexity / reachable, rel=1e-5)
    expected = torch.stack([torch.bincount(part.flatten(), minlength=16) for part in stage.vqvae.scales.split(tokens)])
    assert torch.equal(stage.vqvae.quantizer.usage, expected / 2)  # counts of a step
    assert stage.after_step(draws(2), [first], lambda value: value) == {}


def test_what_is_remembered_goes_round(build: Build) -> None:
    changes = {"loss": {"adversarial": PATCHES}, "restart_dead_codes": 4, "usage_window": 3}
    stage, other = build(**changes), build(**changes)
    for step in (BEGINS, BEGINS + 1):
        stage.after_step(draws(step), [first_turn(stage, step).carry], lambda value: value)
    other.load_state_dict(stage.state_dict())
    assert adversary(other).adaptive == adversary(stage).adaptive != 1
    assert torch.equal(health(other).age, health(stage).age)
    assert torch.equal(health(other).counts, health(stage).counts)
    assert health(other).steps == 2


# --- validation, pictures, export, real networks


@torch.no_grad()
def test_validation_tells_of_each_image(build: Build) -> None:
    stage = build(metric={"network": "vgg16"})
    assert stage.best == "lpips/vgg16"
    values = stage.validate(stage.vqvae, batch())
    assert values.keys() == {"psnr", "ssim", "l1", "l2", "vq", stage.best}
    assert all(value.shape == (BATCH,) for value in values.values())
    alone = stage.validate(stage.vqvae, batch(range(2, 3)))
    for name in values.keys() - {"vq"}:  # which is a mean over the batch
        torch.testing.assert_close(alone[name], values[name][2:3], rtol=1e-4, atol=1e-5)
    shown = stage.vqvae(pictures()).reconstruction.clamp(-1, 1)
    torch.testing.assert_close(values[stage.best], SmallDistance()(shown, pictures()))
    error = (shown - pictures()).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(values["psnr"], 10 * (4 / error).log10())
    assert build().best == "l2"


def test_a_sheet_has_the_input_and_the_reconstruction_after_each_scale(build: Build) -> None:
    stage, images = build(), pictures()
    columns = torch.stack([images, *stage.vqvae.reconstruct(images)], dim=1)  # (B, 4, 3, 8, 8)
    assert stage.preview(stage.vqvae, batch()) == image_grid(to_pil(columns.flatten(0, 1)), columns=4)


@torch.no_grad()
def test_the_exported_model_is_the_one_that_was_trained(build: Build, tmp_path: Path) -> None:
    stage = build()
    stage.export(stage.vqvae, tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model")
    assert isinstance(loaded, VQVAE)
    assert torch.equal(loaded.encode(pictures()), stage.vqvae.encode(pictures()))


def test_with_networks_that_see_real_features(build: Build) -> None:
    """Both turns with efficientnet-lite1, whose weights come in a package, at the 32 px that it needs."""
    network = {"network": "efficientnet-lite1"}
    features = {**FEATURES, **network, "r1": 0.1, "r1_every": 1}
    stage = build(model={"scales": [1, 2, 16]}, metric=network, loss={"perceptual": network, "adversarial": features})
    assert stage.best == "lpips/efficientnet-lite1"
    losses = first_turn(stage, BEGINS + 5, side=32)
    found = gradients(stage.vqvae, losses.total)
    names = [name for name, p in stage.vqvae.named_parameters() if p.requires_grad]
    assert [name for name in names if not found[name].any()] == []
    assert all(torch.isfinite(value).all() for value in found.values())
    second = second_turn(stage, losses.carry, BEGINS + 5, side=32)
    found = gradients(adversary(stage).discriminator, second.total)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert untouched(stage.vqvae, stage.perceptual, stage.metric, adversary(stage).sees)
