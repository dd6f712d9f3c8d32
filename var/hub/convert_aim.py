"""Released AIM files <-> our modules: a map of key names, strict in both directions.

The released files come from the reference implementation of arXiv 2401.08541. Sizes are read off the tensors.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from tokenizer.errors import InputError
from var.hub.presets import AIM_RELEASED, best_layers, choose_layers
from var.hub.state_dicts import count_numbers, find_state, load_converted, rename, shape_of
from var.models.aim import AIM, AIMConfig, Encoder, EncoderConfig
from var.utils.weights import StateDict

# Our name -> theirs, of whole keys or of what stands before the last dot.
_KEYS = {
    "encoder.patchify": "preprocessor.patchifier.proj",
    "encoder.patch_norm": "preprocessor.patchifier.norm",
    "encoder.norm": "trunk.post_trunk_norm",
    "probe.norm": "head.bn",
    "probe.query": "head.cls_token",
    "probe.key": "head.k",
    "probe.value": "head.v",
    "probe.classify": "head.linear",
}
_BLOCK_KEYS = {
    "norm_attention": "norm_1",
    "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj",
    "norm_mlp": "norm_2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def official_aim_key(key: str) -> str:
    """The released name of one of AIM's parameters or buffers."""
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", key):
        return f"trunk.blocks.{match[1]}.{rename(match[2], _BLOCK_KEYS)}"
    return rename(key, _KEYS)


def aim_config(
    state: StateDict, img_size: int | None, num_heads: int | None, probe_layers: str | Sequence[int]
) -> AIMConfig:
    """Sizes of a released AIM, read off its tensors; for the arguments see load_official_aim.

    Raises InputError: a tensor that determines a size is missing, or an unknown number of heads.
    """
    encoder = encoder_config(state, img_size, num_heads)
    return AIMConfig(
        **asdict(encoder),
        probe_layers=choose_layers(probe_layers, encoder.depth, best_layers(encoder)),
        num_classes=shape_of(state, "head.linear.weight", 2)[0],
    )


def encoder_config(state: StateDict, img_size: int | None, num_heads: int | None) -> EncoderConfig:
    """Sizes of a released encoder, read off its tensors; for the arguments see load_official_aim.

    Raises InputError: a tensor that determines a size is missing, or an unknown number of heads.
    """
    width, _, _, patch_size = shape_of(state, "preprocessor.patchifier.proj.weight", 4)
    return EncoderConfig(
        image_size=EncoderConfig.image_size if img_size is None else img_size,
        patch_size=patch_size,
        width=width,
        depth=count_numbers(state, r"trunk\.blocks\.(\d+)\."),
        heads=_released_heads(width) if num_heads is None else num_heads,
        mlp_ratio=shape_of(state, "trunk.blocks.0.mlp.fc1.weight", 2)[0] / width,
    )


def _released_heads(width: int) -> int:
    known = {released.config.width: released.config.heads for released in AIM_RELEASED.values()}
    if width not in known:
        widths = ", ".join(map(str, known))
        reason = (
            f"no tensor determines the number of heads, and no released model has width {width} ({widths} are known)"
        )
        raise InputError(f"{reason}: pass num_heads")
    return known[width]


def load_official_aim(
    state_dict: Mapping[str, Any],
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
        probe_layers: the blocks that the head was trained on, which no tensor shows: "last" for the last six, "best"
            for those of the paper (see `var.hub.presets.choose_layers`), or a list of blocks counted from 0.

    Raises InputError: keys missing or left over, shapes that do not fit: nothing is dropped silently; a number of heads
    or layers that are not known for these sizes.
    """
    state_dict = find_state(state_dict)
    config = aim_config(state_dict, img_size, num_heads, probe_layers)
    return load_converted(AIM, config, state_dict, official_aim_key)


def load_official_encoder(
    state_dict: Mapping[str, Any], img_size: int | None = None, num_heads: int | None = None
) -> Encoder:
    """The encoder's half of load_official_aim, of a released backbone with or without a head."""
    state = {key: value for key, value in find_state(state_dict).items() if not key.startswith("head.")}
    config = encoder_config(state, img_size, num_heads)
    return load_converted(Encoder, config, state, lambda key: official_aim_key(f"encoder.{key}"))


def to_official_aim(model: AIM) -> dict[str, Tensor]:
    """The inverse of load_official_aim: a state dict with the released files' names and shapes."""
    return {official_aim_key(key): value for key, value in model.state_dict().items()}
