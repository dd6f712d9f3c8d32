"""The `var` command: its subcommands, and that it answers quickly and fails in one line."""

import json
import logging
import re
import shlex
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny import Run, ended, refusal, run
from typer.exceptions import TyperException

from tokenizer.errors import InputError
from var.cli import app
from var.cli.edit import EDIT
from var.cli.run import Command, Group, build
from var.cli.run import run as run_commands

NAMES = [command.name if isinstance(command, Group) else command.__name__ for command in app.COMMANDS]


def test_help_lists_the_commands(var: Run) -> None:
    usual = {"sample", "edit", "classify", "train", "data", "features", "scaling", "evaluate", "bench"}
    assert usual | {"app", "plot", "info", "models", "recipes"} == set(NAMES)
    code, out, err = var("--help")
    assert (code, err) == (0, "")
    assert "var [OPTIONS] COMMAND" in out
    for name in NAMES:
        assert f" {name} " in out


@pytest.mark.parametrize("command", app.COMMANDS, ids=NAMES)
def test_each_command_has_its_help(var: Run, command: Group | Command) -> None:
    name, members = (command.name, command.commands) if isinstance(command, Group) else (command.__name__, {})
    code, out, err = var(name, "--help")
    assert (code, err) == (0, "")
    assert f"var {name} [OPTIONS]{' COMMAND' if members else ''}" in out
    for member in members:
        assert f" {member} " in out


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ((), "[OPTIONS] COMMAND"),
        (("sample",), "[OPTIONS] [CLASS...]"),
        (("classify",), "[OPTIONS] IMAGE..."),
        (("edit",), "[OPTIONS] COMMAND"),
        (("edit", "inpaint"), "[OPTIONS] IMAGE\n"),
        (("train",), "[OPTIONS] RECIPE [KEY=VALUE...]"),
    ],
)
def test_help_shows_names_and_no_types(var: Run, words: tuple[str, ...], usage: str) -> None:
    code, out, err = var(*words, "-h")
    assert (code, err) == (0, "")
    assert usage in re.sub(r" +\n", "\n", out)
    assert not re.search(r"<(bool|str|int|list)|[{}]", out)


