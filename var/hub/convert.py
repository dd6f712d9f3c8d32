"""Released VAR and AIM files <-> our modules: maps of key names, strict in both directions.

The released files come from the reference implementations of arXiv 2404.02905 and 2401.08541. Sizes are read off the
tensors.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.scales import SCALES_256, Scales
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.presets import AIM_RELEASED, best_layers, choose_layers
from var.models.aim import AIM, AIMConfig, EncoderConfig
from var.models.masks import block_causal
from var.models.var import VAR, VARConfig

StateDict = Mapping[str, Tensor]

# Our name -> theirs, for whole keys, and by substitution inside keys.
_RESIDUAL = {"shortcut": "nin_shortcut"}
_ATTENTION = {"proj": "proj_out"}
_VAR_KEYS = {
    "class_embedding.weight": "class_emb.weight",
    "start_position": "pos_start",
    "position": "pos_1LC",
    "level_embedding.weight": "lvl_embed.weight",
    "feature_in.weight": "word_embed.weight",
    "feature_in.bias": "word_embed.bias",
    "shared_adaln.linear.weight": "shared_ada_lin.1.weight",
    "shared_adaln.linear.bias": "shared_ada_lin.1.bias",
    "head_adaln.linear.weight": "head_nm.ada_lin.1.weight",
    "head_adaln.linear.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
_BLOCK_KEYS = {
    "adaln.linear.weight": "ada_lin.1.weight",
    "adaln.linear.bias": "ada_lin.1.bias",
    "adaln.offset": "ada_gss",
    "attention.qkv.weight": "attn.mat_qkv.weight",
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "attention.log_scale": "attn.scale_mul_1H11",
    "attention.proj.weight": "attn.proj.weight",
    "attention.proj.bias": "attn.proj.bias",
    "mlp.up.weight": "ffn.fc1.weight",
    "mlp.up.bias": "ffn.fc1.bias",
    "mlp.down.weight": "ffn.fc2.weight",
    "mlp.down.bias": "ffn.fc2.bias",
}
_TOKENIZER_KEYS = {
    "quantizer.codebook.weight": "quantize.embedding.weight",
    "quantizer.usage": "quantize.ema_vocab_hit_SV",
}
_AIM_PARTS = {
    "encoder.patchify": "preprocessor.patchifier.proj",
    "encoder.patch_norm": "preprocessor.patchifier.norm",
    "encoder.norm": "trunk.post_trunk_norm",
    "probe.norm": "head.bn",
    "probe.key": "head.k",
    "probe.value": "head.v",
    "probe.classify": "head.linear",
}
_AIM_BLOCK_PARTS = {
    "norm_attention": "norm_1",
    "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj",
    "norm_mlp": "norm_2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def official_tokenizer_key(key: str, config: TokenizerConfig) -> str:
    """The released name of one of VQVAE's parameters or buffers."""
    if key in _TOKENIZER_KEYS:
        return _TOKENIZER_KEYS[key]
    if match := re.fullmatch(r"quantizer\.phi\.(\d+)\.(.+)", key):
        return f"quantize.quant_resi.qresi_ls.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.middle\.([012])\.(.+)", key):
        place = ("block_1", "attn_1", "block_2")[int(match[2])]
        return f"{match[1]}.mid.{place}.{_official_layer(match[3])}"
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
    place = "down" if side == "encoder" else "up"
    if number == last:  # the lowest level alternates residual blocks and attention
        kind = ("block", "attn")[layer % 2]
        return f"{side}.{place}.{number}.{kind}.{layer // 2}.{_official_layer(rest)}"
    return f"{side}.{place}.{number}.block.{layer}.{_official_layer(rest)}"


def _official_layer(rest: str) -> str:
    name, _, tail = rest.partition(".")
    return f"{(_RESIDUAL | _ATTENTION).get(name, name)}.{tail}"


def official_var_key(key: str) -> str:
    """The released name of one of VAR's parameters."""
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        return f"blocks.{match[1]}.{_BLOCK_KEYS[match[2]]}"
    return _VAR_KEYS[key]


def official_aim_key(key: str) -> str:
    """The released name of one of AIM's parameters or buffers."""
    if key == "probe.query":
        return "head.cls_token"
    part, _, tensor = key.rpartition(".")
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", part):
        return f"trunk.blocks.{match[1]}.{_AIM_BLOCK_PARTS[match[2]]}.{tensor}"
    return f"{_AIM_PARTS[part]}.{tensor}"


