"""Images of classes, one batch after the other."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tokenizer.vqvae import VQVAE
from var.models.conditional import ConditionalTransformer
from var.sampling.drawing import index_within_class
from var.sampling.generate import generate_batches
from var.sampling.output import PipelineOutput
from var.sampling.params import SamplingKeywords, SamplingParams
from var.sampling.refiner import Refiner
from var.sampling.steps import OnStep, ScaleOutput, Step, count_images
from var.utils.images import to_pil
from var.utils.progress import Progress, open_progress

OnScale = Callable[[ScaleOutput], object]


class DrawingKeywords(SamplingKeywords, total=False):
    """Keywords of a pipeline that draws: those of sampling, and its own."""

    seed: int
    intermediates: bool
    batch_size: int
    refiner: Any  # a pipeline, or the name of a model
    refine_from: int | None
    on_scale: OnScale | None
    progress: bool | Progress


def draw_batches(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    labels: list[int],
    sampling: SamplingParams,
    refiner: Refiner | None,
    names: Mapping[int, str] | None,
    seed: int = 0,
    intermediates: bool = False,
    batch_size: int = 16,
    on_scale: OnScale | None = None,
    progress: bool | Progress = False,
) -> Iterator[PipelineOutput]:
    """Draw an image of each label, and give those of a batch as soon as they are there.

    Args:
        model, vqvae, labels, sampling, refiner, seed, batch_size: as `generate_batches` takes them.
        names: of the classes, for captions; None: those of ImageNet.
        intermediates: also decode the image after every scale.
        on_scale: called with the images of a batch after each of its scales, or once where there are none.
        progress: called with (done, total), numbers of images; True shows a bar.

    Raises:
        InputError: as `generate_batches`.
    """
    indices, start = index_within_class(labels), 0
    with open_progress(progress) as count:
        on_step = _call_both(_show_images(on_scale, vqvae, labels), count_images(count, len(labels)))
        for batch in generate_batches(model, vqvae, labels, batch_size, sampling, seed, None, refiner, on_step):
            growth = None
            if intermediates:
                with torch.inference_mode():
                    after_scale = [to_pil(vqvae.pixels(f_hat)) for f_hat in batch.f_hats]
                growth = list(map(list, zip(*after_scale, strict=True)))
            part = slice(start, start := start + len(batch.tokens))
            yield PipelineOutput(to_pil(batch.images), labels[part], indices[part], batch.tokens.cpu(), growth, names)


def join_outputs(outputs: Iterator[PipelineOutput]) -> PipelineOutput:
    """Return the images of all batches in one output."""
    parts = list(outputs)
    growth = [part.intermediates for part in parts if part.intermediates is not None]
    return PipelineOutput(
        [image for part in parts for image in part.images],
        [label for part in parts for label in part.labels],
        [index for part in parts for index in part.indices],
        torch.cat([part.tokens for part in parts]),
        [stages for part in growth for stages in part] if growth else None,
        parts[0].names,
    )


def _show_images(on_scale: OnScale | None, vqvae: VQVAE, labels: list[int]) -> OnStep | None:
    """Return what calls `on_scale` after every step that has images; they are decoded if they are read."""
    if on_scale is None:
        return None
    indices = index_within_class(labels)

    def show(step: Step) -> None:
        if step.f_hat is None:
            return
        part = slice(step.images.start, step.images.stop)
        with torch.inference_mode(False):  # what it computes of its own is an ordinary tensor
            on_scale(
                ScaleOutput(step.scale, step.num_scales, part.start, labels[part], indices[part], step.f_hat, vqvae)
            )

    return show


def _call_both(first: OnStep | None, second: OnStep | None) -> OnStep | None:
    if first is None or second is None:
        return first or second

    def call(step: Step) -> None:
        first(step)
        second(step)

    return call
