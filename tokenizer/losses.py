"""Losses of the tokenizer's training: pure functions. Images are (B, 3, H, W) in [-1, 1].

Every loss of a batch is the mean of the losses of its images, so that gradients accumulated over equal parts of a batch
are those of the whole.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Added under the root of a feature's norm. Features are of order one; where all channels are zero (after a ReLU) the
# gradient of the plain norm would be NaN.
_NORM_EPS = 1e-6


def pixel_losses(reconstruction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and L2, mean absolute and mean squared difference, 0-dimensional, with gradients to the reconstruction."""
    return F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio of each image in dB, after clamping; the range of the pixels is 2."""
    error = (reconstruction.detach().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
    return -10 * (error.clamp(min=1e-10) / 4).log10()


def feature_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """(B,) distance between feature maps: LPIPS (arXiv 1801.03924, eq. 1) with all channel weights 1, mean over layers.

    Both are one (B, C, h, w) map a layer, equally shaped; computed in float32.
    """
    squares = [(_unit(a) - _unit(b)).square() for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([each.sum(dim=1).mean(dim=(1, 2)) for each in squares]).mean(dim=0)


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + _NORM_EPS).rsqrt()


def hinge_discriminator(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminator, 0-dimensional: mean relu(1 - real) + mean relu(1 + fake), not halved.

    The logits are one map of any shape a head; the mean is over each head, then over heads.
    """
    real, fake = [F.relu(1 - logits) for logits in real_logits], [F.relu(1 + logits) for logits in fake_logits]
    return _mean_over_heads(real) + _mean_over_heads(fake)


def hinge_generator(fake_logits: Sequence[Tensor]) -> Tensor:
    """Generator loss against a hinge discriminator: minus the mean logit of its images, 0-dimensional."""
    return -_mean_over_heads(fake_logits)


def _mean_over_heads(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([logits.float().mean() for logits in maps]).mean()


def adaptive_weight(reference_gradient: Tensor, adversarial_gradient: Tensor, low: float, high: float) -> Tensor:
    """Weight that gives the adversarial gradient the length of the reference gradient (VQGAN, arXiv 2012.09841, eq. 7).

    Args:
        reference_gradient: of the pixel and perceptual losses with respect to the weight of the decoder's last layer.
        adversarial_gradient: of the generator's adversarial loss with respect to the same weight.
        low, high: the bounds of the weight, which is 0-dimensional, float32, without gradient.
    """
    ours, theirs = (torch.linalg.vector_norm(g.detach().float()) for g in (reference_gradient, adversarial_gradient))
    return (ours / (theirs + 1e-6)).clamp(low, high)  # far below any gradient norm but zero


def gradient_penalty(logits: Sequence[Tensor], images: Tensor) -> Tensor:
    """R1 (arXiv 1801.04406): squared norm of the logits' gradient to each image, mean over the batch, 0-dimensional.

    The factor gamma / 2 is not included; the discriminator's parameters receive gradients.

    Args:
        logits: the discriminator's output for real images, one map a head; all logits of an image are summed.
        images: the real images that these were computed from, with requires_grad set.
    """
    total = torch.stack([head.float().sum() for head in logits]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def ramp(step: int, start_step: int, length: int) -> float:
    """Factor of a loss that starts late: 0 before step `start_step`, 1/length at it, then linearly up to 1.

    The rise takes `length` steps; with length 0 or 1 the factor is 1 from `start_step` on.
    """
    return min(max((step - start_step + 1) / max(length, 1), 0.0), 1.0)
