"""Signals that ask a process to stop."""

import os
import signal

import pytest

from var.utils.signals import catch_interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_a_flag_and_handlers_come_back(number: signal.Signals) -> None:
    received: list[int] = []
    before = signal.signal(number, lambda number, frame: received.append(number))
    try:
        with catch_interrupts() as interrupted:
            assert interrupted() is False
            os.kill(os.getpid(), number)
            assert interrupted() is True
        assert received == []
        os.kill(os.getpid(), number)
        assert received == [number]
    finally:
        signal.signal(number, before)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), catch_interrupts():
        raise RuntimeError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
