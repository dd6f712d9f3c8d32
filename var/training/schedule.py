"""Learning rate and weight decay as pure functions of the step."""

import math

from var.training.config import OptimizerConfig, ScheduleConfig


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
