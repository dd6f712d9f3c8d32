"""Packed linear maps: the same results, the same weights back, refusals where they cannot be used."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import (
    SIDES,
    largest_difference,
    normal,
    random_tokens,
    refused,
    small_quantizer,
    small_var,
    small_vqvae,
)

from tokenizer.scales import Scales
from var import VARPipeline
from var.cli.evaluation.results import format_size
from var.hub.checkpoint import load_transformer, save_model
from var.models.packed import LINEAR_MAPS, PackedLinear, can_pack, is_packed, pack, unpack
from var.models.var import VAR
from var.sampling.params import SamplingParams
from var.utils.provenance import fingerprint

pytestmark = pytest.mark.skipif(not can_pack(torch.ones(1)), reason="this build of torch packs no weights")


def packed_var() -> VAR:
    model = small_var(seed=1)
    pack(model.blocks)
    return model


def packed_layers(model: VAR) -> int:
    return sum(isinstance(part, PackedLinear) for part in model.modules())


def pipeline() -> VARPipeline:
    return VARPipeline(small_var(seed=1), small_vqvae(seed=2), sampling=SamplingParams(top_k=20))


def test_logits_are_the_same() -> None:
    tokens = random_tokens(3, Scales(SIDES).total)
    given = torch.tensor([0, 3, 5]), small_quantizer().teacher_forcing_input(tokens)
    plain, packed = small_var(seed=1), packed_var()
    assert packed_layers(packed) == len(LINEAR_MAPS) * len(packed.blocks)
    with torch.inference_mode():
        assert largest_difference(packed(*given), plain(*given)) < 1e-5


def test_images_are_the_same_and_unpacking_gives_the_same_bits() -> None:
    pipe, packed = pipeline(), pipeline().pack()
    assert torch.equal(packed([1, 2], cfg=1.5).tokens, pipe([1, 2], cfg=1.5).tokens)
    unpack(packed.model.blocks)
    assert packed_layers(packed.model) == 0
    found, expected = dict(packed.model.named_parameters()), dict(pipe.model.named_parameters())
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("avx512", [False, True])
def test_a_gelu_is_computed_within_the_product_where_that_gains(avx512: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.models.packed.cpu_capabilities", lambda: {"avx512_f": avx512})
    packed, plain = packed_var(), small_var(seed=1)
    pack(packed.blocks)
    for block in packed.blocks:
        assert isinstance(block.mlp.up, PackedLinear)
        assert block.mlp.up.gelu == ("tanh" if avx512 else None)
        assert isinstance(block.mlp.activation, torch.nn.Identity if avx512 else torch.nn.GELU)
    x = normal(2, 5, plain.config.width)
    with torch.inference_mode():
        expected = plain.blocks[0].mlp(x)
        assert largest_difference(packed.blocks[0].mlp(x), expected) < 1e-6
        unpack(packed.blocks)
        assert torch.equal(packed.blocks[0].mlp(x), expected)
        assert torch.equal(copy.deepcopy(packed_var()).blocks[0].mlp(x), packed_var().blocks[0].mlp(x))


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (True, "float32"), (False, "bfloat16")])
def test_a_tokenizer_has_channels_last_where_that_gains(
    fast: bool, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("var.models.packed.has_fast_bfloat16", lambda _: fast)
    pipe, packed = pipeline().to("cpu", dtype), pipeline().to("cpu", dtype).pack()
    kernel = packed.vqvae.decoder.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) == (fast and dtype == "bfloat16")
    images = normal(2, 3, packed.vqvae.config.image_side, packed.vqvae.config.image_side)
    tokens = random_tokens(2, packed.vqvae.scales.total)
    assert largest_difference(packed.vqvae.decode(tokens), pipe.vqvae.decode(tokens)) < 0.05
    assert largest_difference(packed.vqvae.features(images), pipe.vqvae.features(images)) < 0.05
    packed.save_pretrained(tmp_path / "saved")
    kept = VARPipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype=dtype).vqvae.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in pipe.vqvae.state_dict().items())


def test_packing_twice_is_packing_once() -> None:
    model = packed_var()
    layer = model.blocks[0].mlp.up
    pack(model.blocks)
    assert model.blocks[0].mlp.up is layer


def test_it_is_saved_counted_and_known_as_the_plain_one(tmp_path: Path) -> None:
    plain, packed = small_var(seed=1), packed_var()
    assert fingerprint(packed) == fingerprint(plain)
    assert format_size(packed) == format_size(plain)
    save_model(tmp_path / "packed", packed)
    loaded = load_transformer(tmp_path / "packed")
    assert all(torch.equal(*pair) for pair in zip(loaded.parameters(), plain.parameters(), strict=True))


def test_what_changes_weights_unpacks_first() -> None:
    changes: list[Callable[[VAR], object]] = [
        lambda model: model.train(),
        lambda model: model.double(),
        lambda model: model.load_state_dict(small_var(seed=3).state_dict()),
    ]
    for change in changes:
        packed, plain = packed_var(), small_var(seed=1)
        change(packed)
        change(plain)
        assert (packed_layers(packed), packed.training) == (0, plain.training)
        assert all(torch.equal(*pair) for pair in zip(packed.parameters(), plain.parameters(), strict=True))


def test_a_layer_by_itself_is_not_trained_or_moved() -> None:
    layer = packed_var().blocks[0].mlp
    with refused("a packed layer cannot be trained: call unpack() first"):
        layer.train()
    with refused("a packed layer is not moved or cast: call unpack() first"):
        layer.double()


def test_gradients_are_refused_where_they_would_be_wrong() -> None:
    tokens = random_tokens(3, Scales(SIDES).total)
    given = torch.tensor([0, 3, 5]), small_quantizer().teacher_forcing_input(tokens).detach()
    with refused("a packed model has no gradients", "inference_mode"):
        packed_var()(*given)
    frozen = small_var(seed=1).requires_grad_(False)
    pack(frozen.blocks)
    assert not frozen(*given).requires_grad
    unpack(frozen.blocks)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_it_is_copied_and_pickled() -> None:
    pipe, packed = pipeline(), pipeline().pack()
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert packed_layers(copied.model) == packed_layers(packed.model)
        assert torch.equal(copied([1]).tokens, pipe([1]).tokens)


def test_under_autocast_it_computes_in_its_own_type() -> None:
    layer = packed_var().blocks[0].mlp.up
    x = torch.ones(2, layer.weight.shape[1])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x.bfloat16()), layer(x))


def test_a_refiner_is_packed_with_the_model(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "refiner")
    for pipe, expected in ((pipeline(), False), (pipeline().pack(), True)):
        finer = pipe.choose_refiner(tmp_path / "refiner", 1)
        assert finer is not None
        assert is_packed(finer.model.blocks) == expected


def test_a_pipeline_unpacks_before_it_moves_or_casts_its_model() -> None:
    pipe = pipeline().pack().to("cpu", "bfloat16")
    assert packed_layers(pipe.model) == 0
    assert pipe.model.blocks[0].mlp.up.weight.dtype == torch.bfloat16


def test_compiling_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    assert packed_layers(pipeline().pack().compile().model) == 0


def test_int8_and_other_types_are_left_as_they_are() -> None:
    for dtype in (torch.float64, torch.int8):
        model = small_var(seed=1).cast(dtype)
        before = copy.copy(list(model.modules()))
        pack(model.blocks)
        assert list(model.modules()) == before
