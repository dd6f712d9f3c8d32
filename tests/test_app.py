"""The `var` command: its subcommands, and that it answers quickly and fails in one line."""

import json
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from tiny import ended, run

from var.cli import app

Run = Callable[..., tuple[int, str, str]]
NAMES = [command.__name__ for command in app.COMMANDS]


@pytest.fixture
def var(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, output, error output."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["var", *map(str, arguments)])
        return ended(app.main, capsys)

    return call


def test_help_lists_the_commands(var: Run) -> None:
    assert {"sample", "train", "tokenize"} <= set(NAMES)
    code, out, err = var("--help")
    assert (code, err) == (0, "")
    assert "var [OPTIONS] COMMAND" in out
    for name in NAMES:
        assert f" {name} " in out


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_its_help(var: Run, name: str) -> None:
    code, out, err = var(name, "--help")
    assert (code, err) == (0, "")
    assert f"var {name} [OPTIONS]" in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("Missing command",)),
        (("smaple",), ("No such command 'smaple'",)),
        (("train",), ("Missing argument",)),
        (("train", "none.yaml"), ("recipe none.yaml does not exist",)),
        (("tokenize", "none.yaml"), ("recipe none.yaml does not exist",)),
        (("sample", "--nmu", "3"), ("No such option", "--nmu")),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(var: Run, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    code, out, err = var(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    """Nor do mistakes in the command line; `python -m var` is the same command."""
    script = "import sys, var.cli.app as app; sys.argv = ['var', *sys.argv[1:]]\ntry: app.main()\nfinally: "
    for arguments in (["--help"], ["train", "--help"], ["smaple"]):
        done = run("-c", f"{script}print('torch' in sys.modules)", *arguments, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "False"
    done = run("-m", "var", "train", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: recipe none.yaml does not exist: give the path of a YAML file\n"


def test_index_writes_what_a_recipe_can_take(var: Run, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as shard:
        for name, data in (("a.jpg", b"not read here"), ("a.cls", b"3")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, BytesIO(data))
    code, out, err = var("index", tmp_path)
    assert (code, err) == (0, "")
    assert out == f"index: {tmp_path / 'index.json'}\n"
    content = json.loads((tmp_path / "index.json").read_text())
    assert content["train"] == [{"url": "train-0.tar", "nsamples": 1}]
    assert content["num_classes"] == 4
    code, out, err = var("index", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere" in err
