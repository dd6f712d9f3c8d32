"""The loop over scales: draw a token map, add it to f_hat, feed it back for the next scale (VAR paper, section 3.2).

B batch, K scales, L tokens of all scales, C latent channels, V codebook size, H side of the last scale.
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.model import VAR
from var.sampling import (
    RandomStreams,
    check_sampling,
    draw,
    filter_logits,
    guidance_at,
    guide,
    smooth_choice,
)


class Generated(NamedTuple):
    """What the loop drew."""

    tokens: Tensor  # (B, L) int64
    images: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    f_hats: list[Tensor]  # K times (B, C, H, H): the sum after each scale; decode one to see the picture grow


def occurrences(labels: list[int]) -> list[int]:
    """The index of each entry among those equal to it: [7, 3, 7] -> [0, 0, 1]."""
    seen: Counter[int] = Counter()
    indices = []
    for label in labels:
        indices.append(seen[label])
        seen[label] += 1
    return indices


def generate(
    model: VAR,
    vqvae: VQVAE,
    labels: list[int] | Tensor,
    cfg: float = 1.5,
    top_k: int = 900,
    top_p: float = 0.96,
    seed: int = 0,
    smooth: bool = False,
    indices: list[int] | None = None,
) -> Generated:
    """Draw one picture a label.

    Args:
        model: the transformer, in evaluation mode.
        vqvae: the tokenizer that it was trained on.
        labels: B class labels; model.config.num_classes is the null class.
        cfg: guidance at the last scale, rising linearly from 0; 0 switches it off and halves the work.
        top_k: keep that many of the best tokens; 0 keeps all; more than the codebook has keeps all too.
        top_p: of these keep the smallest set whose probability exceeds it; 0 keeps all.
        seed: together with the label and the index it fixes a picture's random draws.
        smooth: mix codewords by a Gumbel softmax; smoother pictures, not for metrics. The tokens returned are
            those of largest weight; the pictures show the mixtures.
        indices: B numbers that tell pictures of one class apart; None counts them up within each class.

    Raises:
        InputError: an option out of range, an unknown label, a tokenizer that does not fit the transformer.
    """
    labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    indices = occurrences(labels) if indices is None else indices
    check_fit(model, vqvae)
    check_labels(labels, indices, model.config.num_classes)
    check_sampling(cfg, top_k, top_p)
    if model.training or vqvae.training:
        raise InputError("the model is in training mode: call model.eval() and vqvae.eval() first")
    streams = RandomStreams(seed, labels, indices)

    scales, quantizer, device = model.scales, vqvae.quantizer, model.position.device
    rows = labels if cfg == 0 else labels + [model.config.num_classes] * len(labels)
    features: Tensor | None = None
    f_hat = torch.zeros((), device=device)
    tokens: list[Tensor] = []
    f_hats: list[Tensor] = []
    with torch.inference_mode():
        condition = model.condition(torch.tensor(rows, device=device))
        cache = model.new_cache(len(rows))
        for k in range(len(scales)):
            logits = model.step(k, features, condition, cache)
            if cfg > 0:
                conditional, unconditional = logits.chunk(2)
                logits = guide(conditional, unconditional, guidance_at(cfg, k, len(scales)))
            logits = filter_logits(logits, top_k, top_p)
            if smooth:
                drawn, codes = choose_smoothly(logits, streams, quantizer.codebook.weight, k, len(scales))
            else:
                drawn, codes = choose(logits, streams, quantizer.codebook.weight)
            f_hat = f_hat + quantizer.contribution(codes, k)
            tokens.append(drawn)
            f_hats.append(f_hat)
            if k + 1 < len(scales):
                features = quantizer.next_input(f_hat, k + 1)
                features = features if cfg == 0 else features.repeat(2, 1, 1)
        pixels = vqvae.pixels(f_hat)
    # Made outside the block, the results are ordinary tensors, which other modules take with gradients on too.
    return Generated(scales.join(tokens), pixels.clamp(-1, 1), [f_hat.clone() for f_hat in f_hats])


def choose(logits: Tensor, streams: RandomStreams, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Draw tokens: logits (B, L, V) and codebook (V, C) -> tokens (B, L), their codewords (B, L, C)."""
    tokens = draw(logits, streams.uniform(logits.shape[1]))
    return tokens, codebook[tokens]


def choose_smoothly(
    logits: Tensor, streams: RandomStreams, codebook: Tensor, k: int, num_scales: int
) -> tuple[Tensor, Tensor]:
    """Mix codewords: the same shapes; the tokens are those of largest weight."""
    weights = smooth_choice(logits, streams.uniform(*logits.shape[1:]), k, num_scales)
    return weights.argmax(dim=-1), weights @ codebook


def check_fit(model: VAR, vqvae: VQVAE) -> None:
    """Raise InputError unless the transformer was built for this tokenizer."""
    for name in ("scales", "vocab_size", "latent_dim"):
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
        if not 0 <= label <= num_classes:
            raise InputError(f"label {label} must be in 0..{num_classes - 1}, or {num_classes} for no class")
    if len(indices) != len(labels) or min(indices) < 0:
        raise InputError(f"indices={indices} must be {len(labels)} numbers from 0 on, one a label")
