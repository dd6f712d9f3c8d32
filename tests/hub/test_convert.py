"""Released files in and out: every key accounted for, every misfit named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CLASSES, LATENT, SIDES, VOCAB, Tensors, random_images, refused, small_var, small_vqvae

from var.hub.convert import load_official, load_official_tokenizer, load_official_var, to_official
from var.models.var import VAR

VARIANTS = pytest.mark.parametrize("variant", [{}, {"shared_adaln": True}, {"qk_norm": False}], ids=str)


def released(**variant: bool) -> tuple[Tensors, Tensors]:
    """State dicts as the released files have them (group norms of released tokenizers have 32 groups)."""
    return to_official(small_vqvae(base_width=32, norm_groups=32), small_var(heads=2, **variant))


def load_transformer(state: Tensors, scales: tuple[int, ...] = SIDES, num_heads: int | None = None) -> VAR:
    return load_official_var(state, scales, num_heads)


@VARIANTS
def test_sizes_are_read_off_the_tensors(variant: dict[str, bool]) -> None:
    vqvae, model = load_official(*released(**variant), scales=SIDES)
    assert vqvae.config == small_vqvae(base_width=32, norm_groups=32).config
    assert model.config == small_var(heads=2, **variant).config
    assert model.config.num_classes == CLASSES
    assert (model.config.vocab_size, model.config.latent_dim) == (VOCAB, LATENT)


@VARIANTS
@torch.no_grad()
def test_round_trip_keeps_every_bit_and_the_outputs(variant: dict[str, bool]) -> None:
    vae, var = released(**variant)
    vqvae, model = load_official(vae, var, scales=SIDES)
    for ours, theirs in zip(to_official(vqvae, model), (vae, var), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    labels, features = torch.tensor([0, CLASSES]), torch.ones(2, 20, LATENT)
    assert torch.equal(model(labels, features), small_var(heads=2, **variant)(labels, features))
    images = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    assert torch.equal(vqvae.encode(images), small_vqvae(base_width=32, norm_groups=32).encode(images))


def test_models_come_in_float32_ready_for_use_and_for_training() -> None:
    vae, var = released()
    halves = (
        {name: value.bfloat16() if value.is_floating_point() else value for name, value in s.items()}
        for s in (vae, var)
    )
    for model in load_official(*halves, scales=SIDES):
        assert not model.training
        assert all(p.dtype == torch.float32 and p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_number_of_heads() -> None:
    _, var = released()
    assert load_transformer(var).config.heads == 2  # from the attention temperatures
    _, plain = released(qk_norm=False)
    assert load_transformer(plain).config.heads == 2  # nothing tells it: the depth
    assert load_transformer(plain, num_heads=4).config.heads == 4
    with refused("scale_mul_1H11", "(1, 2, 1, 1)"):
        load_transformer(var, num_heads=4)


@pytest.mark.parametrize(
    "key",
    ["blocks.1.attn.q_bias", "head.bias", "pos_1LC", "class_emb.weight", "blocks.0.ffn.fc1.weight", "lvl_embed.weight"],
)
def test_a_missing_key_of_the_transformer_is_named(key: str) -> None:
    _, var = released()
    del var[key]
    with refused(key, "missing"):
        load_transformer(var)


@pytest.mark.parametrize(
    "key",
    ["encoder.conv_in.weight", "quantize.embedding.weight", "quantize.ema_vocab_hit_SV", "decoder.mid.attn_1.qkv.bias"],
)
def test_a_missing_key_of_the_tokenizer_is_named(key: str) -> None:
    vae, _ = released()
    del vae[key]
    with refused(key, "missing"):
        load_official_tokenizer(vae, SIDES)


def test_a_key_too_many_is_named() -> None:
    vae, var = released()
    for key in ("blocks.0.attn.k_bias", "blocks.2.attn.proj.weight", "extra"):
        with refused("unknown" if key != "blocks.2.attn.proj.weight" else "missing", "VAR"):
            load_transformer({**var, key: torch.zeros(1)})
    with refused("unknown", "quantize.extra"):
        load_official_tokenizer({**vae, "quantize.extra": torch.zeros(1)}, SIDES)


@pytest.mark.parametrize("key", ["blocks.1.ffn.fc2.bias", "shared_ada_lin.1.weight", "blocks.1.attn.scale_mul_1H11"])
def test_a_wrong_shape_is_named(key: str) -> None:
    _, var = released(shared_adaln=True)
    var[key] = var[key][:, :1] if var[key].ndim > 2 else var[key][:-1]
    with refused(key, "shape", str(tuple(var[key].shape))):
        load_transformer(var)


def test_a_transposed_matrix_is_not_taken_for_the_right_one() -> None:
    _, var = released()
    var["word_embed.weight"] = var["word_embed.weight"].T.contiguous()
    with refused("word_embed.weight"):
        load_transformer(var)


@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 3, 4)])
def test_scales_of_another_model_are_refused(scales: tuple[int, ...]) -> None:
    vae, var = released()
    with refused("21 tokens", str(list(scales))):
        load_transformer(var, scales)
    if len(scales) != len(SIDES):
        with refused("ema_vocab_hit_SV"):
            load_official_tokenizer(vae, scales)


def change(name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    _, var = released()
    return {**var, name: how(var[name])}


@pytest.mark.parametrize("name", ["blocks.1.attn.zero_k_bias", "lvl_1L", "attn_bias_for_masking"])
def test_a_buffer_that_does_not_follow_from_the_sizes_is_not_dropped_silently(name: str) -> None:
    with refused(name):
        load_transformer(change(name, lambda value: value + 1))
    with refused(name):
        load_transformer(change(name, lambda value: value[..., :-1]))


def test_buffers_that_follow_from_the_sizes_may_be_absent() -> None:
    _, var = released()
    kept = {k: v for k, v in var.items() if "zero_k_bias" not in k and k not in ("lvl_1L", "attn_bias_for_masking")}
    assert len(kept) == len(var) - 4
    assert torch.equal(load_transformer(kept).head.weight, var["head.weight"])


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(3)}], ids=["empty", "foreign"])
def test_foreign_files_are_refused(state: Tensors) -> None:
    with refused("missing"):
        load_transformer(state)
    with refused("missing"):
        load_official_tokenizer(state, SIDES)


def test_the_two_files_are_not_interchangeable() -> None:
    vae, var = released()
    with refused("missing"):
        load_official(var, vae, scales=SIDES)


@pytest.mark.parametrize("scales", [None, 5, [1, "2"], [1, 2.5]])
def test_scales_that_are_no_list_of_sides_are_refused(scales: Any) -> None:
    with refused("scales="):
        load_official(*released(), scales=scales)


# --- variants of the tokenizer, and checkpoints of the reference's trainer


@pytest.mark.parametrize(("share", "num_phi"), [(0, 3), (1, 1), (2, 2), (4, 4), (None, 4)])
def test_phi_convolutions_are_read_under_each_of_their_names(share: int | None, num_phi: int) -> None:
    vqvae = small_vqvae(base_width=32, norm_groups=32, num_phi=num_phi)
    vae, _ = to_official(vqvae, small_var(heads=2), share)
    phi = sorted(key.removesuffix(".weight") for key in vae if "quant_resi" in key and key.endswith("weight"))
    assert phi == {
        0: ["quantize.quant_resi.0", "quantize.quant_resi.1", "quantize.quant_resi.2"],
        1: ["quantize.quant_resi.qresi"],
    }.get(share, [f"quantize.quant_resi.qresi_ls.{j}" for j in range(num_phi)])
    loaded = load_official_tokenizer(vae, SIDES)
    assert loaded.config == vqvae.config
    tokens = torch.arange(42).reshape(2, 21) % VOCAB
    assert torch.equal(loaded.decode(tokens), vqvae.decode(tokens))


def test_a_number_of_phi_convolutions_that_does_not_go_with_their_names() -> None:
    for share in (0, 1, 2):
        with refused(f"share_quant_resi={share} does not go with num_phi=4"):
            to_official(small_vqvae(), small_var(), share)


@pytest.mark.parametrize("variant", [{"phi_ratio": 0.0}, {"phi_ratio": 0.25}, {"cosine": True}], ids=str)
@torch.no_grad()
def test_what_no_tensor_shows_is_an_argument(variant: dict[str, float]) -> None:
    vqvae = small_vqvae(base_width=32, norm_groups=32, **variant)
    vae, var = to_official(vqvae, small_var(heads=2))
    loaded, _ = load_official(vae, var, SIDES, **variant)  # type: ignore[arg-type]
    assert loaded.config == vqvae.config
    images = random_images(4, 8)
    assert torch.equal(loaded.encode(images), vqvae.encode(images))
    assert torch.equal(loaded.decode(loaded.encode(images)), vqvae.decode(vqvae.encode(images)))
    other = load_official_tokenizer(vae, SIDES)
    assert (other.config == vqvae.config) == (variant == {"phi_ratio": 0.0})  # the absence of phi shows this one


def test_phi_that_is_there_is_not_dropped() -> None:
    vae, _ = released()
    with refused("8 unknown", "quantize.quant_resi.qresi_ls.0.bias"):
        load_official_tokenizer(vae, SIDES, phi_ratio=0)
    del vae["quantize.quant_resi.qresi_ls.2.bias"]
    with refused("1 keys missing", "quantize.quant_resi.qresi_ls.2.bias"):
        load_official_tokenizer(vae, SIDES)


def test_both_models_are_taken_out_of_a_checkpoint_of_the_trainer() -> None:
    vae, var = released()
    compiled = {f"_orig_mod.{name}": value for name, value in var.items()}
    parts = {"vae_local": vae, "var_wo_ddp": compiled, "var_opt": {"optimizer": {}}}
    checkpoint = {"args": {"depth": 2}, "epoch": 3, "trainer": parts}
    vqvae, model = load_official(checkpoint, checkpoint, SIDES)
    for ours, theirs in zip(to_official(vqvae, model), (vae, var), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with refused("missing"):
        load_official_var({"trainer": {"var_wo_ddp": {"module." + name: var[name] for name in list(var)[1:]}}}, SIDES)
