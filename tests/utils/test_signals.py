"""Signals that ask a process to stop."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

import pytest

from var.utils.signals import ONE_REQUEST, catch_interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sets_a_flag_and_handlers_come_back(number: signal.Signals) -> None:
    received: list[int] = []
    before = signal.signal(number, lambda number, frame: received.append(number))
    try:
        with catch_interrupts() as interrupts:
            assert not interrupts
            os.kill(os.getpid(), number)
            assert interrupts
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


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_has_no_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with catch_interrupts() as interrupts:
            found.append((bool(interrupts), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def wait_outside_python() -> None:
    """Wait where no Python handler runs and no signal interrupts, as for a device or for another process."""
    with catch_interrupts() as interrupts:
        interrupts.work = "the device"
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of another size")
@pytest.mark.parametrize("count", [2, 3])
def test_a_process_that_does_not_come_back_to_python_ends(count: int) -> None:
    """After the second signal in a few seconds, after the third at once."""
    process = multiprocessing.get_context("fork").Process(target=wait_outside_python)
    process.start()
    assert process.pid is not None
    for _ in range(count):
        process.join(ONE_REQUEST + 0.2)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
