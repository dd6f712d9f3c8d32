"""Learning rate as a pure function of the step."""

import math

from var.training.config import ScheduleConfig


def lr_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Factor on the peak learning rate at step 0..steps - 1: warm-up, flat, then a fall that ends at the last step."""
    position = step / max(steps - 1, 1)
    if position < schedule.warmup:
        return schedule.warmup_start + (1 - schedule.warmup_start) * position / schedule.warmup
    fall_begins = schedule.warmup + schedule.flat
    if position <= fall_begins or fall_begins >= 1:
        return 1.0
    progress = (position - fall_begins) / (1 - fall_begins)
    if schedule.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return 1 - progress * (1 - schedule.final)
