"""Settings that determine a set of generated images, and the batches that it is generated in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tokenizer.errors import InputError
from var.evaluation.samples.rejection import check_fraction
from var.pipeline import VARPipeline
from var.sampling.params import FOR_METRICS, SamplingParams
from var.sampling.refiner import Refiner
from var.utils.classes import names_are_imagenets
from var.utils.provenance import device_name, fingerprint, versions
from var.utils.version import version

MOST = 10**6  # labels, and samples per class: file names have six digits for each


@dataclass(frozen=True)
class Sample:
    """One image, by its label and its index within the class."""

    label: int
    index: int

    @property
    def file(self) -> str:
        """File name, LABEL_INDEX.png."""
        return f"{self.label:06d}_{self.index:06d}.png"


class Batch(NamedTuple):
    """Samples that are generated together."""

    number: int
    samples: list[Sample]

    @property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.samples]


@dataclass(frozen=True)
class Settings:
    """Settings that determine the images of a set, in the order in which differences are reported."""

    model: str  # name or folder
    dtype: str
    device: str  # name of the device, without its number
    versions: Mapping[str, str]  # of the packages that compute images and write PNG
    weights: str  # checksum of the networks as loaded, in dtype, on which it depends
    labels: tuple[int, ...]  # in ascending order
    num_per_class: int  # samples per class in the set
    candidates: int  # samples per class that are generated; more than num_per_class with rejection sampling
    judge: str | None  # description of the scorer of rejection sampling; None without it
    seed: int
    cfg: float  # sampling options as in SamplingParams
    top_k: int
    top_p: float
    batch: int  # samples per batch
    # Sampling options of later versions: a set without them has their defaults.
    cfg_scales: tuple[int, ...] | None = FOR_METRICS.cfg_scales
    temperature: float | tuple[float, ...] = FOR_METRICS.temperature
    use_scales: tuple[int, ...] | None = FOR_METRICS.use_scales
    steps: int | None = FOR_METRICS.steps
    diffusion_steps: int | None = FOR_METRICS.diffusion_steps
    refiner: str | None = None  # name or folder; its network is among the weights
    refine_from: int | None = None
    compiled: bool = False  # rounds otherwise than eager code
    imagenet_labels: bool | None = None  # whether labels are ImageNet's, by the classes' names; None: not known

    @property
    def sampling(self) -> SamplingParams:
        """The options of sampling."""
        return SamplingParams(
            self.cfg,
            self.top_k,
            self.top_p,
            cfg_scales=self.cfg_scales,
            temperature=self.temperature,
            use_scales=self.use_scales,
            steps=self.steps,
            diffusion_steps=self.diffusion_steps,
        )

    @cached_property
    def batches(self) -> list[Batch]:
        """All candidates, class by class, split into batches."""
        samples = [Sample(label, index) for label in self.labels for index in range(self.candidates)]
        return [
            Batch(number, samples[first : first + self.batch])
            for number, first in enumerate(range(0, len(samples), self.batch))
        ]

    def batches_of(self, label: int) -> list[Batch]:
        """Return the batches with images of this class."""
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
    cfg_scales: tuple[int, ...] | None = None,
    temperature: float | tuple[float, ...] | None = None,
    refiner: Refiner | None = None,
    refiner_name: str | None = None,
    use_scales: tuple[int, ...] | None = None,
    steps: int | None = None,
    diffusion_steps: int | None = None,
    compiled: bool = False,
) -> Settings:
    """Return the checked settings of a set for `generate_samples`.

    Args:
        model: name of the model.
        classes: indices or names; None: all that the model knows.
        num_per_class: samples per class.
        cfg, top_k, top_p: as in SamplingParams; None: the model's defaults, else the paper's for FID.
        seed: as for `var.sampling.generate.generate`.
        batch: samples per batch; another number gives the same samples up to rounding.
        reject: fraction of the generated samples to keep, in (0, 1]; None: no rejection.
        judge: description of the scorer; only with reject.
        cfg_scales, temperature, use_scales, steps, diffusion_steps: as cfg.
        refiner: what draws the fine scales, for `generate_samples` too.
        refiner_name: name of that model.
        compiled: the networks are compiled.

    Raises:
        InputError: an unknown class, or an option out of range.
    """
    labels = pipe.known_labels() if classes is None else sorted({pipe.label(given) for given in classes})
    if not labels or labels[-1] >= MOST:
        raise InputError(f"classes {list(labels[-1:])}: give at least one class, with labels below {MOST:,}")
    given = {"cfg": cfg, "top_k": top_k, "top_p": top_p, "cfg_scales": cfg_scales, "temperature": temperature}
    given |= {"use_scales": use_scales, "steps": steps, "diffusion_steps": diffusion_steps}
    params = pipe.choose_sampling(given, FOR_METRICS)
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative")
    if reject is not None:
        check_fraction(reject)
    for name, number in (("num_per_class", num_per_class), ("batch", batch)):
        if number < 1:
            raise InputError(f"{name}={number} must be at least 1")
    # In floating point 5 / 0.1 might exceed 50, and ceil give 51: hence the tolerance.
    candidates = num_per_class if reject is None else math.ceil(num_per_class / reject - 1e-9)
    if candidates > MOST:
        raise InputError(f"{candidates:,} images per class are too many: at most {MOST:,} fit the file names")
    return Settings(
        model=model,
        dtype=str(pipe.model.dtype).removeprefix("torch."),
        device=device_name(pipe.model.position.device),
        versions=versions() | {name: version(name) for name in ("numpy", "pillow")},
        weights=fingerprint(pipe.model, pipe.vqvae, *([] if refiner is None else [refiner.model])),
        labels=tuple(labels),
        num_per_class=num_per_class,
        candidates=candidates,
        judge=judge,
        seed=seed,
        cfg=float(params.cfg),
        top_k=params.top_k,
        top_p=float(params.top_p),
        batch=batch,
        cfg_scales=params.cfg_scales,
        temperature=params.temperature,
        use_scales=params.use_scales,
        steps=params.steps,
        diffusion_steps=params.diffusion_steps,
        refiner=refiner_name,
        refine_from=None if refiner is None else refiner.first_scale,
        compiled=compiled,
        imagenet_labels=names_are_imagenets(pipe.known_classes()),
    )
