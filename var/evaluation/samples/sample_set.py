"""Settings of a set of generated images: all that decides its images, and the batches they are generated in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tokenizer.errors import InputError
from var.pipeline import VARPipeline
from var.sampling.params import FOR_METRICS
from var.utils.provenance import device_name, fingerprint, version, versions

MOST = 10**6  # labels, and samples of a class: names have six digits for each


@dataclass(frozen=True)
class Sample:
    """The image of this number within its class."""

    label: int
    index: int

    @property
    def file(self) -> str:
        """Its name, from which the label can be read."""
        return f"{self.label:06d}_{self.index:06d}.png"


class Batch(NamedTuple):
    """Samples that are generated at once."""

    number: int
    samples: list[Sample]

    @property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.samples]


@dataclass(frozen=True)
class Settings:
    """All that decides what the images of a set are, in the order in which a difference is told."""

    model: str  # name or folder
    dtype: str
    device: str  # as it calls itself, without its number
    versions: Mapping[str, str]  # of what computes and what writes PNG
    weights: str  # checksum of the networks as they were loaded, in dtype, so that another dtype has another one
    labels: tuple[int, ...]  # in ascending order
    num_per_class: int  # samples of each that the set has
    candidates: int  # samples of each that are drawn; more than num_per_class where the best are kept
    judge: str | None  # by what the best are known; None where all are kept
    seed: int  # the sampling options as `var.sampling.generate.generate` takes them
    cfg: float
    top_k: int
    top_p: float
    batch: int  # samples drawn at once

    @cached_property
    def batches(self) -> list[Batch]:
        """All that is drawn, class by class, cut into batches."""
        samples = [Sample(label, index) for label in self.labels for index in range(self.candidates)]
        return [
            Batch(number, samples[first : first + self.batch])
            for number, first in enumerate(range(0, len(samples), self.batch))
        ]

    def batches_of(self, label: int) -> list[Batch]:
        """Those that have pictures of this class."""
        first = self.labels.index(label) * self.candidates
        return self.batches[first // self.batch : (first + self.candidates - 1) // self.batch + 1]


def sample_settings(
    pipe: VARPipeline,
    model: str,
    classes: Sequence[int | str] | None = None,
    num_per_class: int = 50,
    cfg: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch: int = 32,
    reject: float | None = None,
    judge: str | None = None,
) -> Settings:
    """What `generate_samples` is to draw, checked.

    Args:
        model: name of the model.
        classes: indices or names; None: all that the model knows.
        num_per_class: samples of each.
        cfg, top_k, top_p, seed: as `var.sampling.generate.generate` takes them; None: the model's, else the paper's
            for FID.
        batch: samples drawn at once; another number gives the same ones but for rounding.
        reject: the part of the drawn samples that is kept, in (0, 1]; None: no judge, all are.
        judge: a description of what judges; given with reject alone.

    Raises:
        InputError: an unknown class, or an option out of range.
    """
    labels = pipe.known_labels() if classes is None else sorted({pipe.label(given) for given in classes})
    if not labels or labels[-1] >= MOST:
        raise InputError(f"classes {labels[-1:] or 'of none'} given: at least one, and labels below {MOST:,}, needed")
    params = pipe.choose_sampling({"cfg": cfg, "top_k": top_k, "top_p": top_p}, FOR_METRICS)
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative")
    if reject is not None and not 0 < reject <= 1:
        raise InputError(f"reject={reject} must be in (0, 1], the part that is kept: 0.5 draws twice as many")
    for name, number in (("num_per_class", num_per_class), ("batch", batch)):
        if number < 1:
            raise InputError(f"{name}={number} must be at least 1")
    # 0.1 is a little more than a tenth: without the allowance 5 / 0.1 might become 51.
    candidates = num_per_class if reject is None else math.ceil(num_per_class / reject - 1e-9)
    if candidates > MOST:
        raise InputError(f"{candidates:,} pictures of a class asked for: at most {MOST:,} have names")
    weight = pipe.model.position
    return Settings(
        model=model,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=device_name(weight.device),
        versions=versions() | {name: version(name) for name in ("numpy", "pillow")},
        weights=fingerprint(pipe.model, pipe.vqvae),
        labels=tuple(labels),
        num_per_class=num_per_class,
        candidates=candidates,
        judge=judge,
        seed=seed,
        cfg=float(params.cfg),
        top_k=params.top_k,
        top_p=float(params.top_p),
        batch=batch,
    )
