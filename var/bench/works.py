"""The works whose speed is measured, on random weights: sampling, encoding, decoding, training steps, features.

B batch, L tokens of all scales, S side of the images in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.bench.sizes import ModelSizes, VARSizes
from var.bench.steps import tokenizer_step, transformer_step
from var.models.aim import AIM, AIMConfig
from var.models.packed import pack, pack_tokenizer
from var.models.var import VAR
from var.sampling.compiled import compile_tokenizer, compile_transformer
from var.sampling.generate import generate
from var.sampling.params import FOR_METRICS
from var.utils.device import dtype_beside_int8

Action = Callable[[], object]
SAMPLE = "sample"  # the one work that has int8


class Setting(NamedTuple):
    """How a work is run."""

    batch: int
    dtype: torch.dtype
    device: torch.device
    compiled: bool


def works_of(sizes: ModelSizes) -> list[str]:
    """List the works that a model of these sizes does."""
    return ["features"] if isinstance(sizes, AIMConfig) else list(_OF_VAR)


def check_work(name: str, sizes: ModelSizes, dtypes: Sequence[torch.dtype], compiled: Sequence[bool]) -> None:
    """Raise InputError unless a model of these sizes does that work, in these types, compiled or not."""
    if name not in works_of(sizes):
        kind = "an AIM" if isinstance(sizes, AIMConfig) else "a VAR"
        raise InputError(f"{name!r} is no work of {kind}: take {', '.join(works_of(sizes))} or all")
    if torch.int8 in dtypes and (name != SAMPLE or any(compiled)):
        done = f"{name}, compiled," if any(compiled) else name
        raise InputError(f"{done} is not done in int8: take float32 or bfloat16, or {SAMPLE} without --compile")


def build_work(name: str, sizes: ModelSizes, setting: Setting) -> Action:
    """Build the networks and inputs of a work, from the seed 0; each call does it once, on a whole batch."""
    torch.manual_seed(0)
    return _features(sizes, setting) if isinstance(sizes, AIMConfig) else _OF_VAR[name](sizes, setting)


def _sample(sizes: VARSizes, setting: Setting) -> Action:
    """Guided, at the defaults of measurements, decoded."""
    with setting.device:
        model = VAR(sizes.transformer).eval().cast(setting.dtype)
    vqvae = _tokenizer(sizes, setting)
    if setting.compiled:
        compile_transformer(model)
    else:
        pack(model.blocks)
    labels = [i % sizes.transformer.num_classes for i in range(setting.batch)]
    sampling = replace(FOR_METRICS, top_k=min(FOR_METRICS.top_k, sizes.transformer.vocab_size))
    return lambda: generate(model, vqvae, labels, sampling)


def _tokenizer(sizes: VARSizes, setting: Setting) -> VQVAE:
    with setting.device:
        vqvae = VQVAE(sizes.tokenizer).eval()
    vqvae.cast(dtype_beside_int8() if setting.dtype == torch.int8 else setting.dtype)
    if setting.compiled:
        compile_tokenizer(vqvae)
    else:
        pack_tokenizer(vqvae)
    return vqvae


def _encode(sizes: VARSizes, setting: Setting) -> Action:
    vqvae, side = _tokenizer(sizes, setting), sizes.tokenizer.image_side
    images = torch.rand(setting.batch, 3, side, side, device=setting.device) * 2 - 1
    return torch.inference_mode()(lambda: vqvae.encode(images))


def _decode(sizes: VARSizes, setting: Setting) -> Action:
    vqvae = _tokenizer(sizes, setting)
    shape = (setting.batch, vqvae.scales.total)
    tokens = torch.randint(sizes.tokenizer.vocab_size, shape, device=setting.device)
    return torch.inference_mode()(lambda: vqvae.decode(tokens))


def _train(sizes: VARSizes, setting: Setting) -> Action:
    return transformer_step(sizes, *setting)


def _train_tokenizer(sizes: VARSizes, setting: Setting) -> Action:
    return tokenizer_step(sizes, *setting)


def _features(sizes: AIMConfig, setting: Setting) -> Action:
    """Features of the blocks that the probe reads, and its logits."""
    with setting.device:
        model = AIM(sizes).eval().cast(setting.dtype)
    if setting.compiled:
        model.compile()
    images = torch.randn(setting.batch, 3, sizes.image_size, sizes.image_size, device=setting.device)
    return torch.inference_mode()(lambda: model(images))


_OF_VAR: dict[str, Callable[[VARSizes, Setting], Action]] = {
    SAMPLE: _sample,
    "encode": _encode,
    "decode": _decode,
    "train": _train,
    "train-tokenizer": _train_tokenizer,
}
