"""Equality with the reference implementation on its small models.

What works on tokens runs in every clone, from tests/fixtures. Whole pictures need the folder that VAR_GOLDEN names.
"""

import json
from functools import cache

import pytest
import torch
from helpers import (
    FIXTURES,
    GOLDEN,
    GOLDEN_MODELS,
    GOLDEN_SCALES,
    Tensors,
    largest_difference,
    needs_golden,
    read_tensors,
    small_vqvae,
    under,
)
from tiny_backends import both_backends, copy_into, from_array, run_in

from tokenizer.vqvae import VQVAE
from var.editing.image_masks import mask_at_scales
from var.hub.convert import load_official, load_official_tokenizer, to_official
from var.hub.convert_aim import load_official_aim
from var.models.var import VAR
from var.sampling.generate import ForcedTokens, Generated, generate
from var.sampling.logits import cfg_at_scale, classifier_free_guidance, filter_logits
from var.sampling.params import SamplingParams

TOLERANCE = 1e-4
GREEDY = SamplingParams(cfg=1.5, top_k=1, top_p=0.0)
FILTERS = ((0, 0.0), (7, 0.0), (0, 0.9), (5, 0.5), (20, 0.8))

both_models = pytest.mark.parametrize("name", GOLDEN_MODELS)


def tokenizer_shapes() -> dict[str, tuple[int, ...]]:
    shapes = json.loads((FIXTURES / "golden_tokenizer_shapes.json").read_text())
    return {name.removeprefix("vae."): tuple(shape) for name, shape in shapes.items()}


@cache
def from_fixture(name: str) -> tuple[VQVAE, VAR, Tensors]:
    """The models with zero convolutions around the quantizer, and the token-level inputs and outputs."""
    tensors = under(read_tensors(FIXTURES / "golden_tokens.safetensors.xz"), f"{name}.")
    vae = {key: torch.zeros(shape) for key, shape in tokenizer_shapes().items()} | under(tensors, "vae.")
    return *load_official(vae, under(tensors, "var."), scales=GOLDEN_SCALES), under(tensors, "io.")


@cache
def from_golden(name: str) -> tuple[Tensors, Tensors, Tensors]:
    """Released state dicts of tokenizer and transformer, and all inputs and outputs."""
    tensors = read_tensors(GOLDEN / f"{name}.safetensors.xz")
    return under(tensors, "vae."), under(tensors, "var."), under(tensors, "io.")


@both_models
@torch.no_grad()
def test_teacher_forcing_input(name: str) -> None:
    vqvae, _, io = from_fixture(name)
    assert (
        largest_difference(vqvae.quantizer.teacher_forcing_input(io["tokens"]), io["teacher_forcing_input"]) < TOLERANCE
    )


@both_models
@torch.no_grad()
def test_training_logits(name: str) -> None:
    _, model, io = from_fixture(name)
    assert io["labels"][1] == model.config.num_classes  # the null class is among them
    assert largest_difference(model(io["labels"], io["teacher_forcing_input"]), io["logits"]) < TOLERANCE


@both_models
def test_greedy_tokens(name: str) -> None:
    vqvae, model, io = from_fixture(name)
    drawn = generate(model, vqvae, io["greedy_labels"], GREEDY)
    assert torch.equal(drawn.tokens, io["greedy_tokens"])


def known_of_edit(vqvae: VQVAE, io: Tensors) -> ForcedTokens:
    """For both rows, the tokens of image 0 outside the hole."""
    keep = mask_at_scales(io["edit_mask"].bool(), vqvae.scales)
    return ForcedTokens(io["tokens"][:1].expand(2, -1), keep.expand(2, -1))


def greedy_edit(vqvae: VQVAE, model: VAR, io: Tensors) -> Generated:
    return generate(model, vqvae, io["edit_labels"], GREEDY, forced=known_of_edit(vqvae, io))


@both_models
@torch.no_grad()
def test_greedy_edit(name: str) -> None:
    vqvae, model, io = from_fixture(name)
    known, drawn = known_of_edit(vqvae, io), greedy_edit(vqvae, model, io).tokens
    assert known.forced.any()
    assert not known.forced.all()
    assert torch.equal(drawn, torch.where(known.forced, known.tokens, io["edit_sampled_tokens"]))
    # Where tokens are kept, what would have been drawn is in the golden file too, and follows from the final tokens.
    features = vqvae.quantizer.teacher_forcing_input(drawn)
    null = torch.full_like(io["edit_labels"], model.config.num_classes)
    strength = torch.tensor([cfg_at_scale(1.5, k, len(GOLDEN_SCALES)) for k in range(len(GOLDEN_SCALES))])
    strength = strength[vqvae.scales.levels()][:, None]
    logits = classifier_free_guidance(model(io["edit_labels"], features), model(null, features), strength)
    assert torch.equal(logits.argmax(dim=-1), io["edit_sampled_tokens"])


