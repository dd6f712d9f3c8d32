"""Drawing of tokens by any model: what is given, what comes of it, and the checks of both.

Tokens are indices of a codebook, (B, L) int64, or continuous, (B, L, C) float32: those of the tokenizer.
B batch, K scales, L tokens of all scales, C latent channels, H side of the last scale.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.models.conditional import ConditionalTransformer


class Drawn(NamedTuple):
    """Generated tokens, not decoded; K and L are as in Generated."""

    tokens: Tensor  # (B, L) int64, or (B, L, C) float32
    f_hats: list[Tensor]  # K times (B, C, H, H)


class ForcedTokens(NamedTuple):
    """Tokens that are given: the others are generated to fit them (VAR paper, section 4.4)."""

    tokens: Tensor  # (B, L) int64, or (B, L, C) float32; those that are not forced do not matter
    forced: Tensor  # (B, L) bool


def index_within_class(labels: list[int]) -> list[int]:
    """The index of each entry among those equal to it: [7, 3, 7] -> [0, 0, 1]."""
    counters: defaultdict[int, Iterator[int]] = defaultdict(count)
    return [next(counters[label]) for label in labels]


def check_fit(model: ConditionalTransformer, vqvae: VQVAE) -> None:
    """Raise InputError unless the transformer was built for this tokenizer."""
    for name in ("regularization", *model.config.of_tokenizer):
        ours, theirs = getattr(model.config, name), getattr(vqvae.config, name)
        if ours != theirs:
            raise InputError(
                f"the transformer has {name}={ours}, the tokenizer {name}={theirs}: load the one that it was trained on"
            )


def check_labels(labels: list[int], indices: list[int], num_classes: int) -> None:
    """Raise InputError for an empty list, a label outside 0..num_classes (the null class), indices that do not fit."""
    if not labels:
        raise InputError("no labels given: pass at least one class")
    for label in labels:
        if not (isinstance(label, Integral) and 0 <= label <= num_classes):
            raise InputError(f"label {label!r} must be in 0..{num_classes - 1}, or {num_classes} for no class")
    if len(indices) != len(labels) or min(indices) < 0:
        raise InputError(f"indices={indices} must be {len(labels)} numbers from 0 on, one a label")


def check_forced(given: ForcedTokens, vqvae: VQVAE, batch: int) -> ForcedTokens:
    """Return the forced tokens on the tokenizer's device, 0 where none is forced and it is none of the tokenizer's.

    Raises:
        InputError: not of the tokenizer's shape and kind, not booleans, or forced tokens that are none of the
            codebook's or not finite.
    """
    tokens, forced = given
    expected = (batch, *vqvae.token_shape)
    if tokens.shape != expected or forced.shape != expected[:2] or forced.dtype != torch.bool:
        raise InputError(
            f"forced tokens of shape {tuple(tokens.shape)} and where they are, {forced.dtype} of shape "
            f"{tuple(forced.shape)}, given: {expected} needed, and booleans {expected[:2]}"
        )
    device = vqvae.token_weights[0].device
    tokens, forced = tokens.to(device, vqvae.token_dtype), forced.to(device)
    if vqvae.is_continuous:
        inside = tokens.isfinite().all(dim=-1)  # (B, L)
        if not (inside | ~forced).all():
            raise InputError("forced tokens must be finite")
        return ForcedTokens(tokens.where(inside[..., None], 0), forced)
    inside = (tokens >= 0) & (tokens < vqvae.config.vocab_size)
    if not (inside | ~forced).all():
        raise InputError(f"forced tokens must be in 0..{vqvae.config.vocab_size - 1}, the codebook's indices")
    return ForcedTokens(tokens.where(inside, 0), forced)


def guided_rows(model: ConditionalTransformer, labels: list[int], cfg: float) -> Tensor:
    """Return the labels to predict tokens for, with guidance also B times the null class after them, (2B,) int64.

    Guidance is left out, (B,), if cfg is 0 or all labels are the null class.
    """
    null = model.config.num_classes
    guidable = cfg > 0 and any(label != null for label in labels)
    return torch.tensor(labels + [null] * len(labels) if guidable else labels, device=model.position.device)
