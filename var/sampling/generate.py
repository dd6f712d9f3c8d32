"""The loop over scales: draw a token map, add it to f_hat, feed it back for the next scale (VAR paper, section 3.2).

B batch, K scales, L tokens of all scales, n of one scale, C latent channels, V codebook size, H side of the last scale,
S side of the images in pixels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError, check_whole_number
from tokenizer.vqvae import VQVAE
from var.models.transformer import KVCache
from var.models.var import VAR, Condition
from var.sampling.logits import (
    RandomStreams,
    cfg_at_scale,
    classifier_free_guidance,
    filter_logits,
    gumbel_softmax,
    sample_tokens,
)
from var.sampling.params import FOR_METRICS, SamplingParams
from var.sampling.refiner import Refiner, check_refiner


class Generated(NamedTuple):
    """Generated tokens and images; with use_scales K and L are those of the scales that are drawn."""

    tokens: Tensor  # (B, L) int64
    images: Tensor  # (B, 3, S, S) float32 in [-1, 1]
    f_hats: list[Tensor]  # K times (B, C, H, H): the sum after each scale; decode one to see the image grow


class Drawn(NamedTuple):
    """Generated tokens, not decoded; K and L are as in Generated."""

    tokens: Tensor  # (B, L) int64
    f_hats: list[Tensor]  # K times (B, C, H, H)


class ForcedTokens(NamedTuple):
    """Tokens that are given: the others are generated to fit them (VAR paper, section 4.4)."""

    tokens: Tensor  # (B, L) int64; those that are not forced do not matter
    forced: Tensor  # (B, L) bool


def index_within_class(labels: list[int]) -> list[int]:
    """The index of each entry among those equal to it: [7, 3, 7] -> [0, 0, 1]."""
    counters: defaultdict[int, Iterator[int]] = defaultdict(count)
    return [next(counters[label]) for label in labels]


def generate(
    model: VAR,
    vqvae: VQVAE,
    labels: list[int] | Tensor,
    sampling: SamplingParams = FOR_METRICS,
    seed: int = 0,
    indices: list[int] | None = None,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
) -> Generated:
    """Generate one image per label; tokens that are forced are kept.

    The forced tokens of a scale replace those sampled, so that every finer scale is sampled to fit them. What is
    sampled elsewhere takes the same random numbers with and without them.

    Args:
        model: the transformer, in evaluation mode.
        vqvae: the tokenizer that it was trained on.
        labels: B class labels; model.config.num_classes is the null class.
        sampling: options of sampling. Guidance is skipped, which halves the work, if cfg is 0 or all labels are the
            null class. With smooth the tokens returned are those of largest weight; the images show the mixtures.
        seed: together with the label and the index it fixes an image's random draws.
        indices: B numbers, different for images of one class; None counts them up within each class.
        forced: tokens that are given; None generates all.
        refiner: another transformer that predicts the fine scales; None: the model predicts all.

    Raises:
        InputError: sampling options that do not fit the transformer, a negative seed, an unknown label, a tokenizer or
            a refiner that does not fit the transformer, forced tokens that do not fit.
    """
    tokens, f_hats = draw_tokens(model, vqvae, labels, sampling, seed, indices, forced, refiner)
    with torch.inference_mode():
        pixels = vqvae.pixels(f_hats[-1])  # (B, 3, S, S)
    # Made outside the block, the images are an ordinary tensor, which other modules take with gradients on too.
    return Generated(tokens, pixels.clamp(-1, 1), f_hats)


def draw_tokens(
    model: VAR,
    vqvae: VQVAE,
    labels: list[int] | Tensor,
    sampling: SamplingParams,
    seed: int = 0,
    indices: list[int] | None = None,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
) -> Drawn:
    """Draw the tokens of `generate`, whose other arguments these are, and decode nothing.

    Raises:
        InputError: as `generate`.
    """
    labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    indices = index_within_class(labels) if indices is None else indices
    check_drawing(model, vqvae, labels, indices, sampling, forced, refiner)
    streams = RandomStreams(seed, labels, indices)

    scales, quantizer, device = model.scales, vqvae.quantizer, model.position.device
    codebook = quantizer.codebook.weight  # (V, C)
    null = model.config.num_classes
    guidable = sampling.cfg > 0 and any(label != null for label in labels)
    rows = torch.tensor(labels + [null] * len(labels) if guidable else labels, device=device)  # (2B,), or (B,)
    given = None if forced is None else forced_at_scales(forced, vqvae, len(labels))
    next_inputs: list[Tensor] = []
    f_hat = torch.zeros((), device=device)
    tokens: list[Tensor] = []
    f_hats: list[Tensor] = []
    with torch.inference_mode():
        running = begin(model, rows)
        kept = sampling.kept_scales(scales.sides)
        refined_from = None if refiner is None else next(k for k in kept if k >= refiner.first_scale)
        for done, k in enumerate(kept):
            guided = guidable and sampling.guides(k)
            if refiner is not None and k == refined_from:
                running = begin(refiner.model, rows)
            active = 2 * len(labels) if guided else len(labels)
            logits, running = predict(running, kept[: done + 1], next_inputs, active)
            if guided:  # (2B, n, V) -> (B, n, V)
                conditional, unconditional = logits.chunk(2)
                strength = cfg_at_scale(sampling.cfg, k, len(scales))
                logits = classifier_free_guidance(conditional, unconditional, strength)
            tokens_k, codes = draw_scale(logits, k, len(scales), sampling, streams, codebook)  # (B, n), (B, n, C)
            if given is not None:
                forced_tokens, is_forced = given[k]  # (B, n) each
                tokens_k = torch.where(is_forced, forced_tokens, tokens_k)
                codes = torch.where(is_forced[..., None], codebook[forced_tokens], codes)
            f_hat = f_hat + quantizer.scale_update(codes, k)  # (B, C, H, H)
            tokens.append(tokens_k)
            f_hats.append(f_hat)
            if k != kept[-1]:
                next_inputs.append(quantizer.next_input(f_hat, kept[done + 1]))  # (B, n of the next scale, C)
    # Made outside the block, the results are ordinary tensors, which other modules take with gradients on too.
    return Drawn(torch.cat(tokens, dim=1), [f_hat.clone() for f_hat in f_hats])


def draw_scale(
    logits: Tensor, k: int, num_scales: int, sampling: SamplingParams, streams: RandomStreams, codebook: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw the tokens of scale k, of num_scales.

    Args:
        logits: (B, n, V), guided.
        streams: of the B images.
        codebook: (V, C).

    Returns:
        The tokens, (B, n), and the codes that they stand for, (B, n, C); with smooth, mixtures of codes.
    """
    if sampling.temperature_at(k) != 1:
        logits = logits / sampling.temperature_at(k)
    logits = filter_logits(logits, sampling.top_k, sampling.top_p)
    if sampling.smooth:
        weights = gumbel_softmax(logits, streams.uniform(*logits.shape[1:]), k, num_scales)  # (B, n, V)
        return weights.argmax(dim=-1), weights @ codebook
    tokens = sample_tokens(logits, streams.uniform(logits.shape[1]))
    return tokens, codebook[tokens]


