"""Released VAR files <-> our modules: maps of key names, strict in both directions.

The released files come from the reference implementation of arXiv 2404.02905. Sizes are read off the tensors.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenizer.errors import InputError, abbreviate, check_whole_number
from tokenizer.scales import SCALES_256, Scales
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.state_dicts import count_numbers, find_state, load_converted, rename, shape_of
from var.models.masks import block_causal
from var.models.var import VAR, VARConfig
from var.utils.weights import StateDict

# Where a checkpoint of the reference's trainer keeps the two models, outermost first.
TOKENIZER_ENTRIES, VAR_ENTRIES = ("trainer", "vae_local"), ("trainer", "var_wo_ddp")

# Our name -> theirs, of whole keys or of what stands before the last dot.
_VAR_KEYS = {
    "class_embedding": "class_emb",
    "start_position": "pos_start",
    "position": "pos_1LC",
    "level_embedding": "lvl_embed",
    "feature_in": "word_embed",
    "shared_adaln.linear": "shared_ada_lin.1",
    "head_adaln.linear": "head_nm.ada_lin.1",
    "head": "head",
}
_BLOCK_KEYS = {
    "adaln.linear": "ada_lin.1",
    "adaln.offset": "ada_gss",
    "attention.qkv": "attn.mat_qkv",
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "attention.log_scale": "attn.scale_mul_1H11",
    "attention.proj": "attn.proj",
    "mlp.up": "ffn.fc1",
    "mlp.down": "ffn.fc2",
}
_LAYERS = {"shortcut": "nin_shortcut", "proj": "proj_out"}  # of the tokenizer's residual and attention blocks
_TOKENIZER_KEYS = {
    "quantizer.codebook.weight": "quantize.embedding.weight",
    "quantizer.usage": "quantize.ema_vocab_hit_SV",
}


_PHI = "quantize.quant_resi"


def official_tokenizer_key(key: str, config: TokenizerConfig, share_quant_resi: int) -> str:
    """The released name of one of VQVAE's parameters or buffers; for share_quant_resi see `to_official`."""
    if key in _TOKENIZER_KEYS:
        return _TOKENIZER_KEYS[key]
    if match := re.fullmatch(r"quantizer\.phi\.(\d+)\.(.+)", key):
        names = {0: f"{_PHI}.{match[1]}", 1: f"{_PHI}.qresi"}
        return f"{names.get(share_quant_resi, f'{_PHI}.qresi_ls.{match[1]}')}.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.middle\.([012])\.(.+)", key):
        part = ("block_1", "attn_1", "block_2")[int(match[2])]
        return f"{match[1]}.mid.{part}.{_official_layer(match[3])}"
    if match := re.fullmatch(r"(encoder|decoder)\.levels\.(\d+)\.(\d+)\.(.+)", key):
        return _official_level(match[1], int(match[2]), int(match[3]), match[4], config)
    if match := re.fullmatch(r"encoder\.downsamples\.(\d+)\.(.+)", key):
        return f"encoder.down.{match[1]}.downsample.{match[2]}"
    if match := re.fullmatch(r"decoder\.upsamples\.(\d+)\.(.+)", key):
        return f"decoder.up.{len(config.multipliers) - 1 - int(match[1])}.upsample.{match[2]}"
    return key  # conv_in, norm_out, conv_out, quant_conv, post_quant_conv: the same names


def _official_level(side: str, level: int, layer: int, rest: str, config: TokenizerConfig) -> str:
    last = len(config.multipliers) - 1
    # Theirs count levels from the finest in both directions; our decoder's go from coarse to fine.
    number = level if side == "encoder" else last - level
    part = "down" if side == "encoder" else "up"
    # The lowest level alternates residual blocks and attention.
    kind, index = (("block", "attn")[layer % 2], layer // 2) if number == last else ("block", layer)
    return f"{side}.{part}.{number}.{kind}.{index}.{_official_layer(rest)}"


def _official_layer(rest: str) -> str:
    name, _, tail = rest.partition(".")
    return f"{_LAYERS.get(name, name)}.{tail}"


def official_var_key(key: str) -> str:
    """The released name of one of VAR's parameters."""
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        return f"blocks.{match[1]}.{rename(match[2], _BLOCK_KEYS)}"
    return rename(key, _VAR_KEYS)


def _derived_buffers(config: VARConfig) -> dict[str, Tensor]:
    """Buffers of the released VAR files that follow from the sizes."""
    scales = Scales(config.scales)
    mask = block_causal(scales)
    return {
        "lvl_1L": scales.levels()[None],
        "attn_bias_for_masking": torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None],
        **{f"blocks.{i}.attn.zero_k_bias": torch.zeros(config.width) for i in range(config.depth)},
    }


def _read_phi(state: StateDict) -> tuple[int, int]:
    """Return share_quant_resi by the names of the phi convolutions, and their number, which may be 0."""
    if any(key.startswith(f"{_PHI}.qresi.") for key in state):
        return 1, 1
    if one_per_scale := count_numbers(state, rf"{_PHI}\.(\d+)\."):
        return 0, one_per_scale
    shared = count_numbers(state, rf"{_PHI}\.qresi_ls\.(\d+)\.")
    return max(shared, 2), shared  # the names are the same for any number above 1


