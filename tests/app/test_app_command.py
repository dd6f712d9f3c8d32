"""The command that serves the page."""

import tempfile
from pathlib import Path

import httpx
import pytest
from tiny import Run


def test_it_serves_the_page_and_leaves_nothing(var: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    answers = []

    def look() -> None:
        assert list((tmp_path / "temporary").iterdir())
        answers.append(httpx.get("http://127.0.0.1:7990/config", timeout=60).json())

    monkeypatch.setattr("var.cli.page.wait", look)
    code, out, err = var("app", "--port", "7990")
    assert (code, err) == (0, "")
    assert out == "the page is at http://127.0.0.1:7990/; Ctrl-C ends it\n"
    assert answers[0]["title"].startswith("VAR")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "missing"), "--images missing does not exist: give a folder with images"),
        (("--runs", "file"), "--runs file is a file: give a folder"),
        (("--port", "70000"), "port=70000 must be in 0..65535"),
    ],
)
def test_what_cannot_be_served_is_refused(var: Run, tmp_path: Path, options: tuple[str, str], message: str) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = var("app", *options)
    assert (code, out) == (2, "")
    assert message in err
