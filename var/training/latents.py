"""Mean and deviation of the tokenizer's latents during its training: what brings continuous tokens to variance 1.

B batch, C latent channels, h w sides of the latent map.
"""

import torch
from torch import Tensor

DECAY = 0.99  # of a step's weight, so that the last hundred steps count


class LatentMoments:
    """Weighted sums over the latents of recent steps, the same on every process."""

    def __init__(self, channels: int) -> None:
        self.sums = torch.zeros(3, channels, dtype=torch.float64)  # of ones, values and squares

    def add(self, sums: Tensor) -> None:
        """Add the sums (3, C) of a step over all processes."""
        self.sums = DECAY * self.sums + sums.cpu()

    def mean(self) -> Tensor:
        """(C,) float32."""
        return (self.sums[1] / self.sums[0]).float()

    def std(self) -> Tensor:
        """(C,) float32, positive."""
        ones, values, squares = self.sums
        return (squares / ones - (values / ones).square()).clamp(min=1e-12).sqrt().float()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = state["sums"]


def sum_latents(features: Tensor) -> Tensor:
    """Sums over the latents (B, C, h, w) for `LatentMoments.add`, (3, C) float32: some devices have no float64."""
    each = features.float().transpose(0, 1).flatten(1)  # (C, n)
    return torch.stack([torch.ones_like(each).sum(dim=1), each.sum(dim=1), each.square().sum(dim=1)])
