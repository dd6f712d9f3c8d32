"""The learning rate over a run: closed form, end points, and that it neither jumps nor turns where it must not."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from var.training.config import OptimizerConfig, ScheduleConfig
from var.training.schedule import lr_factor, weight_decay

SHAPES = ("linear", "cosine")


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    """Schedules with a warm-up, a flat part and a fall, none of them empty."""
    warmup = draw(st.floats(0.01, 0.45))
    hold = draw(st.floats(0.01, 0.45))
    fraction = st.floats(0, 1)
    return ScheduleConfig(
        warmup=warmup,
        warmup_start=draw(fraction),
        hold=hold,
        final_lr_factor=draw(fraction),
        shape=draw(st.sampled_from(SHAPES)),
    )


def curve(steps: int, **options: Any) -> list[float]:
    schedule = ScheduleConfig(**options)
    return [lr_factor(step, steps, schedule) for step in range(steps)]


def test_linear_schedule_in_closed_form() -> None:
    got = curve(11, warmup=0.2, warmup_start=0.1, hold=0.3, final_lr_factor=0.5)
    assert got == pytest.approx([0.1, 0.55, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5])


def test_cosine_schedule_in_closed_form() -> None:
    got = curve(9, warmup=0.0, hold=0.0, final_lr_factor=0.2, shape="cosine")
    assert got == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)])


def test_the_papers_schedule() -> None:
    """Warm-up from 0.005, flat for 5 %, then linear to 0.1 (facts of VAR-d16)."""
    got = curve(1001, warmup=0.02)
    assert (got[0], got[20], got[70], got[-1]) == pytest.approx((0.005, 1, 1, 0.1))
    assert got[535] == pytest.approx(0.55)  # half of the fall


@given(schedules(), st.integers(2, 5000))
def test_the_first_step_is_the_start_and_the_last_the_end(schedule: ScheduleConfig, steps: int) -> None:
    assert lr_factor(0, steps, schedule) == pytest.approx(schedule.warmup_start)
    assert lr_factor(steps - 1, steps, schedule) == pytest.approx(schedule.final_lr_factor)


@given(schedules(), st.integers(2, 300))
def test_it_rises_stays_and_falls_without_a_jump(schedule: ScheduleConfig, steps: int) -> None:
    values = [lr_factor(step, steps, schedule) for step in range(steps)]
    low = min(schedule.warmup_start, schedule.final_lr_factor)
    slopes = (
        (1 - schedule.warmup_start) / schedule.warmup,
        math.pi / 2 * (1 - schedule.final_lr_factor) / (1 - schedule.warmup - schedule.hold),
    )
    for step, (before, after) in enumerate(pairwise(values)):
        first, second = step / (steps - 1), (step + 1) / (steps - 1)
        assert abs(after - before) <= max(slopes) / (steps - 1) + 1e-9
        if second <= schedule.warmup:
            assert after >= before
        if first >= schedule.warmup:
            assert after <= before + 1e-12
        if schedule.warmup <= first <= second <= schedule.warmup + schedule.hold:
            assert before == after == 1
    assert all(low - 1e-9 <= value <= 1 for value in values)


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_may_be_empty(shape: str) -> None:
    assert curve(5, warmup=0, hold=1, final_lr_factor=0.0, shape=shape) == [1] * 5
    assert curve(5, warmup=0.5, hold=0.5, warmup_start=0, final_lr_factor=0.0, shape=shape) == pytest.approx(
        [0, 0.5, 1, 1, 1]
    )
    assert curve(5, warmup=1, hold=0, warmup_start=0, shape=shape)[-1] == 1
    assert curve(3, warmup=0, hold=0, final_lr_factor=0.0, shape=shape) == pytest.approx([1, 0.5, 0])
    assert len(curve(1, shape=shape)) == 1  # a run of one step divides by nothing


def test_weight_decay_goes_to_its_final_value_along_half_a_cosine() -> None:
    rising = OptimizerConfig(lr=1e-3, weight_decay=0.05, final_weight_decay=0.08)
    found = [weight_decay(step, 101, rising) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx(
        [0.05, 0.05 + 0.03 * (1 - math.sqrt(0.5)) / 2, 0.065, 0.08 - 0.03 * (1 - math.sqrt(0.5)) / 2, 0.08]
    )
    assert {weight_decay(step, 101, OptimizerConfig(lr=1e-3, weight_decay=0.05)) for step in range(101)} == {0.05}
