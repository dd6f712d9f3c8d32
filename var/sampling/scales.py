"""The loop over scales: draw a token map, add it to f_hat, feed it back for the next scale (VAR paper, section 3.2).

B batch, K scales, L tokens of all scales, n of one scale, C latent channels, V codebook size, H side of the last scale,
S side of the images in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from tokenizer.vqvae import VQVAE
from var.models.conditional import Condition
from var.models.transformer import KVCache
from var.models.var import VAR, VARConfig
from var.sampling.drawing import Drawn, ForcedTokens, guided_rows
from var.sampling.logits import (
    RandomStreams,
    cfg_at_scale,
    classifier_free_guidance,
    filter_logits,
    gumbel_softmax,
    sample_tokens,
)
from var.sampling.params import SamplingParams
from var.sampling.refiner import Refiner
from var.sampling.steps import OnStep, Step


def check_sampling(sampling: SamplingParams, config: VARConfig) -> None:
    """Raise InputError for options that do not fit a model of this config."""
    sampling.check_codebook()
    sampling.check_scales(config.scales, config.scale_drop)


def draw_scales(
    model: VAR,
    vqvae: VQVAE,
    labels: list[int],
    sampling: SamplingParams,
    streams: RandomStreams,
    forced: ForcedTokens | None,
    refiner: Refiner | None,
    on_step: OnStep | None = None,
) -> Drawn:
    """Draw tokens scale by scale; the arguments are those of `draw_tokens`, checked.

    Raises InputError: forced tokens where scales are left out.
    """
    if sampling.use_scales is not None and forced is not None:
        raise InputError("use_scales draws other token maps than the encoder's, which an edit keeps: leave it out")
    scales, quantizer = model.scales, vqvae.quantizer
    codebook = quantizer.codebook.weight  # (V, C)
    rows = guided_rows(model, labels, sampling.cfg)  # (2B,), or (B,)
    guidable = len(rows) > len(labels)
    given = None if forced is None else list(zip(*map(scales.split, forced), strict=True))  # (B, n) each
    next_inputs: list[Tensor] = []
    f_hat = torch.zeros((), device=rows.device)
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
            if on_step is not None:
                on_step(Step(_share(scales, kept, done), done, len(kept), f_hat))
            if k != kept[-1]:
                next_inputs.append(quantizer.next_input(f_hat, kept[done + 1]))  # (B, n of the next scale, C)
    # Made outside the block, the results are ordinary tensors, which other modules take with gradients on too.
    return Drawn(torch.cat(tokens, dim=1), [f_hat.clone() for f_hat in f_hats])


def _share(scales: Scales, kept: Sequence[int], last: int) -> float:
    """Return the share of the tokens of the scales that are kept in those up to the last one given."""
    lengths = [scales.lengths[k] for k in kept]
    return sum(lengths[: last + 1]) / sum(lengths)


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
