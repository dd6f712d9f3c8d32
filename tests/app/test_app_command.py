"""The command that serves the page."""

import socket
import tempfile
from pathlib import Path

import httpx
import pytest
from tiny import Run

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'var-next-scale[app]'")

from var.app.page import allowed_hosts


def test_it_serves_the_page_and_leaves_nothing(var: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    answers, served = [], {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"

    def look() -> None:
        assert list((tmp_path / "temporary").iterdir())
        answers.append(httpx.get(f"{address}config", timeout=60).json())
        for name in (f"localhost:{port}", "127.0.0.1", f"evil.example:{port}", "localhost.evil.example"):
            served[name] = httpx.get(f"{address}config", headers={"Host": name}, timeout=60).status_code

    monkeypatch.setattr("var.cli.page.wait", look)
    code, out, err = var("app", "--port", port)
    assert (code, err) == (0, "loading var-mini and the page ...\n")
    assert list(served.values()) == [200, 200, 400, 400]
    assert out == f"the page is at {address}; Ctrl-C ends it\n"
    assert answers[0]["title"].startswith("VAR")
    assert not list((tmp_path / "temporary").iterdir())


def test_a_port_in_use_is_named_before_anything_is_loaded(var: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = var("app", "--port", port)
    assert (code, out) == (2, "")
    assert (
        err == f"error: port {port} is in use, perhaps by another `var app`: give another --port, or 0 for a free one\n"
    )


def test_only_a_page_for_other_machines_takes_any_name() -> None:
    assert allowed_hosts("0.0.0.0") == allowed_hosts("192.168.0.7") == ["*"]
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1"):
        assert {"localhost", "127.0.0.1", "[::1]", host} <= set(allowed_hosts(host))
        assert "*" not in allowed_hosts(host)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "missing"), "--images missing does not exist: give a folder with images"),
        (("--runs", "file"), "--runs file is a file: give a folder"),
        (("--port", "70000"), "port=70000 must be in 0..65535"),
        (("--host", "256.0.0.1"), "cannot listen at 256.0.0.1, port 7860 ("),
    ],
)
def test_what_cannot_be_served_is_refused(var: Run, tmp_path: Path, options: tuple[str, str], message: str) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = var("app", *options)
    assert (code, out) == (2, "")
    assert message in err