def integer_options(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The options and arguments of all commands that take a whole number: how they are called, and the parameter."""
    for name, member in getattr(command, "commands", {}).items():
        yield from integer_options(member, f"{path} {name}")
    for parameter in command.params:
        if parameter.type_descriptor.annotation in (int, int | None):
            yield f"{path} {parameter.name}", parameter


IN_THE_COMMAND = {"left", "right", "top", "bottom"}  # of an outpainting: bounded by the image


def test_whole_numbers_of_all_commands_have_an_upper_bound() -> None:
    """A slip such as --batch 10000000000 is refused before anything is loaded; a seed may be any of 63 bits."""
    root = typer.main.get_command(build(*app.COMMANDS))
    found = dict(integer_options(root))
    assert {" bench threads", " bench repeats", " features extract batch", " evaluate generate num_per_class"} <= {
        *found
    }
    for path, parameter in found.items():
        if path.startswith(" edit outpaint") and parameter.name in IN_THE_COMMAND:
            continue
        too_large = 2**63 if parameter.name == "seed" else 10**10
        with pytest.raises((InputError, TyperException), match=str(too_large)):
            parameter.process_value(typer.Context(root), str(too_large))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sample", "207", "--out", ""), "out='' is empty"),
        (("sample", "207", "--out="), "out='' is empty"),
        (("classify", ""), "images='' is empty"),
        (("classify", "a.png", ""), "images='' is empty"),
        (("classify", "a.png", "--json", ""), "json_file='' is empty"),
        (("plot", ""), "run='' is empty"),
        (("train", ""), "recipe='' is empty"),
        (("data", "index", ""), "folder='' is empty"),
        (("edit", "inpaint", "", "--box", "0,0,1,1"), "image='' is empty"),
        (("edit", "inpaint", "a.png", "--mask", ""), "mask='' is empty"),
        (("features", "extract", "", "--model", "pixels", "--out", "f.parquet"), "folder='' is empty"),
        (("features", "classify", "a", ""), "validation='' is empty"),
        (("scaling", "fit", "", "--out", "laws"), "runs='' is empty"),
        (("evaluate", "reference", "", "--extractor", "vgg16", "--out", "r.npz"), "input='' is empty"),
        (("recipes", "copy", "mini_var", ""), "to='' is empty"),
    ],
)
def test_an_empty_path_is_refused_and_not_the_current_folder(var: Run, arguments: tuple[str, ...], told: str) -> None:
    refusal(var(*arguments), told, "give a path or a name")
    assert not [*Path().iterdir()]


def test_what_libraries_say_of_themselves_is_not_printed(var: Run) -> None:
    """Such as matplotlib's "generated new fontManager", on the first run of a machine."""
    assert var("--version")[0] == 0
    for name in ("matplotlib.font_manager", "huggingface_hub", "datasets"):
        assert logging.getLogger(name).getEffectiveLevel() >= logging.WARNING


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
    for words in ((), ("group",)):  # without what must follow, the help
        code, out, err = call(*words)
        assert (code, out.strip(), err) == (2, call(*words, "--help")[1].strip(), "")
    for mistake in (("group", "two"), ("one",), ("group", "from")):
        code, out, err = call(*mistake)
        assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("edit", "inpiant"), ("No such command 'inpiant'", "Did you mean 'inpaint'")),
        (("smaple",), ("No such command 'smaple'", "Did you mean 'sample'")),
        (("train",), ("Missing argument",)),
        (("train", "none.yaml"), ("recipe none.yaml does not exist",)),
        (("data", "tokenize", "none.yaml"), ("recipe none.yaml does not exist",)),
        (("features", "extract", "here", "--model", "aim-600M"), ("Missing option '--out'",)),
        (("features", "classify", "one.parquet"), ("Missing argument 'VALIDATION'",)),
        (("sample", "--nmu", "3"), ("No such option", "--nmu")),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(var: Run, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refusal(var(*arguments), *parts)


PARSER = typer.main.get_command(build(*app.COMMANDS, help=app.HELP))


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The command and all below it, by what is typed after `var`."""
    yield path, command
    for name, member in getattr(command, "commands", {}).items():
        yield from commands(member, (*path, name))


def parse(arguments: list[str]) -> tuple[str, ...]:
    """Parse as the command line does, without running anything; the words that name the command."""
    command, path = PARSER, []
    while hasattr(command, "commands"):
        path.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("var", arguments)
    return tuple(path)


def test_examples_of_every_help_can_be_typed() -> None:
    for path, command in commands(PARSER):
        _, _, block = command.help.partition("Examples:\n")
        examples = [line.strip() for line in block.split("\n\n")[0].splitlines()]
        assert 2 <= len(examples) <= 3
        for example in examples:
            before, _, typed = example.partition("var ")
            assert before in ("", "torchrun --nproc_per_node 8 -m ")
            assert parse(shlex.split(typed))[: len(path)] == path


def test_what_can_be_gone_on_with_says_so() -> None:
    lasting = {"train", "data tokenize", "features extract", "scaling train", "evaluate generate"}
    for path, command in commands(PARSER):
        assert ("Run the same command again to resume" in command.help) == (" ".join(path) in lasting)


def test_sampling_imports_what_it_needs(tmp_path: Path) -> None:
    """Of a shipped model and, without its list of classes, as of a released one by number; PIL and numpy are needed."""
    slow = ["scipy", "sympy", "torch._dynamo", "torch._inductor", "torchvision", "huggingface_hub", "accelerate"]
    script = (
        f"import sys\nslow = set({slow})\n"
        + """
import torch
import einops._torch_specific
slow -= sys.modules.keys()  # torch of another release may import it itself, or einops with it
from var.cli.sample import main
sys.argv = ["sample.py", "--class", "207", "--num", "1", "--dtype", "float32"]
main()
from var.pipeline import VARPipeline
pipe = VARPipeline.from_pretrained("var-mini", dtype="float32")
VARPipeline(pipe.model, pipe.vqvae)("207")
print(sorted(slow & sys.modules.keys()))
"""
    )
    done = run("-c", script, cwd=tmp_path, OMP_NUM_THREADS=1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    """Nor do mistakes in the command line; `python -m var` is the same command."""
    script = "import sys, var.cli.app as app; sys.argv = ['var', *sys.argv[1:]]\ntry: app.main()\nfinally: "
    script += "print(sorted({'torch', 'numpy', 'PIL', 'scipy'} & sys.modules.keys()))"
    helps = ("", "train", "edit", *(f"edit {verb}" for verb in EDIT.commands), "features extract")
    for typed in (*(f"{words} --help" for words in helps), "smaple", "edit inpaint p.png --box 1,2"):
        assert run("-c", script, *typed.split(), cwd=tmp_path).stdout.splitlines()[-1] == "[]"
    done = run("-m", "var", "train", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: recipe none.yaml does not exist: give the path of a YAML file\n"


def test_index_writes_what_a_recipe_can_take(var: Run, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as shard:
        for name, data in (("a.jpg", b"not read here"), ("a.cls", b"3")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, BytesIO(data))
    code, out, err = var("data", "index", tmp_path)
    assert (code, err) == (0, "")
    assert out == f"index: {tmp_path / 'index.json'}\n"
    content = json.loads((tmp_path / "index.json").read_text())
    assert content["train"] == [{"url": "train-0.tar", "nsamples": 1}]
    assert content["num_classes"] == 4
    code, out, err = var("data", "index", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere" in err
