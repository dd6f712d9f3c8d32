"""The page's server: what may be read through it, and many requests."""

import re

import pytest
from page_client import Visitor, error_of, file_data
from tiny import ROOT, run

from var.app.uploads import MAX_BYTES

GENERATE, EDIT = "generate-button", "edit-button"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", f"{ROOT}/pyproject.toml", "pyproject.toml", "%2e%2e/%2e%2e/etc/passwd"],
)
def test_no_file_outside_the_pages_folder_is_served(visitor: Visitor, path: str) -> None:
    for route in ("file=", "file/"):
        assert visitor.client.get(route + path).status_code in (403, 404, 422)


@pytest.mark.parametrize("path", ["/etc/passwd", f"{ROOT}/docs/grid.png", "../docs/grid.png"])
def test_no_file_outside_the_pages_folder_is_an_upload(visitor: Visitor, path: str) -> None:
    drawing = {"background": file_data(path), "layers": [], "composite": None}
    messages = visitor.click(EDIT, {0: drawing})
    assert not messages[-1]["success"]
    assert "root:" not in str(messages)


def test_an_upload_that_is_too_large_is_refused(visitor: Visitor) -> None:
    assert visitor.upload("large.png", bytes(MAX_BYTES + 1)).status_code == 413


def test_what_the_server_finds_wrong_is_said_in_the_page(visitor: Visitor) -> None:
    (path,) = visitor.upload("note.png", b"no image").json()
    drawing = {"background": file_data(path, "note.png"), "layers": [], "composite": None}
    message = error_of(visitor.click(EDIT, {0: drawing}))
    assert message.startswith("note.png is not an image in one of the formats")
    assert "no class chosen" in error_of(visitor.click(GENERATE, {0: []}))
    for position, value in ((0, ["no class"]), (0, 5), (1, 10**9), (1, "x"), (3, -1), (4, 10**9), (6, None)):
        assert "Traceback" not in str(visitor.click(GENERATE, {position: value}))


def test_eight_at_once_are_all_served(visitor: Visitor) -> None:
    sessions = [visitor.start(GENERATE, {1: 1, 2: seed}) for seed in range(8)]
    assert all(visitor.messages(session)[-1]["success"] for session in sessions)


def test_memory_stays_bounded() -> None:
    """As `benchmarks/page.py memory` measures it in a process of its own, once the first requests have warmed it up."""
    done = run("benchmarks/page.py", "memory", "--requests", 30)
    assert done.returncode == 0, done.stderr
    found = {int(n): float(rss) for n, rss in re.findall(r"(\d+) requests +([\d.]+) MiB", done.stdout)}
    assert list(found) == [*range(0, 31, 3), 38]
    assert max(found[n] for n in found if 9 < n <= 30) - found[9] < 40
