"""AdamW with weight decay on matrices only, its schedule, and the moving average of the weights."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn

from var.training.config import OptimizerConfig, ScheduleConfig
from var.training.distributed import local_tensor


def build_optimizer(model: nn.Module, config: OptimizerConfig, never_decayed: Iterable[str]) -> torch.optim.AdamW:
    """AdamW over the model's parameters.

    Weight decay acts on matrices and kernels: never on vectors (norms, biases, scales), nor on parameters whose name
    ends with one of `never_decayed` (embeddings of position and the like).
    """
    excluded = tuple(never_decayed)
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (other if parameter.ndim < 2 or name.endswith(excluded) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "decays": True},
        {"params": other, "weight_decay": 0.0, "decays": False},
    ]
    fused = all(p.device.type in ("cuda", "cpu") for p in model.parameters())
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def lr_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Factor on the peak learning rate at step 0..steps - 1: warm-up, hold, then a fall that ends at the last step."""
    position = step / max(steps - 1, 1)
    if position < schedule.warmup:
        return schedule.warmup_start + (1 - schedule.warmup_start) * position / schedule.warmup
    fall_begins = schedule.warmup + schedule.hold
    if position <= fall_begins or fall_begins >= 1:
        return 1.0
    progress = (position - fall_begins) / (1 - fall_begins)
    if schedule.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return 1 - progress * (1 - schedule.final_lr_factor)


def weight_decay(step: int, steps: int, optimizer: OptimizerConfig) -> float:
    """Weight decay at step 0..steps - 1: from its first to its final value along half a cosine."""
    first, final = optimizer.weight_decay, optimizer.final_weight_decay
    if final is None:
        return first
    progress = (1 - math.cos(math.pi * step / max(steps - 1, 1))) / 2
    return first + (final - first) * progress


class EMA:
    """A copy of the model whose weights follow it slowly; validation, sheets and the exported model use it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model; early steps move faster, so that the random start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours = [local_tensor(parameter) for parameter in self.model.parameters()]
        theirs = [local_tensor(parameter) for parameter in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, current in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(current)
