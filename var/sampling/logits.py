"""From logits to tokens: guidance, top-k, top-p, one draw per token. Pure functions; arguments are never written to.

B batch, n tokens of one scale, V codebook size.
"""

import numpy as np
import torch
from torch import Tensor

from tokenizer.errors import check_whole_number
from var.sampling.params import SamplingParams


def classifier_free_guidance(conditional: Tensor, unconditional: Tensor, strength: float | Tensor) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): (1 + s) * conditional - s * unconditional."""
    return (1 + strength) * conditional - strength * unconditional


def cfg_at_scale(cfg: float, k: int, num_scales: int) -> float:
    """Guidance strength at scale k: rises linearly from 0 at the first scale to cfg at the last."""
    return cfg * k / max(num_scales - 1, 1)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Keep the top_k best tokens, then of these the smallest set whose probability exceeds top_p.

    Equal logits stay or go together: those equal to the least one that is kept stay too.

    Args:
        logits: (..., V) of any float type.
        top_k: 0, or V and more, keeps all.
        top_p: in [0, 1]; 0 and 1 keep all. The best token always stays.

    Returns:
        New logits (..., V), removed ones at -inf.

    Raises:
        InputError: top_k or top_p out of range.
    """
    SamplingParams(top_k=top_k, top_p=top_p)  # raises if one is out of range
    vocab_size = logits.shape[-1]
    best = min(top_k or vocab_size, vocab_size)
    if best == vocab_size and top_p in (0, 1):
        return logits.clone()
    ordered = logits.topk(best, dim=-1).values  # (..., best), descending
    least = ordered[..., -1:]
    if 0 < top_p < 1:
        probabilities = ordered.softmax(dim=-1)
        # A token stays unless the better ones alone already exceed top_p.
        stays = probabilities.cumsum(dim=-1) - probabilities <= top_p
        least = ordered.gather(-1, stays.sum(dim=-1, keepdim=True).clamp(min=1) - 1)  # (..., 1)
    return logits.masked_fill(logits < least, -torch.inf)


def mix_seed(*words: int) -> int:
    """A seed of 63 bits that mixes all the words."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def derive_seed(seed: int, n: int) -> int:
    """The seed of the n-th of several images that are generated one after the other: the seed itself for the first."""
    return seed if n == 0 or seed < 0 else mix_seed(seed, n)


class RandomStreams:
    """One random stream per image, keyed by (seed, label, index): its draws do not depend on what else is in the batch.

    Drawn on the CPU, so that a seed means the same on every device.
    """

    def __init__(self, seed: int, labels: list[int], indices: list[int]) -> None:
        seed = check_whole_number("seed", seed, 0)
        self.generators = [
            torch.Generator().manual_seed(mix_seed(seed, *key)) for key in zip(labels, indices, strict=True)
        ]

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


def sample_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per position by inverting the distribution function.

    Args:
        logits: (B, n, V), -inf for tokens that must not be drawn.
        uniform: (B, n) in [0, 1).

    Returns:
        (B, n) int64.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    # Strictly below the total, so that the first entry above it exists and is never a token of probability 0.
    threshold = torch.minimum(uniform.to(logits)[..., None] * total, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    # A parallel sum on a GPU may fall by a rounding step where it should stand still, and so stop at a removed token.
    removed = logits.gather(-1, tokens) == -torch.inf
    return tokens.where(~removed, logits.argmax(dim=-1, keepdim=True)).squeeze(-1)


def gumbel_softmax(logits: Tensor, uniform: Tensor, k: int, num_scales: int) -> Tensor:
    """Soft choice of tokens at scale k by a Gumbel softmax (arXiv 1611.01144) that hardens from scale to scale.

    Logits grow by up to two and the temperature falls from 0.27 to 5% of it, as in the released code.

    Args:
        logits: (B, n, V), -inf for tokens that must have no weight.
        uniform: (B, n, V) in [0, 1).
        k: the scale, of num_scales.

    Returns:
        (B, n, V) weights that sum to 1 over the codebook.
    """
    progress = k / max(num_scales - 1, 1)
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    gumbel = -torch.log(-torch.log(uniform.to(logits).clamp(1e-20, 1 - 1e-7)))
    return ((logits * (1 + progress) + gumbel) / temperature).softmax(dim=-1)
