"""Linear maps in int8: their numbers in closed form, how near the logits of a VAR stay, what depends on what."""

import copy

import numpy as np
import pytest
import torch
from helpers import LATENT, SIDES, largest_difference, normal, random_tokens, refused, small_quantizer, small_var
from torch import Tensor, nn

from tokenizer.scales import Scales
from var.models import int8
from var.models.int8 import Int8Linear
from var.models.var import VAR
from var.utils.provenance import fingerprint

NEAR = 0.03  # bound on the error of the logits, as a share of what they vary by


@pytest.fixture(autouse=True)
def beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The type beside int8, on a processor fast at bfloat16 or not, whatever this one is; not unless a test says so."""
    fast = getattr(request, "param", False)
    monkeypatch.setattr("var.utils.device.has_fast_bfloat16", lambda _: fast)
    return torch.bfloat16 if fast else torch.float32


on_both_processors = pytest.mark.parametrize("beside", [False, True], ids=["float32", "bfloat16"], indirect=True)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / (expected - expected.mean()).norm())


def logits(model: VAR) -> Tensor:
    tokens = random_tokens(3, Scales(SIDES).total)
    with torch.no_grad():
        found: Tensor = model(torch.tensor([0, 3, 5]), small_quantizer().teacher_forcing_input(tokens))
    return found


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_product_in_closed_form(with_bias: bool) -> None:
    """The inputs are 0.4 steps or less from multiples of the step 1/32, so that no kernel rounds another way."""
    largest = 127 if int8.saturates() else 255
    zero_point = 40
    generator = np.random.default_rng(0)
    integers = generator.integers(1, largest, (2, 6, 24))
    integers[:, 0, :2] = 0, largest  # the range of each sample
    offset = generator.uniform(-0.4, 0.4, integers.shape)
    offset[:, 0, :2] = 0
    x = (integers - zero_point + offset) / 32
    weight = generator.normal(size=(10, 24))
    bias = generator.normal(size=10) * with_bias

    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    expected = (integers - zero_point) / 32 @ (np.round(weight / scale) * scale).T + bias

    given = torch.tensor(bias, dtype=torch.float32) if with_bias else None
    layer = Int8Linear(torch.tensor(weight, dtype=torch.float32), given)
    found = layer(torch.tensor(x, dtype=torch.float32))
    assert (found.dtype, found.shape) == (torch.float32, (2, 6, 10))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_largest_products_do_not_saturate() -> None:
    for sign in (1, -1):
        layer = Int8Linear(torch.full((16, 512), float(sign)), None)
        torch.testing.assert_close(layer(torch.ones(1, 3, 512)), torch.full((1, 3, 16), 512.0 * sign))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, True),
        ({"avx2": True, "avx512_f": True, "avx_vnni": True}, True),  # the kernel for 256 bits does not use it
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, False),
        ({"neon": True}, False),
    ],
)
def test_bits_by_processor(capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert int8.saturates() == expected


def test_a_sample_does_not_depend_on_its_batch() -> None:
    layer, x = Int8Linear(normal(8, 16, seed=1), normal(8, seed=2)), normal(3, 5, 16)
    x[1] *= 100
    together = layer(x)
    for i in range(3):
        assert torch.equal(layer(x[i : i + 1]), together[i : i + 1])


def test_zeros() -> None:
    bias = normal(4)
    weight = normal(4, 8)
    weight[2] = 0
    layer = Int8Linear(weight, bias)
    assert torch.equal(layer(torch.zeros(1, 2, 8)), bias.expand(1, 2, 4))
    assert torch.equal(layer(normal(1, 2, 8))[..., 2], bias[2].expand(1, 2))


@on_both_processors
@pytest.mark.parametrize("variant", [{}, {"shared_adaln": True}, {"qk_norm": False}], ids=str)
def test_logits_stay_near_those_of_float32(variant: dict[str, bool]) -> None:
    model = small_var(**variant)
    expected = logits(model)
    cast = model.cast(torch.int8)
    assert cast is model
    assert model.dtype == torch.int8
    assert 0 < relative_error(logits(model), expected) < NEAR


def test_all_but_the_linear_maps_of_attention_and_mlp_stays_in_float32() -> None:
    model = small_var()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    state = model.cast(torch.int8).state_dict()
    rounded = {name for name, value in state.items() if value.dtype == torch.int8}
    maps = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
    assert rounded == {f"blocks.{i}.{name}.weight" for i in range(2) for name in maps}
    for name in rounded:
        scale = state[name.replace("weight", "scale")]
        assert largest_difference(state[name] * scale[:, None].float(), kept[name]) <= float(scale.max()) * 0.51
    others = [name for name in state if name in kept and name not in rounded]
    assert "head.weight" in others
    assert "blocks.0.adaln.linear.weight" in others
    for name in others:
        assert torch.equal(state[name], kept[name])
    zeros = torch.zeros(32)
    qkv_bias = torch.cat([kept["blocks.1.attention.q_bias"], zeros, kept["blocks.1.attention.v_bias"]])
    assert torch.equal(state["blocks.1.attention.qkv.bias"], qkv_bias)


@pytest.mark.parametrize("beside", [True], indirect=True)
def test_a_processor_fast_at_bfloat16_has_the_rest_in_it_and_the_same_integers() -> None:
    model, fast = small_var(), small_var().cast(torch.int8)
    integers = [part for part in fast.modules() if isinstance(part, Int8Linear)]
    state, head = fast.state_dict(), {"head.weight", "head.bias", "head_adaln.linear.weight", "head_adaln.linear.bias"}
    assert {name for name, parameter in fast.named_parameters() if parameter.dtype == torch.float32} == head
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.float32, torch.bfloat16}
    rounded = Int8Linear(model.blocks[1].mlp.up.weight, model.blocks[1].mlp.up.bias).state_dict()
    assert all(torch.equal(state[f"blocks.1.mlp.up.{name}"], value) for name, value in rounded.items())
    x = normal(2, 5, 32).bfloat16()
    assert torch.equal(integers[0](x), integers[0](x.float()).bfloat16())


@on_both_processors
@torch.no_grad()
def test_steps_of_generation_stay_near_those_of_float32() -> None:
    model = small_var()
    labels, steps = torch.tensor([0, 3]), []
    for dtype in (torch.float32, torch.int8):
        model.cast(dtype)
        condition, cache = model.condition(labels), model.new_cache(2)
        first = model.step(0, None, condition, cache)
        steps.append(torch.cat([first, model.step(1, normal(2, 4, LATENT), condition, cache)], dim=1))
    assert 0 < relative_error(steps[1], steps[0]) < NEAR


@on_both_processors
def test_from_bfloat16_and_not_back(beside: torch.dtype) -> None:
    model = small_var().cast(torch.bfloat16).cast(torch.int8)
    assert model.position.dtype == beside
    assert model.cast(torch.int8) is model
    for dtype in (torch.float32, torch.bfloat16):
        with refused(str(dtype), "load the model again"):
            model.cast(dtype)


def test_there_is_no_training() -> None:
    model = small_var().cast(torch.int8)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with refused("cannot be trained", "float32 or bfloat16"):
        model.train()
    model.eval()


def test_rounded_weights_are_part_of_what_identifies_a_model() -> None:
    models = [small_var().cast(torch.int8) for _ in range(2)]
    assert fingerprint(models[0]) == fingerprint(models[1]) == fingerprint(copy.deepcopy(models[0]))
    changed = small_var()
    nn.init.zeros_(changed.blocks[1].mlp.down.weight)
    assert fingerprint(changed.cast(torch.int8)) != fingerprint(models[0])
