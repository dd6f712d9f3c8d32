"""AdamW with weight decay on matrices only, and a share of the learning rate for each part of a model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from var.training.config import OptimizerConfig
from var.training.parts import find_lr_factors


def build_optimizer(model: nn.Module, config: OptimizerConfig, never_decayed: Iterable[str]) -> torch.optim.AdamW:
    """Build AdamW over the model's parameters that are trained.

    Weight decay acts on matrices and kernels: never on vectors (norms, biases, scales), nor on parameters whose name
    ends with one of `never_decayed` (embeddings of position and the like). A group of parameters has `lr_factor`, which
    its learning rate is multiplied by, and `decays`.

    Raises InputError: a part in lr_factors that the model has not.
    """
    excluded, factors = tuple(never_decayed), find_lr_factors(model, config.lr_factors)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(excluded)
            groups.setdefault((decays, factors[name]), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": config.lr * factor,
            "lr_factor": factor,
            "weight_decay": config.weight_decay if decays else 0.0,
            "decays": decays,
        }
        for (decays, factor), parameters in groups.items()
    ]
    fused = all(p.device.type in ("cuda", "cpu") for p in model.parameters())
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=fused)
