"""Likelihood of the tokens of held-out images under a transformer (VAR paper, section 5.2).

Teacher forcing: every scale is predicted from the image's own coarser ones. The tokens are the tokenizer's in
float32, whatever the transformer computes in; all means are taken in float64. What training logs as loss and accuracy
of its validation are these numbers.

B batch, N images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from var.evaluation.metrics.stats import MeanStderr, check_float32, concatenate, mean_stderr
from var.models.token_losses import TokenLosses, image_means, token_losses
from var.pipeline import VARPipeline

BITS = 1 / math.log(2)  # of a nat

Values = dict[str, Tensor]  # of images, (N,) float64, by the names of `image_means`


@dataclass(frozen=True)
class TokenLikelihood:
    """Of some of an image's tokens, or all; means over images."""

    tokens: int  # of an image
    loss: MeanStderr  # cross-entropy, nats a token
    error: MeanStderr  # fraction of the tokens that are not the model's most probable one, 1 - top-1 accuracy

    @property
    def bits(self) -> MeanStderr:
        """Bits a token."""
        return self.loss.times(BITS)

    @property
    def perplexity(self) -> MeanStderr:
        """exp(loss): among so many equally probable codewords the token would be as hard to guess."""
        perplexity = math.exp(self.loss.mean)
        return MeanStderr(perplexity, self.loss.times(perplexity).error)

    @property
    def nats_per_picture(self) -> MeanStderr:
        """Nats of all these tokens together."""
        return self.loss.times(self.tokens)

    def bits_per_pixel(self, side: int) -> MeanStderr:
        """Length of the tokens' code over the pixels of a square: of the tokens, which tell less than the image."""
        return self.loss.times(self.tokens * BITS / side**2)


@dataclass(frozen=True)
class Likelihood:
    """Of all tokens of an image, and of those of each scale, coarse to fine."""

    whole: TokenLikelihood
    of_scales: tuple[TokenLikelihood, ...]

    @property
    def last(self) -> TokenLikelihood:
        """The tokens of the last scale."""
        return self.of_scales[-1]


@dataclass(frozen=True)
class LabeledLikelihood:
    """With and without the label."""

    pictures: int  # N
    given: Likelihood  # the model is told each image's label
    null: Likelihood  # it is told the null class, for which training with label drop taught it to generate any image
    gain: MeanStderr  # nats that the label saves in all tokens of an image; the error is that of the difference


@torch.inference_mode()
def likelihood(pipe: VARPipeline, batches: Iterable[tuple[Tensor, list[int]]]) -> LabeledLikelihood:
    """Measure a model whose tokenizer is held in float32.

    Args:
        batches: (B, 3, S, S) in [-1, 1] and B labels.

    Raises:
        InputError: a label that the model does not know, images of another size, none at all; losses that are not
            finite; a tokenizer in another type.
    """
    model, vqvae = pipe.model, pipe.vqvae
    check_float32(vqvae)
    known, device = frozenset(pipe.known_labels()), model.position.device
    parts: tuple[list[Values], list[Values]] = ([], [])
    for images, labels in batches:
        check_known(labels, known)
        tokens = vqvae.encode(images.to(device))
        inputs = vqvae.quantizer.teacher_forcing_input(tokens)
        class_labels = torch.tensor(labels, device=device)
        null_labels = torch.full_like(class_labels, model.config.num_classes)
        for column, asked in zip(parts, (class_labels, null_labels), strict=True):
            losses = token_losses(model(asked, inputs), tokens)
            column.append(image_means(TokenLosses(*(each.cpu().double() for each in losses)), model.scales))
    given, null = map(concatenate, parts)
    gain = mean_stderr(null["loss"] - given["loss"], "the loss").times(model.scales.total)
    return LabeledLikelihood(len(given["loss"]), _summed(given, model.scales), _summed(null, model.scales), gain)


def check_known(labels: Iterable[int], known: frozenset[int]) -> None:
    """Raise InputError for labels that the model was not trained on."""
    unknown = sorted(set(labels) - known)
    if unknown:
        raise InputError(
            f"the pictures have label {unknown[0]}, which the model was not trained on (it knows {len(known)} labels, "
            f"{min(known)} to {max(known)}): measure on pictures of its classes"
        )


def _summed(values: Values, scales: Scales) -> Likelihood:
    def of(tokens: int, suffix: str = "") -> TokenLikelihood:
        loss, accuracy = values[f"loss{suffix}"], values[f"accuracy{suffix}"]
        return TokenLikelihood(tokens, mean_stderr(loss, "the loss"), mean_stderr(1 - accuracy, "the error"))

    return Likelihood(of(scales.total), tuple(of(side * side, f"/{side}x{side}") for side in scales.sides))
