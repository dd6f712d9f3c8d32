"""Likelihood of the tokens of held-out images under a transformer (VAR paper, section 5.2).

Teacher forcing: every scale is predicted from the image's own coarser ones. The tokens are the tokenizer's in
float32, whatever the dtype of the transformer; all means are taken in float64. Training logs the same loss and accuracy
of its validation.

B batch, N images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from var.evaluation.metrics.stats import MeanStderr, concatenate, mean_stderr
from var.models.token_losses import TokenLosses, head_losses, image_means
from var.models.var import require_var
from var.pipeline import VARPipeline
from var.utils.device import VAR_DTYPES, check_float32, choose_device, choose_dtype

BITS = 1 / math.log(2)  # of a nat

Values = dict[str, Tensor]  # of images, (N,) float64, by the names of `image_means`


@dataclass(frozen=True)
class TokenLikelihood:
    """Loss and error of some or all tokens of an image; means over images."""

    tokens: int  # per image
    loss: MeanStderr  # cross-entropy, nats per token
    error: MeanStderr  # fraction of the tokens that are not the model's most probable one, 1 - top-1 accuracy

    @property
    def bits(self) -> MeanStderr:
        """Cross-entropy in bits per token."""
        return self.loss.times(BITS)

    @property
    def perplexity(self) -> MeanStderr:
        """exp(loss): the number of equally probable codewords among which a token would be as hard to predict."""
        perplexity = math.exp(self.loss.mean)
        return MeanStderr(perplexity, self.loss.times(perplexity).error)

    @property
    def nats_per_image(self) -> MeanStderr:
        """Cross-entropy summed over these tokens of an image."""
        return self.loss.times(self.tokens)

    def bits_per_pixel(self, side: int) -> MeanStderr:
        """Code length of these tokens per pixel of a square image; no bound on the likelihood of its pixels."""
        return self.loss.times(self.tokens * BITS / side**2)


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of all tokens of an image, and of those of each scale, coarse to fine."""

    whole: TokenLikelihood
    of_scales: tuple[TokenLikelihood, ...]

    @property
    def last(self) -> TokenLikelihood:
        """The tokens of the last scale."""
        return self.of_scales[-1]


@dataclass(frozen=True)
class LabeledLikelihood:
    """Likelihood with and without the label."""

    num_images: int  # N
    given: Likelihood  # conditioned on each image's label
    null: Likelihood  # conditioned on the null class, which training with label drop uses
    gain: MeanStderr  # nats per image that the label saves; the standard error is that of the paired difference


def load_pipeline(name: str | Path, device: str = "auto", dtype: str = "auto") -> VARPipeline:
    """Load a model as VARPipeline.from_pretrained does, the tokenizer in float32, so that tokens are training's.

    Raises:
        InputError: as VARPipeline.from_pretrained.
    """
    chosen = choose_dtype(dtype, choose_device(device), VAR_DTYPES)
    pipe = VARPipeline.from_pretrained(name, device=device, dtype="float32")
    pipe.model.cast(chosen)
    return pipe


@torch.inference_mode()
def likelihood(pipe: VARPipeline, batches: Iterable[tuple[Tensor, list[int]]]) -> LabeledLikelihood:
    """Compute loss and error of a model's tokens, with and without the label.

    Args:
        pipe: with the tokenizer in float32.
        batches: (B, 3, S, S) in [-1, 1] and B labels.

    Raises:
        InputError: a label that the model does not know, images of another size, no images; losses that are not
            finite; a tokenizer that is not in float32.
    """
    model, vqvae = require_var(pipe.model, "likelihood"), pipe.vqvae
    check_float32(vqvae)
    known, device = frozenset(pipe.known_labels()), model.position.device
    parts: tuple[list[Values], list[Values]] = ([], [])
    for images, labels in batches:
        check_known(labels, known)
        tokens = vqvae.encode(images.to(device))
        inputs = vqvae.quantizer.teacher_forcing_input(tokens)
        class_labels = torch.tensor(labels, device=device)
        null_labels = torch.full_like(class_labels, model.config.num_classes)
        for column, condition in zip(parts, (class_labels, null_labels), strict=True):
            losses: TokenLosses = model(condition, inputs, read=partial(head_losses, tokens=tokens))
            column.append(image_means(TokenLosses(*(each.cpu().double() for each in losses)), model.scales))
    given, null = map(concatenate, parts)
    gain = mean_stderr(null["loss"] - given["loss"], "the loss").times(model.scales.total)
    return LabeledLikelihood(len(given["loss"]), _summarize(given, model.scales), _summarize(null, model.scales), gain)


def check_known(labels: Iterable[int], known: frozenset[int]) -> None:
    """Raise InputError for labels that the model was not trained on."""
    unknown = sorted(set(labels) - known)
    if unknown:
        raise InputError(
            f"the images have label {unknown[0]}, which the model was not trained on (known labels: {len(known)}, "
            f"from {min(known)} to {max(known)}): give images of its classes"
        )


def _summarize(values: Values, scales: Scales) -> Likelihood:
    def means(tokens: int, suffix: str = "") -> TokenLikelihood:
        loss, accuracy = values[f"loss{suffix}"], values[f"accuracy{suffix}"]
        return TokenLikelihood(tokens, mean_stderr(loss, "the loss"), mean_stderr(1 - accuracy, "the error"))

    return Likelihood(means(scales.total), tuple(means(side * side, f"/{side}x{side}") for side in scales.sides))
