"""Class labels to images: draw tokens as the model does, decode them.

B batch, K scales, L tokens of all scales, C latent channels, H side of the last scale, S side of the images in pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.errors import InputError, check_whole_number
from tokenizer.vqvae import VQVAE
from var.models.conditional import ConditionalTransformer
from var.sampling.drawing import Drawn, ForcedTokens, check_fit, check_forced, check_labels, index_within_class
from var.sampling.generators import check_sampling, find_generator
from var.sampling.logits import RandomStreams
from var.sampling.params import FOR_METRICS, SamplingParams
from var.sampling.refiner import Refiner, check_refiner
from var.sampling.steps import OnStep

__all__ = ["ForcedTokens", "Generated", "draw_tokens", "generate", "generate_batches", "index_within_class"]


class Generated(NamedTuple):
    """Generated tokens and images; with use_scales K and L are those of the scales that are drawn."""

    tokens: Tensor  # (B, L) int64, or continuous, (B, L, C) float32
    images: Tensor  # (B, 3, S, S) float32 in [-1, 1]
    f_hats: list[Tensor]  # K times (B, C, H, H): the sum after each scale; decode one to see the image grow


def generate(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    labels: list[int] | Tensor,
    sampling: SamplingParams = FOR_METRICS,
    seed: int = 0,
    indices: list[int] | None = None,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
    on_step: OnStep | None = None,
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
        on_step: called while tokens are drawn, as the model's way to draw them has steps; one that raises ends it.

    Raises:
        InputError: sampling options that do not fit the transformer, a negative seed, an unknown label, a tokenizer or
            a refiner that does not fit the transformer, forced tokens that do not fit.
    """
    tokens, f_hats = draw_tokens(model, vqvae, labels, sampling, seed, indices, forced, refiner, on_step)
    with torch.inference_mode():
        pixels = vqvae.pixels(f_hats[-1])  # (B, 3, S, S)
    # Made outside the block, the images are an ordinary tensor, which other modules take with gradients on too.
    return Generated(tokens, pixels.clamp(-1, 1), f_hats)


def draw_tokens(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    labels: list[int] | Tensor,
    sampling: SamplingParams,
    seed: int = 0,
    indices: list[int] | None = None,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
    on_step: OnStep | None = None,
) -> Drawn:
    """Draw the tokens of `generate`, whose other arguments these are, and decode nothing.

    Raises:
        InputError: as `generate`.
    """
    labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    indices = index_within_class(labels) if indices is None else indices
    check_fit(model, vqvae)
    check_labels(labels, indices, model.config.num_classes)
    check_sampling(sampling, model.config)
    if refiner is not None:
        check_refiner(refiner, model)
        check_sampling(sampling, refiner.model.config)
    if forced is not None:
        forced = check_forced(forced, vqvae, len(labels))
    if model.training or vqvae.training:
        raise InputError("the model is in training mode: call model.eval() and vqvae.eval() first")
    streams = RandomStreams(seed, labels, indices)
    return find_generator(model.config).draw(model, vqvae, labels, sampling, streams, forced, refiner, on_step)


def generate_batches(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    labels: list[int],
    batch_size: int,
    sampling: SamplingParams = FOR_METRICS,
    seed: int = 0,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generated]:
    """Generate the images of `generate`, at most batch_size at a time; steps know which of all images they are of.

    Raises:
        InputError: as `generate`, and for a batch_size that is no whole number from 1 on.
    """
    batch_size = check_whole_number("batch_size", batch_size, 1)
    indices = index_within_class(labels)
    for first in range(0, max(len(labels), 1), batch_size):
        part = slice(first, first + batch_size)
        given = None if forced is None else ForcedTokens(forced.tokens[part], forced.forced[part])
        steps = None if on_step is None else _number_images(on_step, range(len(labels))[part])
        yield generate(model, vqvae, labels[part], sampling, seed, indices[part], given, refiner, steps)


def _number_images(on_step: OnStep, images: range) -> OnStep:
    return lambda step: on_step(step._replace(images=images))
