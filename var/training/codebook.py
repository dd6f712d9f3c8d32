"""Health of the codebook: the codewords that each scale uses, and those that none uses (the stage restarts these).

K scales, V codebook size, C latent channels.
"""

import torch
from torch import Tensor

from tokenizer.quantizer import Quantizer


class CodebookHealth:
    """Counts of codewords in a run, the same on every process."""

    def __init__(self, num_scales: int, vocab_size: int) -> None:
        self.counts = torch.zeros(num_scales, vocab_size, dtype=torch.int64)  # in the current window
        self.age = torch.zeros(vocab_size, dtype=torch.int64)  # steps since any scale used the codeword
        self.steps = torch.zeros((), dtype=torch.int64)  # of the current window

    def count(self, counts: Tensor) -> None:
        """Add the (K, V) counts of one step over all processes."""
        self.counts += counts.cpu()
        self.age = torch.where(counts.cpu().sum(dim=0) > 0, 0, self.age + 1)
        self.steps += 1

    def close_window(self) -> dict[str, Tensor]:
        """Return usage and perplexity of each scale since the last call, see `describe`, and begin a new window."""
        counts = self.counts
        self.counts = torch.zeros_like(counts)
        self.steps = torch.zeros_like(self.steps)
        return describe(counts)

    def dead(self, window: int) -> list[int]:
        """Codewords that no scale has used for `window` steps."""
        return torch.nonzero(self.age >= window).flatten().tolist()

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "age": self.age, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts, self.age, self.steps = state["counts"], state["age"], state["steps"]


def count_tokens(quantizer: Quantizer, tokens: Tensor) -> Tensor:
    """Count the codewords of each scale: (B, L) int64 -> (K, V) int64."""
    vocab_size = quantizer.codebook.num_embeddings
    parts = quantizer.scales.split(tokens)
    return torch.stack([torch.bincount(part.flatten(), minlength=vocab_size) for part in parts])


def describe(counts: Tensor) -> dict[str, Tensor]:
    """(K, V) counts -> usage and perplexity, each (K,), as fractions of the largest possible values.

    A scale with n tokens can use at most min(n, V) codewords, which also bounds its perplexity (the exponential of the
    entropy of its codewords). So a 1x1 scale, which has few tokens, compares with the others.
    """
    tokens = counts.sum(dim=1)
    reachable = tokens.clamp(min=1, max=counts.shape[1])
    share = counts / tokens.clamp(min=1)[:, None]
    entropy = torch.special.entr(share).sum(dim=1)
    return {"usage": (counts > 0).sum(dim=1) / reachable, "perplexity": entropy.exp() / reachable}


def lookup_vectors(quantizer: Quantizer, features: Tensor) -> list[Tensor]:
    """Return the vectors that each scale quantizes of features (B, C, H, H): K tensors (B, side * side, C) float32."""
    rest = features.float()
    seen = []
    for k, step in enumerate(quantizer.residual_pyramid(features)):
        seen.append(quantizer.next_input(rest, k))
        rest = features - step.f_hat
    return seen
