"""Losses of two papers that train a model to draw well without guidance, against a frozen copy of it, the reference.

Both train the classifier sigma(beta * log p_theta(x|c) / p_ref(x|c)) to tell positives from negatives; its only weights
are theta, those of the model. The positives are images of the data with their labels. The negatives are

- the same images with wrong labels in condition contrastive alignment (CCA, arXiv 2410.09347), weighted by lambda;
- images that the reference draws, with their labels, in direct discriminative optimization (DDO, arXiv 2503.01103),
  weighted by alpha.

B batch, L tokens of all scales, V codebook size, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from var.models.token_losses import token_losses


def log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(x|c) of images in nats, (B,) float32: the sum over all (B, L) tokens under (B, L, V) logits."""
    return -token_losses(logits, tokens).loss.float().sum(dim=1)


def alignment_loss(positive: Tensor, negative: Tensor, beta: float, weight: float) -> Tensor:
    """-log sigma(beta * positive) - weight * log(1 - sigma(beta * negative)), (B,); 1 - sigma(z) = sigma(-z).

    Args:
        positive: (B,) log p_theta/p_ref of images with their labels.
        negative: (B,) log p_theta/p_ref of the negatives.
        beta: of the papers: the smaller, the further the model moves from the reference.
        weight: lambda of CCA, alpha of DDO.
    """
    return -F.logsigmoid(beta * positive) - weight * F.logsigmoid(-beta * negative)


def draw_wrong_labels(labels: Tensor, counts: Tensor, uniform: Tensor) -> Tensor:
    """Draw for each label another one, in proportion to the images of each class, (B,) int64.

    Args:
        labels: (B,) int64 below C.
        counts: (C,) int64, images of each class; at least two have some.
        uniform: (B,) in [0, 1).
    """
    ends = counts.cumsum(0)  # the images in order of their classes; those of class c end before ends[c]
    others = ends[-1] - counts[labels]
    image = torch.minimum((uniform * others).long(), others - 1)  # among those of the other classes
    image = image + counts[labels] * (image >= ends[labels] - counts[labels])
    return torch.searchsorted(ends, image, right=True)


def fixed_wrong_labels(counts: Tensor) -> Tensor:
    """Return a wrong label for each one, (C,) int64: of the classes with images, that half of them further on.

    `counts` are (C,) int64, the images of each class; at least two have some.
    """
    present = counts.nonzero()[:, 0]
    wrong = present[:1].repeat(len(counts))
    wrong[present] = present.roll(-(len(present) // 2))
    return wrong


def proportional_labels(counts: Tensor, number: int) -> Tensor:
    """Labels in ascending order, (number,) int64, in proportion to the images of each class, (C,) int64."""
    ends = counts.cumsum(0)
    middles = (2 * torch.arange(number) + 1) * ends[-1] // (2 * number)  # of equal parts of the images
    return torch.searchsorted(ends, middles, right=True)
