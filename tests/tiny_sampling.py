"""What tests of sampling share: a small model with its tokenizer, drawing from them, a network that scores."""

from dataclasses import replace
from typing import Any

import torch
from helpers import CLASSES, small_var, small_vqvae
from torch import Tensor

from tokenizer.vqvae import VQVAE
from var.evaluation.metrics.extractors import Extractor, _Layers
from var.models.var import VAR
from var.sampling.generate import ForcedTokens, Generated, generate
from var.sampling.params import SamplingParams
from var.sampling.refiner import Refiner

LABELS = [0, CLASSES, 2]


def models(**changes: Any) -> tuple[VAR, VQVAE]:
    return small_var(seed=1, **changes), small_vqvae(seed=2)


def sample(
    labels: list[int] | Tensor = LABELS,
    seed: int = 3,
    indices: list[int] | None = None,
    forced: ForcedTokens | None = None,
    refiner: Refiner | None = None,
    **options: Any,
) -> Generated:
    """Draw from these models; options are fields of SamplingParams."""
    sampling = replace(SamplingParams(cfg=1.5, top_k=20, top_p=0.95), **options)
    return generate(*models(), labels, sampling, seed, indices, forced, refiner)


def tiny_extractor(name: str) -> Extractor:
    """An extractor that needs no weights: four numbers of an image, and a thousand classes of which they tell."""
    weights = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        pool = images[:, 0, ::4, ::4].flatten(1).float()
        return pool, pool @ weights

    layers = _Layers("pool", "logits", None)
    return Extractor(name, "tests", "none", None, "none", 4, True, torch.device("cpu"), network, layers)
