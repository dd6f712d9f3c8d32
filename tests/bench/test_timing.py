"""Turns and memory; no time is asserted."""

import mmap
import sys
from functools import partial

import pytest
import torch

from var.bench.timing import Spread, peak_memory, reset_peak_memory, take_turns

CPU = torch.device("cpu")


def test_every_round_has_all_actions() -> None:
    calls: list[str] = []
    times = take_turns([partial(calls.append, "a"), partial(calls.append, "b")], 3, CPU)
    assert "".join(calls) == "ababab"
    assert [len(each) for each in times] == [3, 3]


def test_a_spread_is_around_the_median() -> None:
    assert Spread.of([4.0, 1.0, 2.0]) == Spread(2.0, 1.0, 4.0, (4.0, 1.0, 2.0))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the whole run")
def test_the_peak_begins_anew() -> None:
    size = 2**26
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    with mmap.mmap(-1, size) as pages:  # new pages for sure: a tensor may get what malloc holds already
        pages[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        assert peak_memory(CPU) >= before + size - 2**22
    reset_peak_memory(CPU)
    assert peak_memory(CPU) < before + size - 2**22
