"""Released AIM files in and out: every key accounted for, every misfit named."""

import json
import lzma
import struct
from typing import Any

import pytest
import torch
from helpers import FIXTURES, GOLDEN, Tensors, needs_golden, read_tensors, refused, under
from tiny_aim import small_aim

from var.hub.convert import load_official_tokenizer, load_official_var
from var.hub.convert_aim import load_official_aim, to_official_aim
from var.hub.presets import AIM_RELEASED, AIM_SIZES
from var.models.aim import AIM, AIMConfig, EncoderConfig


def released(**sizes: Any) -> Tensors:
    return to_official_aim(small_aim(**sizes))


def load(state: Tensors, **changes: Any) -> AIM:
    return load_official_aim(state, **({"img_size": 8, "num_heads": 2, "probe_layers": [0, 2]} | changes))


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert torch.equal(ours[name].to(value.dtype), value), name


@pytest.mark.parametrize(
    "sizes",
    [{}, {"patch_size": 2, "mlp_ratio": 2.5}, {"depth": 12, "width": 24, "num_classes": 3, "probe_layers": (11,)}],
    ids=str,
)
def test_sizes_are_read_off_the_tensors(sizes: dict[str, Any]) -> None:
    config = small_aim(**sizes).config
    assert load(released(**sizes), probe_layers=config.probe_layers).config == config


@torch.no_grad()
def test_round_trip_keeps_every_bit_and_the_outputs() -> None:
    state = released()
    model = load(state)
    assert_same(to_official_aim(model), state)
    assert all(value.dtype == state[name].dtype for name, value in to_official_aim(model).items())
    images = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    assert torch.equal(model(images).logits, small_aim()(images).logits)


@needs_golden
def test_the_golden_file_converts_back_bit_for_bit() -> None:
    """bfloat16 there, float32 here; sizes as the file's own metadata say."""
    content = lzma.decompress((GOLDEN / "aim_small.safetensors.xz").read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    config = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["config"])
    tensors = read_tensors(GOLDEN / "aim_small.safetensors.xz")
    official = {name.removeprefix("aim."): value for name, value in tensors.items() if name.startswith("aim.")}
    model = load_official_aim(official, config["img_size"], config["num_heads"], config["probe_layers"])
    assert model.config.encoder == EncoderConfig(56, 14, width=96, depth=4, heads=4)
    assert (model.config.probe_layers, model.config.num_classes) == ((1, 3), 11)
    assert_same(to_official_aim(model), official)


def test_the_fixture_converts_back_bit_for_bit() -> None:
    official = under(read_tensors(FIXTURES / "golden_aim.safetensors.xz"), "aim.")
    assert len(official) == 21
    assert_same(to_official_aim(load(official, img_size=56, num_heads=4, probe_layers=[0])), official)