def generate_batches(
    model: VAR,
    vqvae: VQVAE,
    labels: list[int],
    batch_size: int,
    sampling: SamplingParams = FOR_METRICS,
    seed: int = 0,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
) -> Iterator[Generated]:
    """Generate the images of `generate`, at most batch_size at a time.

    Raises:
        InputError: as `generate`, and for a batch_size that is no whole number from 1 on.
    """
    batch_size = check_whole_number("batch_size", batch_size, 1)
    indices = index_within_class(labels)
    for first in range(0, max(len(labels), 1), batch_size):
        part = slice(first, first + batch_size)
        given = None if forced is None else ForcedTokens(forced.tokens[part], forced.forced[part])
        yield generate(model, vqvae, labels[part], sampling, seed, indices[part], given, refiner)


class Running(NamedTuple):
    """A network at work on a batch of B conditional rows and, with guidance, B unconditional ones after them."""

    model: VAR
    condition: Condition  # of all rows
    cache: KVCache  # of all rows
    filled: int  # number of rows, from the first, that have all scales so far in the cache


def begin(model: VAR, rows: Tensor) -> Running:
    """Put a network to work on rows with these labels, whose cache is empty."""
    return Running(model, model.condition(rows), model.new_cache(len(rows)), 0)


def predict(running: Running, kept: Sequence[int], next_inputs: list[Tensor], rows: int) -> tuple[Tensor, Running]:
    """Predict the last of the scales that are kept for the first `rows` rows.

    Those of them that were not run before, as they begin with a guidance window or a refiner, first have the coarser
    scales written into their cache, in one pass.

    Args:
        running: after the others; rows that are left out here stay out.
        kept: the scales so far, and the one to predict.
        next_inputs: (B, n, C), of each of them but the first.
        rows: B or 2B.

    Returns:
        (rows, n, V) logits, and what runs on.
    """
    model, condition, cache, filled = running

    def repeat(x: Tensor, number: int) -> Tensor:
        return x.repeat(number // len(x), 1, 1)

    *before, k = kept
    cached = sum(model.scales.lengths[earlier] for earlier in before)
    if before and filled < rows:
        coarser = torch.cat(next_inputs, dim=1)[:, : cached - 1]
        new = slice(filled, rows)
        model.prefill(before, repeat(coarser, rows - filled), condition.select(new), cache.select(new))
    now = slice(rows)
    next_input = repeat(next_inputs[-1], rows) if next_inputs else None
    logits = model.step(k, next_input, condition.select(now), cache.select(now), cached)
    return logits, running._replace(filled=rows)


def forced_at_scales(given: ForcedTokens, vqvae: VQVAE, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Forced tokens and where they are, (B, side * side) each, scale by scale.

    Raises:
        InputError: not of shape (B, L), not booleans, or forced tokens that are none of the codebook's.
    """
    tokens, forced = given
    expected = (batch, vqvae.scales.total)
    if tokens.shape != expected or forced.shape != expected or forced.dtype != torch.bool:
        raise InputError(
            f"forced tokens of shape {tuple(tokens.shape)} and where they are, {forced.dtype} of shape "
            f"{tuple(forced.shape)}, given: {expected} needed, and booleans"
        )
    device = vqvae.quantizer.codebook.weight.device
    tokens, forced = tokens.to(device), forced.to(device)
    inside = (tokens >= 0) & (tokens < vqvae.config.vocab_size)
    if not (inside | ~forced).all():
        raise InputError(f"forced tokens must be in 0..{vqvae.config.vocab_size - 1}, the codebook's indices")
    tokens = tokens.where(inside, 0)
    return list(zip(vqvae.scales.split(tokens), vqvae.scales.split(forced), strict=True))


def check_drawing(
    model: VAR,
    vqvae: VQVAE,
    labels: list[int],
    indices: list[int],
    sampling: SamplingParams,
    forced: ForcedTokens | None,
    refiner: Refiner | None,
) -> None:
    """Raise InputError for arguments of `generate` that do not fit together, or a model in training mode."""
    check_fit(model, vqvae)
    check_labels(labels, indices, model.config.num_classes)
    sampling.check_scales(model.scales.sides, model.config.scale_drop)
    if refiner is not None:
        check_refiner(refiner, model)
        sampling.check_scales(model.scales.sides, refiner.model.config.scale_drop)
    if sampling.use_scales is not None and forced is not None:
        raise InputError("use_scales draws other token maps than the encoder's, which an edit keeps: leave it out")
    if model.training or vqvae.training:
        raise InputError("the model is in training mode: call model.eval() and vqvae.eval() first")


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
        if not (isinstance(label, Integral) and 0 <= label <= num_classes):
            raise InputError(f"label {label!r} must be in 0..{num_classes - 1}, or {num_classes} for no class")
    if len(indices) != len(labels) or min(indices) < 0:
        raise InputError(f"indices={indices} must be {len(labels)} numbers from 0 on, one a label")
