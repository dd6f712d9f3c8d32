"""Per-token cross-entropy and accuracy, pure functions for training and for evaluation.

B batch, L tokens of all scales, V codebook size.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from tokenizer.scales import Scales


class TokenLosses(NamedTuple):
    """Loss and accuracy of each token, (B, L)."""

    loss: Tensor  # cross-entropy in nats, with gradients to the logits
    accuracy: Tensor  # 1 where the token is the most probable one, else 0


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy in nats of each of (B, L) tokens under (B, L, V) logits: (B, L) in the logits' type."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def token_losses(logits: Tensor, tokens: Tensor) -> TokenLosses:
    """Cross-entropy and accuracy of (B, L) tokens under (B, L, V) teacher-forced logits, in the logits' type."""
    loss = cross_entropy(logits, tokens)
    return TokenLosses(loss, (logits.detach().argmax(dim=-1) == tokens).to(loss.dtype))


def image_means(each: TokenLosses, scales: Scales) -> dict[str, Tensor]:
    """Means over each image's tokens, (B,): loss and accuracy, then those of every scale, as loss/4x4."""
    means = {name: values.mean(dim=1) for name, values in each._asdict().items()}
    for name, values in each._asdict().items():
        for side, part in zip(scales.sides, scales.split(values), strict=True):
            means[f"{name}/{side}x{side}"] = part.mean(dim=1)
    return means
