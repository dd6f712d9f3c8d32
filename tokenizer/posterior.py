"""Gaussian latents of an autoencoder with a KL term (VAE, arXiv 1312.6114; as in LDM, arXiv 2112.10752, section 3.1).

B batch, C latent channels, h w sides of the latent map.
"""

from typing import NamedTuple

from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as in LDM's code: the exponential stays finite


class Posterior(NamedTuple):
    """Independent normal distributions of an image's latents, as the encoder gives them, each (B, C, h, w) float32."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return latents (B, C, h, w), from standard normal noise of that shape."""
        return self.mean + (0.5 * self.log_variance.clamp(*LOG_VARIANCE_RANGE)).exp() * noise

    def divergence(self) -> Tensor:
        """(B,) KL divergence from a standard normal distribution, the sum over all latents of an image, in nats."""
        log_variance = self.log_variance.clamp(*LOG_VARIANCE_RANGE)
        each = 0.5 * (self.mean.square() + log_variance.exp() - 1 - log_variance)
        return each.sum(dim=(1, 2, 3))