def test_models_come_in_float32_ready_for_use_and_for_training() -> None:
    halves = {name: value.bfloat16() if value.is_floating_point() else value for name, value in released().items()}
    model = load(halves)
    assert not model.training
    assert all(p.dtype == torch.float32 and p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert all(buffer.device.type == "cpu" for buffer in model.buffers())
    assert model.probe.norm.num_batches_tracked.item() == 7
    assert model.probe.norm.num_batches_tracked.dtype == torch.int64
    assert_same(halves, {name: value.to(halves[name].dtype) for name, value in to_official_aim(model).items()})


def test_image_size() -> None:
    assert load(released(), img_size=16).config.patches == 16
    assert load(released(), img_size=None).config.image_size == 224
    with refused("image_size=9", "patch_size=4"):
        load(released(), img_size=9)


@pytest.mark.parametrize("name", AIM_RELEASED)
def test_released_sizes_are_known(name: str) -> None:
    """Heads by width and best layers by sizes, from tensors without content."""
    sizes = AIM_SIZES[name]
    with torch.device("meta"):
        state = to_official_aim(AIM(AIMConfig(**sizes.to_dict())))
    best, last = (load_official_aim(state, probe_layers=layers).config for layers in ("best", "last"))
    assert best.encoder == last.encoder == sizes
    first = {"aim-600M": 14, "aim-1B": 12, "aim-3B": 12, "aim-7B": 14}[name]
    assert best.probe_layers == tuple(range(first, first + 6))
    assert last.probe_layers == tuple(range(sizes.depth - 6, sizes.depth))
    assert load_official_aim(state).config == last


def test_number_of_heads_of_other_widths() -> None:
    with refused("width 16", "1536, 2048, 3072, 4096", "pass num_heads"):
        load(released(), num_heads=None)
    assert load(released(), num_heads=4).config.heads == 4
    with refused("width=16", "heads=3"):
        load(released(), num_heads=3)


def test_probe_layers() -> None:
    assert load(released(), probe_layers="last").config.probe_layers == (0, 1, 2)  # there are no six
    assert load(released(depth=8), probe_layers="last").config.probe_layers == (2, 3, 4, 5, 6, 7)
    with refused("3 blocks", "aim-600M", "list of blocks"):
        load(released(), probe_layers="best")
    for layers in ([3], [-1], [], [1, 1]):
        with refused(str(layers), "0..2"):
            load(released(), probe_layers=layers)
    for unknown in ("first", 2, [0, "1"], [1.0]):
        with refused(f"probe_layers={unknown!r}", "last, best"):
            load(released(), probe_layers=unknown)


@pytest.mark.parametrize("key", sorted(released()))
def test_every_key_is_needed(key: str) -> None:
    state = released()
    del state[key]
    with refused(key, "missing"):
        load(state)


@pytest.mark.parametrize(
    "key",
    [
        *("extra", "head.bn.weight", "head.linear.bias", "trunk.blocks.0.attn.qkv.bias", "preprocessor.pos_embed"),
        *("aim.head.k.weight", "encoder.norm.weight"),
    ],
)
def test_a_key_too_many_is_named(key: str) -> None:
    with refused("1 unknown", key, "AIM"):
        load({**released(), key: torch.zeros(1)})


@pytest.mark.parametrize(
    "key",
    [
        *("head.cls_token", "head.bn.running_mean", "head.k.weight", "trunk.blocks.1.mlp.fc1.weight"),
        *("trunk.blocks.0.attn.qkv.weight", "trunk.post_trunk_norm.bias", "preprocessor.patchifier.proj.bias"),
    ],
)
def test_a_wrong_shape_is_named(key: str) -> None:
    state = released()
    state[key] = state[key][..., :-1]
    with refused(key, "shape", str(tuple(state[key].shape))):
        load(state)


def test_patches_that_are_not_square_or_not_rgb_are_refused() -> None:
    for shape in ((16, 3, 2, 4), (16, 1, 4, 4)):
        with refused("patchifier.proj", str(shape)):
            load({**released(), "preprocessor.patchifier.proj.weight": torch.zeros(shape)})


@pytest.mark.parametrize(
    "state", [{}, {"weight": torch.zeros(3)}, {"preprocessor.patchifier.proj.weight": torch.zeros(3)}]
)
def test_foreign_files_are_refused(state: Tensors) -> None:
    with refused("not a released"):
        load(state)
    with refused("not a released"):
        load_official_aim(state)


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (None, "a NoneType is no state dict"),
        ([1], "a list is no state dict"),
        ({3: torch.zeros(1)}, "3 is the key of a Tensor"),
        ({"head.k.weight": "text"}, "'head.k.weight' is the key of a str"),
        ({"head.k.weight": {"deep": torch.zeros(1)}}, "'head.k.weight' is the key of a dict"),
    ],
    ids=str,
)
def test_what_is_no_state_dict_is_refused(state: Any, what: str) -> None:
    for convert in (load_official_aim, load_official_var, load_official_tokenizer):
        with refused("not a released file", what):
            convert(state)


def test_half_a_model_is_refused() -> None:
    head = {name: value for name, value in released().items() if name.startswith("head.")}
    with refused("missing", "preprocessor"):
        load(head)
    with refused("missing", "head."):
        load({name: value for name, value in released().items() if name not in head})
    with refused("missing"):
        load_official_var(released())
