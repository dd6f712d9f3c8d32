"""A small AIM for the tests: three blocks, 8 px images of four patches."""

from typing import Any

import torch
from helpers import randomize

from var.models.aim import AIM, AIMConfig

SIZES = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}


def small_aim(seed: int = 0, **changes: Any) -> AIM:
    """Random weights, and statistics in the probe's norm that are not those it begins with."""
    model = AIM(AIMConfig(**(SIZES | {"probe_layers": (0, 2), "num_classes": 5} | changes)))
    randomize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    model.probe.norm.running_mean.copy_(torch.randn(model.config.width, generator=generator))
    model.probe.norm.running_var.copy_(torch.rand(model.config.width, generator=generator) + 0.5)
    model.probe.norm.num_batches_tracked.fill_(7 + seed)
    return model.eval()
