"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn

from var.training.distributed import local_tensor


class EMA:
    """Averaged copy of the model, which validation, samples and the exported model use."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model; faster in early steps, so that the random start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        moving = [(local_tensor(mine), local_tensor(current)) for mine, current in pairs if current.requires_grad]
        torch._foreach_lerp_([mine for mine, _ in moving], [current for _, current in moving], 1 - decay)
        for mine, current in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(current)
