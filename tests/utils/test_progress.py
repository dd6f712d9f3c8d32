"""The live line of a call that takes long."""

import io
import sys

import pytest

from var.utils.progress import live_bar, open_progress


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_number_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with live_bar() as show:
        show(1.5, 4)
        show(4, 4)
    text = terminal.getvalue()
    assert "4/4" in text
    assert "images/s" in text
    assert "0:00:00" in text


def test_elsewhere_a_line_is_printed_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((0.0, 1.0, 12.0, 13.0, 24.0, 40.0))
    monkeypatch.setattr("var.utils.progress.time.perf_counter", lambda: next(times))
    with open_progress(True) as show:
        assert show is not None
        for done in (0.5, 6.5, 7, 12, 24):
            show(done, 24)
    captured = capsys.readouterr()
    lines = ["6 of 24 images  0.5 images/s  0:00:32 left", "12 of 24 images  0.5 images/s  0:00:24 left"]
    assert (captured.out, captured.err.splitlines()) == ("", lines)


def test_a_function_is_called_as_it_is_and_false_is_none() -> None:
    def count(done: float, total: int) -> None:
        raise AssertionError

    for given, opened in ((count, count), (False, None), (None, None)):
        with open_progress(given) as show:
            assert show is opened