@both_models
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_filtered_probabilities(name: str, top_k: int, top_p: float) -> None:
    _, _, io = from_fixture(name)
    kept = filter_logits(io["filter_logits"], top_k, top_p).softmax(dim=-1)
    expected = io[f"filtered_k{top_k}_p{top_p}"]
    assert largest_difference(kept, expected) < TOLERANCE
    assert torch.equal(kept == 0, expected == 0)


def test_every_filter_of_the_golden_file_is_tested() -> None:
    _, _, io = from_fixture("var_small")
    assert {name for name in io if name.startswith("filtered")} == {f"filtered_k{k}_p{p}" for k, p in FILTERS}


@both_models
def test_transformer_converts_back_bit_for_bit(name: str) -> None:
    official = under(read_tensors(FIXTURES / "golden_tokens.safetensors.xz"), f"{name}.var.")
    vqvae, model, _ = from_fixture(name)
    assert_equal_states(to_official(vqvae, model)[1], official)


def test_tokenizer_converts_back_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    official = {name: torch.randn(shape, generator=generator) for name, shape in tokenizer_shapes().items()}
    _, model, _ = from_fixture("var_small")
    vqvae = load_official_tokenizer(official, GOLDEN_SCALES)
    assert_equal_states(to_official(vqvae, model)[0], official)


@needs_golden
@both_models
def test_whole_files_convert_back_bit_for_bit(name: str) -> None:
    vae, var, _ = from_golden(name)
    back = to_official(*load_official(vae, var, scales=GOLDEN_SCALES))
    assert_equal_states(back[0], vae)
    assert_equal_states(back[1], var)


@needs_golden
@torch.no_grad()
def test_features_tokens_and_reconstructions() -> None:
    vae, var, io = from_golden("var_small")
    vqvae, _ = load_official(vae, var, scales=GOLDEN_SCALES)
    assert largest_difference(vqvae.features(io["image"]), io["features"]) < TOLERANCE
    assert torch.equal(vqvae.encode(io["image"]), io["tokens"])
    pictures = vqvae.reconstruct(io["image"])
    assert len(pictures) == len(GOLDEN_SCALES)
    for k, picture in enumerate(pictures):
        assert largest_difference(picture, io[f"reconstruction_{k}"]) < TOLERANCE
        assert largest_difference(vqvae.decode(io["tokens"], num_scales=k + 1), io[f"reconstruction_{k}"]) < TOLERANCE


@needs_golden
def test_greedy_picture() -> None:
    vae, var, io = from_golden("var_small")
    drawn = generate(*reversed(load_official(vae, var, GOLDEN_SCALES)), io["greedy_labels"], GREEDY)
    assert torch.equal(drawn.tokens, io["greedy_tokens"])
    assert largest_difference((drawn.images + 1) / 2, io["greedy_image"]) < TOLERANCE


@needs_golden
def test_edited_picture() -> None:
    vae, var, io = from_golden("var_small")
    drawn = greedy_edit(*load_official(vae, var, GOLDEN_SCALES), io)
    assert largest_difference((drawn.images + 1) / 2, io["edit_image"]) < TOLERANCE


@needs_golden
@both_backends
def test_aim_in_other_frameworks(backend: str) -> None:
    tensors = read_tensors(GOLDEN / "aim_small.safetensors.xz")
    io = under(tensors, "io.")
    model = load_official_aim(under(tensors, "aim."), img_size=56, num_heads=4, probe_layers=[1, 3])
    logits, features = run_in(backend, copy_into(backend, model), io["image"])
    assert largest_difference(from_array(backend, logits), io["logits"]) < TOLERANCE
    assert largest_difference(from_array(backend, features), io["features"][[1, 3]].mean(dim=0)) < TOLERANCE


@torch.no_grad()
def test_own_tokenizer_is_what_it_was() -> None:
    """Encoder and decoder in a clone without the golden pictures; see make_fixtures.py."""
    tensors = read_tensors(FIXTURES / "own_tokenizer.safetensors.xz")
    io = under(tensors, "io.")
    vqvae = small_vqvae(seed=0)
    vqvae.load_state_dict(under(tensors, "weights."), strict=True)
    assert largest_difference(vqvae.features(io["images"]), io["features"]) < TOLERANCE
    assert torch.equal(vqvae.encode(io["images"]), io["tokens"])
    for k, picture in enumerate(vqvae.reconstruct(io["images"])):
        assert largest_difference(picture, io[f"reconstruction_{k}"]) < TOLERANCE


def assert_equal_states(ours: Tensors, official: Tensors) -> None:
    assert ours.keys() == official.keys()
    for name, value in official.items():
        assert ours[name].shape == value.shape, name
        assert torch.equal(ours[name].to(value.dtype), value), name
