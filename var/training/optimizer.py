"""AdamW with weight decay on matrices only."""

from collections.abc import Iterable

import torch
from torch import nn

from var.training.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, never_decayed: Iterable[str]) -> torch.optim.AdamW:
    """Build AdamW over the model's parameters.

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