def tokenizer_config(
    state: StateDict, scales: tuple[int, ...], phi_ratio: float | None = None, cosine: bool = False
) -> TokenizerConfig:
    """Return the sizes of a released tokenizer, read off its tensors; for the arguments see load_official.

    Raises InputError: a tensor that determines a size is missing.
    """
    _, num_phi = _read_phi(state)
    if phi_ratio is None:
        phi_ratio = TokenizerConfig.phi_ratio if num_phi else 0.0
    levels = count_numbers(state, r"encoder\.down\.(\d+)\.")
    base_width = shape_of(state, "encoder.conv_in.weight", 4)[0]
    widths = [shape_of(state, f"encoder.down.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)]
    vocab_size, latent_dim = shape_of(state, "quantize.embedding.weight", 2)
    return TokenizerConfig(
        scales=scales,
        vocab_size=vocab_size,
        latent_dim=latent_dim,
        base_width=base_width,
        multipliers=tuple(width // base_width for width in widths),
        blocks=count_numbers(state, r"encoder\.down\.0\.block\.(\d+)\."),
        num_phi=num_phi or TokenizerConfig.num_phi,
        cosine=cosine,
        phi_ratio=phi_ratio,
    )


def var_config(state: StateDict, scales: tuple[int, ...], num_heads: int | None) -> VARConfig:
    """Sizes of a released transformer, read off its tensors; num_heads None: from the attention scales, else the depth.

    Raises InputError: a tensor that determines a size is missing, or the number of tokens is not that of the scales.
    """
    depth = count_numbers(state, r"blocks\.(\d+)\.")
    length = shape_of(state, "pos_1LC", 3)[1]
    if length != Scales(scales).total:
        raise InputError(
            f"the transformer was built for {length} tokens, the scales {list(scales)} have {Scales(scales).total}: "
            "pass the scales that it was trained with"
        )
    vocab_size, width = shape_of(state, "head.weight", 2)
    temperatures = state.get("blocks.0.attn.scale_mul_1H11")
    if num_heads is None:
        num_heads = depth if temperatures is None else temperatures.numel()
    return VARConfig(
        depth=depth,
        width=width,
        heads=num_heads,
        scales=scales,
        vocab_size=vocab_size,
        latent_dim=shape_of(state, "word_embed.weight", 2)[1],
        num_classes=shape_of(state, "class_emb.weight", 2)[0] - 1,
        mlp_ratio=shape_of(state, "blocks.0.ffn.fc1.weight", 2)[0] / width,
        qk_norm=temperatures is not None,
        shared_adaln="shared_ada_lin.1.weight" in state,
    )


def load_official(
    vae_state_dict: Mapping[str, Any],
    var_state_dict: Mapping[str, Any],
    scales: tuple[int, ...] = SCALES_256.sides,
    num_heads: int | None = None,
    phi_ratio: float | None = None,
    cosine: bool = False,
) -> tuple[VQVAE, VAR]:
    """Our modules with the weights of the released files, in float32 and evaluation mode.

    Tensors that are float32 already are used as they are, not copied: training the modules writes into them.

    Args:
        vae_state_dict: of the released tokenizer, or a checkpoint of the reference's trainer, which has both.
        var_state_dict: of a released transformer, or such a checkpoint.
        scales: sides of the token maps that both were trained with.
        num_heads: None reads it off the attention temperatures, or takes the depth where there are none.
        phi_ratio: r of the tokenizer's phi(h) = (1 - r) h + r conv(h), the absolute value of the reference's
            quant_resi, which no tensor shows. None: 0.5, as in the released one; 0 where there is no phi convolution.
        cosine: the tokenizer compares codes by angle (the reference's using_znorm), which no tensor shows either.

    Raises InputError: keys missing or left over, shapes that do not fit: nothing is dropped silently.
    """
    vqvae = load_official_tokenizer(vae_state_dict, scales, phi_ratio, cosine)
    return vqvae, load_official_var(var_state_dict, scales, num_heads)


def load_official_tokenizer(
    state: Mapping[str, Any],
    scales: tuple[int, ...] = SCALES_256.sides,
    phi_ratio: float | None = None,
    cosine: bool = False,
) -> VQVAE:
    """The tokenizer's half of load_official."""
    state = find_state(state, TOKENIZER_ENTRIES)
    config = tokenizer_config(state, _check_sides(scales), phi_ratio, cosine)
    share_quant_resi, _ = _read_phi(state)
    return load_converted(VQVAE, config, state, lambda key: official_tokenizer_key(key, config, share_quant_resi))


def load_official_var(
    state: Mapping[str, Any], scales: tuple[int, ...] = SCALES_256.sides, num_heads: int | None = None
) -> VAR:
    """The transformer's half of load_official."""
    state = find_state(state, VAR_ENTRIES)
    config = var_config(state, _check_sides(scales), num_heads)
    return load_converted(VAR, config, state, official_var_key, _derived_buffers(config))


def _check_sides(scales: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(scales, Iterable):
        raise InputError(f"scales={abbreviate(scales)} must be a list of sides, such as [1, 2, 4, 8]")
    return tuple(check_whole_number("scales", side, 1) for side in scales)


def to_official(
    vqvae: VQVAE, model: VAR, share_quant_resi: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of load_official: state dicts with the released files' names, shapes and derived buffers.

    Args:
        share_quant_resi: with which the reference builds its tokenizer: 0 for one phi convolution per scale, else
            their number. None: their number.

    Raises InputError: another number of phi convolutions than share_quant_resi says.
    """
    config, share = vqvae.config, vqvae.config.num_phi if share_quant_resi is None else share_quant_resi
    if config.phi_ratio and (share or len(config.scales)) != config.num_phi:
        raise InputError(f"share_quant_resi={share} does not go with num_phi={config.num_phi}: leave it out")
    vae_state = {official_tokenizer_key(key, config, share): value for key, value in vqvae.state_dict().items()}
    var_state = {}
    for key, value in model.state_dict().items():
        if key.endswith("log_scale"):
            value = value.reshape(1, -1, 1, 1)
        elif key.endswith("offset"):
            value = value[None, None]
        var_state[official_var_key(key)] = value
    return vae_state, var_state | _derived_buffers(model.config)
