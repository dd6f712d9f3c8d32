"""What pytest captures stays open whatever the libraries under test do with logging."""

import io
import logging.config
from contextlib import redirect_stderr

import pytest
from absl.logging import get_absl_handler, use_absl_handler
from uvicorn.config import LOGGING_CONFIG


def test_setting_up_logging_closes_nothing_that_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    use_absl_handler()
    with redirect_stderr(io.StringIO()):  # as in a test that captures the output of a command
        logging.config.dictConfig(LOGGING_CONFIG)
    assert not get_absl_handler().python_handler.stream.closed