def _derived_buffers(model: VAR) -> dict[str, Tensor]:
    """Buffers of the released VAR files that follow from the sizes."""
    mask = block_causal(model.scales)
    buffers = {
        "lvl_1L": model.scales.levels()[None],
        "attn_bias_for_masking": torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None],
    }
    for i in range(model.config.depth):
        buffers[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(model.config.width)
    return buffers


def tokenizer_config(state: StateDict, scales: tuple[int, ...]) -> TokenizerConfig:
    """Sizes of a released tokenizer, read off its tensors.

    Raises:
        InputError: a tensor that tells a size is missing.
    """
    _check_state(state)
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    base_width = _shape(state, "encoder.conv_in.weight", 4)[0]
    widths = [_shape(state, f"encoder.down.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)]
    vocab_size, latent_dim = _shape(state, "quantize.embedding.weight", 2)
    return TokenizerConfig(
        scales=scales,
        vocab_size=vocab_size,
        latent_dim=latent_dim,
        base_width=base_width,
        multipliers=tuple(width // base_width for width in widths),
        blocks=_count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        num_phi=_count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
    )


def var_config(state: StateDict, scales: tuple[int, ...], num_heads: int | None) -> VARConfig:
    """Sizes of a released transformer, read off its tensors; num_heads None: from the attention scales, else the depth.

    Raises:
        InputError: a tensor that tells a size is missing, or the number of tokens is not that of the scales.
    """
    _check_state(state)
    depth = _count(state, r"blocks\.(\d+)\.")
    length = _shape(state, "pos_1LC", 3)[1]
    if length != Scales(scales).total:
        raise InputError(
            f"the transformer was built for {length} tokens, the scales {list(scales)} have {Scales(scales).total}: "
            "pass the scales that it was trained with"
        )
    vocab_size, width = _shape(state, "head.weight", 2)
    temperatures = state.get("blocks.0.attn.scale_mul_1H11")
    if num_heads is None:
        num_heads = depth if temperatures is None else temperatures.numel()
    return VARConfig(
        depth=depth,
        width=width,
        heads=num_heads,
        scales=scales,
        vocab_size=vocab_size,
        latent_dim=_shape(state, "word_embed.weight", 2)[1],
        num_classes=_shape(state, "class_emb.weight", 2)[0] - 1,
        mlp_ratio=_shape(state, "blocks.0.ffn.fc1.weight", 2)[0] / width,
        qk_norm=temperatures is not None,
        shared_adaln="shared_ada_lin.1.weight" in state,
    )


def load_official(
    vae_state_dict: StateDict,
    var_state_dict: StateDict,
    scales: tuple[int, ...] = SCALES_256.sides,
    num_heads: int | None = None,
) -> tuple[VQVAE, VAR]:
    """Our modules with the weights of the released files, in float32 and evaluation mode.

    Tensors that are float32 already are used as they are, not copied: training the modules writes into them.

    Args:
        vae_state_dict: of the released tokenizer.
        var_state_dict: of a released transformer.
        scales: sides of the token maps that both were trained with.
        num_heads: None reads it off the attention temperatures, or takes the depth where there are none.

    Raises:
        InputError: keys missing or left over, shapes that do not fit: nothing is dropped silently.
    """
    return load_official_tokenizer(vae_state_dict, scales), load_official_var(var_state_dict, scales, num_heads)


def load_official_tokenizer(state: StateDict, scales: tuple[int, ...] = SCALES_256.sides) -> VQVAE:
    """The tokenizer's half of load_official."""
    config = tokenizer_config(state, tuple(scales))
    with torch.device("meta"):
        vqvae = VQVAE(config)
    names = {key: official_tokenizer_key(key, config) for key in vqvae.state_dict()}
    _load(vqvae, state, names, derived={})
    return vqvae


def load_official_var(
    state: StateDict, scales: tuple[int, ...] = SCALES_256.sides, num_heads: int | None = None
) -> VAR:
    """The transformer's half of load_official."""
    config = var_config(state, tuple(scales), num_heads)
    with torch.device("meta"):
        model = VAR(config)
    names = {key: official_var_key(key) for key in model.state_dict()}
    _load(model, state, names, derived=_derived_buffers(model))
    return model


def to_official(vqvae: VQVAE, model: VAR) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of load_official: state dicts with the released files' names, shapes and derived buffers."""
    vae_state = {official_tokenizer_key(key, vqvae.config): value for key, value in vqvae.state_dict().items()}
    var_state = {}
    for key, value in model.state_dict().items():
        if key.endswith("log_scale"):
            value = value.reshape(1, -1, 1, 1)
        elif key.endswith("offset"):
            value = value[None, None]
        var_state[official_var_key(key)] = value
    return vae_state, var_state | _derived_buffers(model)


def aim_config(
    state: StateDict, img_size: int | None, num_heads: int | None, probe_layers: str | Sequence[int]
) -> AIMConfig:
    """Sizes of a released AIM, read off its tensors; for the arguments see load_official_aim.

    Raises:
        InputError: a tensor that tells a size is missing, or a number of heads that nothing tells.
    """
    _check_state(state)
    width, _, _, patch_size = _shape(state, "preprocessor.patchifier.proj.weight", 4)
    encoder = EncoderConfig(
        image_size=EncoderConfig.image_size if img_size is None else img_size,
        patch_size=patch_size,
        width=width,
        depth=_count(state, r"trunk\.blocks\.(\d+)\."),
        heads=_released_heads(width) if num_heads is None else num_heads,
        mlp_ratio=_shape(state, "trunk.blocks.0.mlp.fc1.weight", 2)[0] / width,
    )
    return AIMConfig(
        **asdict(encoder),
        probe_layers=choose_layers(probe_layers, encoder.depth, best_layers(encoder)),
        num_classes=_shape(state, "head.linear.weight", 2)[0],
    )


def _released_heads(width: int) -> int:
    known = {released.config.width: released.config.heads for released in AIM_RELEASED.values()}
    if width not in known:
        raise InputError(
            f"no tensor tells the number of heads, and no released model has width {width} "
            f"({', '.join(map(str, known))} are known): pass num_heads"
        )
    return known[width]


def load_official_aim(
    state_dict: StateDict,
    img_size: int | None = None,
    num_heads: int | None = None,
    probe_layers: str | Sequence[int] = "last",
) -> AIM:
    """Our AIM with the weights of a released backbone and head, in float32 and evaluation mode.

    Tensors that are float32 already are used as they are, not copied.

    Args:
        state_dict: of backbone and head together.
        img_size: side of the images in pixels; positions follow from it. None: 224.
        num_heads: None: that of the released model of this width.
        probe_layers: the blocks that the head was trained on, which no tensor tells: "last" for the last six, "best"
            for those of the paper (see `var.hub.presets.choose_layers`), or a list of blocks counted from 0.

    Raises:
        InputError: keys missing or left over, shapes that do not fit: nothing is dropped silently; a number of heads
            or layers that are not known for these sizes.
    """
    config = aim_config(state_dict, img_size, num_heads, probe_layers)
    with torch.device("meta"):
        model = AIM(config)
    _load(model, state_dict, {key: official_aim_key(key) for key in model.state_dict()}, derived={})
    return model


def to_official_aim(model: AIM) -> dict[str, Tensor]:
    """The inverse of load_official_aim: a state dict with the released files' names and shapes."""
    return {official_aim_key(key): value for key, value in model.state_dict().items()}


def _load(module: torch.nn.Module, state: StateDict, names: dict[str, str], derived: StateDict) -> None:
    missing = sorted(set(names.values()) - set(state))
    unknown = sorted(set(state) - set(names.values()) - set(derived))
    if missing or unknown:
        raise InputError(
            f"not a released {type(module).__name__} file: {len(missing)} keys missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    for name in sorted(set(state) & set(derived)):  # nothing is left out that says something else than the sizes do
        if not torch.equal(state[name].to(derived[name]), derived[name]):
            raise InputError(
                f"{name} is not what the sizes and scales of this model give: pass the scales of its training"
            )
    ours = module.state_dict()
    converted = {}
    for key, name in names.items():
        value = state[name]
        if value.numel() != ours[key].numel() or value.squeeze().shape != ours[key].squeeze().shape:
            raise InputError(f"{name} has shape {tuple(value.shape)}, {tuple(ours[key].shape)} expected")
        converted[key] = value.reshape(ours[key].shape).to(ours[key].dtype)
    module.load_state_dict(converted, strict=True, assign=True)
    module.eval().requires_grad_(True)


def _check_state(state: object) -> None:
    if not isinstance(state, Mapping):
        raise InputError(f"not a released file: a {type(state).__name__} is no state dict of tensors by name")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            told = f"{key!r} is the key of a {type(value).__name__}"
            raise InputError(f"not a released file: it must hold tensors by name, and {told}")


def _shape(state: StateDict, key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that tells sizes."""
    if key not in state:
        raise InputError(f"not a released file: the key {key!r} is missing")
    if state[key].ndim != dimensions:
        raise InputError(f"{key} has {state[key].ndim} dimensions, {dimensions} expected: not a released file")
    return tuple(state[key].shape)


def _count(state: StateDict, pattern: str) -> int:
    """How many different numbers stand in the pattern's group, over all keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
