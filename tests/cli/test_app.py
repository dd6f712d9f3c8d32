"""The `var` command: its subcommands, and that it answers quickly and fails in one line."""

import json
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from tiny import Run, ended, refusal, run

from var.cli import app
from var.cli.run import Group
from var.cli.run import run as run_commands

NAMES = [command.name if isinstance(command, Group) else command.__name__ for command in app.COMMANDS]


def test_help_lists_the_commands(var: Run) -> None:
    assert {"sample", "edit", "train", "tokenize", "index", "features", "classify"} <= set(NAMES)
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


def test_a_group_lists_and_runs_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def one(number: int = 1) -> None:
        """Do one thing."""
        ran.append(number)

    def from_(number: int) -> None:
        """Do another."""
        ran.append(-number)

    def alone() -> None:
        """Stand beside the group."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tool", *arguments])
        return ended(lambda: run_commands(alone, Group("group", "Do things.", {"one": one, "from": from_})), capsys)

    _, out, _ = call("--help")
    assert "Stand beside the group." in out
    assert "Do things." in out
    assert "Do one thing." not in out
    _, out, _ = call("group", "--help")
    assert all(part in out for part in ("Do things.", " one ", "Do one thing.", " from ", "Do another."))
    assert [call("group", "one"), call("group", "one", "--number", "2"), call("group", "from", "3")] == [
        (0, "", "")
    ] * 3
    assert ran == [1, 2, -3]
    for mistake in (("group",), ("group", "two"), ("one",), ("group", "from")):
        code, out, err = call(*mistake)
        assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("Missing command",)),
        (("edit",), ("Missing command",)),
        (("edit", "inpiant"), ("No such command 'inpiant'",)),
        (("smaple",), ("No such command 'smaple'",)),
        (("train",), ("Missing argument",)),
        (("train", "none.yaml"), ("recipe none.yaml does not exist",)),
        (("tokenize", "none.yaml"), ("recipe none.yaml does not exist",)),
        (("features", "here", "--model", "aim-600M"), ("Missing option '--out'",)),
        (("classify", "one.parquet"), ("Missing argument 'VALIDATION'",)),
        (("sample", "--nmu", "3"), ("No such option", "--nmu")),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(var: Run, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refusal(var(*arguments), *parts)


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    """Nor do mistakes in the command line; `python -m var` is the same command."""
    script = "import sys, var.cli.app as app; sys.argv = ['var', *sys.argv[1:]]\ntry: app.main()\nfinally: "
    for arguments in (["--help"], ["train", "--help"], ["edit", "--help"], ["features", "--help"], ["smaple"]):
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
