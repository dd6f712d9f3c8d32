"""Standard output that is closed, full or of a narrow encoding does not end a command."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from tiny import TIMEOUT, environment

from var.cli.run import CurrentStderr

SCRIPT = """
from pathlib import Path
import sys, typer
from rich.console import Console
from var.cli.run import run

def write(folder: Path) -> None:
    for _ in range(200):
        Console().print("step 1 of 2 \\u96ea \\udcff")
        typer.echo("p\\xe9")
        print("\\u96ea")
    with (folder / "result").open("w") as result:
        result.write("whole" if result.fileno() > 2 else "a standard descriptor")
    print("warning: \\u96ea", file=sys.stderr)

run(write)
"""


def write(folder: Path, ending: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a shell, with that after it; `status` of its output is the command's own exit code."""
    (folder / "result").unlink(missing_ok=True)
    (folder / "command.py").write_text(SCRIPT)
    shell = f"'{sys.executable}' command.py . {ending}; echo status ${{PIPESTATUS[0]}} >&2"
    return subprocess.run(
        ["bash", "-c", shell], cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=TIMEOUT
    )


@pytest.mark.parametrize(
    ("ending", "variables"),
    [
        ("| head -1", {}),
        ("2>&1 | head -1", {}),
        (">&-", {}),
        (">&- 2>&-", {}),
        ("<&- >&- 2>&-", {}),
        ("| cat", {"PYTHONIOENCODING": "ascii"}),
        ("| cat", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_the_work_is_done_all_the_same(tmp_path: Path, ending: str, variables: dict[str, str]) -> None:
    done = write(tmp_path, ending, **variables)
    assert done.stderr.splitlines()[-1] == "status 0"
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "result").read_text() == "whole"


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no device that is always full")
def test_a_table_that_a_full_disk_cuts_short_is_an_error(tmp_path: Path) -> None:
    done = write(tmp_path, "> /dev/full")
    assert "error: standard output is cut short (No space left on device)" in done.stderr
    assert done.stderr.splitlines()[-1] == "status 2"
    assert (tmp_path / "result").read_text() == "whole"


def test_log_lines_are_put_above_a_live_bar() -> None:
    handler = CurrentStderr()  # made before the bar, which takes the place of standard error while it is live
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with Progress(console=console, auto_refresh=False) as bar:
        bar.add_task("images", total=3)
        handler.emit(logging.makeLogRecord({"msg": "a warning"}))
    assert "a warning\n" in shown.getvalue()
