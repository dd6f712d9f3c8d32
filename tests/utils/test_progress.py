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


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress(True) as show:
        assert show is not None
        show(1, 4)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_function_is_called_as_it_is_and_false_is_none() -> None:
    def count(done: float, total: int) -> None:
        raise AssertionError

    for given, opened in ((count, count), (False, None), (None, None)):
        with open_progress(given) as show:
            assert show is opened
