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


@torch.inference_mode()
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
    check_fit(model, vqvae)
    check_labels(labels, model.config.num_classes)
    check_sampling(cfg, top_k, top_p)
    streams = RandomStreams(seed, labels, occurrences(labels) if indices is None else indices)

    batch, scales, quantizer, device = len(labels), model.scales, vqvae.quantizer, model.position.device
    rows = labels if cfg == 0 else labels + [model.config.num_classes] * batch
    condition = model.condition(torch.tensor(rows, device=device))
    cache = model.new_cache(len(rows))

    features: Tensor | None = None
    f_hat = torch.zeros((), device=device)
    tokens: list[Tensor] = []
    f_hats: list[Tensor] = []
    for k, length in enumerate(scales.lengths):
        logits = model.step(k, features, condition, cache)
        if cfg > 0:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, guidance_at(cfg, k, len(scales)))
        logits = filter_logits(logits, top_k, top_p)
        if smooth:
            noise = streams.uniform(length, model.config.vocab_size)
            weights = smooth_choice(logits, noise, k, len(scales))
            tokens.append(weights.argmax(dim=-1))
            codes = weights @ quantizer.codebook.weight
        else:
            tokens.append(draw(logits, streams.uniform(length)))
            codes = quantizer.codebook(tokens[-1])
        f_hat = f_hat + quantizer.contribution(codes, k)
        f_hats.append(f_hat)
        if k + 1 < len(scales):
            features = quantizer.next_input(f_hat, k + 1)
            features = features if cfg == 0 else features.repeat(2, 1, 1)
    return Generated(scales.join(tokens), vqvae.pixels(f_hat).clamp(-1, 1), f_hats)


def check_fit(model: VAR, vqvae: VQVAE) -> None:
    """Raise InputError unless the transformer was built for this tokenizer."""
    for name in ("scales", "vocab_size", "latent_dim"):
        ours, theirs = getattr(model.config, name), getattr(vqvae.config, name)
        if ours != theirs:
            raise InputError(
                f"the transformer has {name}={ours}, the tokenizer {name}={theirs}: load the one that it was trained on"
            )


def check_labels(labels: list[int], num_classes: int) -> None:
    """Raise InputError for an empty list or a label outside 0..num_classes (the last is the null class)."""
    if not labels:
        raise InputError("no labels given: pass at least one class")
    for label in labels:
        if not 0 <= label <= num_classes:
            raise InputError(f"label {label} must be in 0..{num_classes - 1}, or {num_classes} for no class")
