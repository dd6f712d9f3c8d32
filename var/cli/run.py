"""How commands run, print tables, and fail: one line on standard error, exit code 2."""

import copy
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, TextIO, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException
from typer.models import OptionInfo

from tokenizer.errors import InputError, one_line
from var.cli.streams import check_printed, guard_streams
from var.utils.allocator import keep_freed_memory
from var.utils.optional_packages import optional_packages
from var.utils.paths import to_path
from var.utils.version import version

Command = Callable[..., None]

HELP_OPTIONS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
PLACEHOLDERS = {"model": "MODEL", "refiner": "MODEL", "device": "DEVICE", "dtype": "DTYPE", "out": "FOLDER"}
PLACEHOLDER_OF: dict[Any, str] = {int: "N", float: "NUMBER", Path: "PATH"}


class Group(NamedTuple):
    """Commands that share a first word."""

    name: str
    help: str
    commands: Mapping[str, Command]  # by the word that follows


def print_version(requested: bool) -> None:
    """Print the version, if it is wanted, and end the command."""
    if requested:
        typer.echo(f"var {version()}")
        raise typer.Exit


class CurrentStderr(logging.StreamHandler[TextIO]):
    """Log to what standard error is at the moment: while a bar is live, lines are put above it, not into it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


def run(*commands: Command | Group, help: str | None = None) -> None:
    """Run a function as a command, or the one of several that the first argument names; of a group, the first two.

    Input that cannot work, or that the system refuses, ends it in one line; other exceptions are bugs and show. `help`
    is of all commands together.
    """
    guard_streams()
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", handlers=[CurrentStderr()])
    logging.getLogger("var.utils.image_files").setLevel(logging.INFO)  # every command says which images it found
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries: the error that ends them says enough
    logging.getLogger("datasets").setLevel(logging.WARNING)  # which other packages it has found
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)  # that it has listed the fonts
    try:
        with optional_packages():
            code = build(*commands, help=help)(standalone_mode=False)
        check_printed()
    except TyperException as error:
        if not error.format_message():  # nothing was typed, and the help is printed
            raise SystemExit(error.exit_code) from error
        fail(f"{error.format_message()} (--help lists the options)")
    except InputError as error:
        fail(str(error))
    except OSError as error:  # a full disk, a missing permission, a folder that was removed while it was written
        fail(f"{one_line(error)}{f': {error.filename}' if error.filename is not None else ''}")
    if code:  # Ctrl-C
        raise SystemExit(code)


class PlainHelp:
    """A command whose help has no types: `--help`, `CLASS...`, `IMAGE`, not `--help <bool>`, `IMAGE <str>`, `{IMAGE}`.

    Types that say something are in the placeholders of options: `--num N`.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with what typer shows of its parameters changed first."""
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]  # of typer's class beside it
            if isinstance(parameter, TyperArgument):
                name = parameter.metavar or str(parameter.name).upper()
                parameter.metavar = name if parameter.nargs == 1 else f"{name.removesuffix('...')}..."
                usage = parameter.metavar if parameter.required else f"[{parameter.metavar}]"
                # Methods, as typer has no setting for either.
                parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # of this one alone
                parameter._usage_display_name = partial(str, usage)  # type: ignore[method-assign]  # likewise
            elif isinstance(parameter, TyperOption) and parameter.is_flag:
                parameter.metavar = ""
        super().format_help(ctx, formatter)  # type: ignore[misc]  # typer's, as above


class PlainCommand(PlainHelp, TyperCommand):
    """A command."""


class PlainGroup(PlainHelp, TyperGroup):
    """Commands that share a first word, or all."""


def build(*commands: Command | Group, help: str | None = None) -> typer.Typer:
    """The parser of the commands. A group that is named without a command prints its help."""
    several = len(commands) > 1
    app = typer.Typer(
        cls=PlainGroup,
        help=help,
        add_completion=several,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings=HELP_OPTIONS,
    )
    if several:  # a script with one command takes that command's options alone
        app.callback()(of_all)
    for command in commands:
        if isinstance(command, Group):
            group = typer.Typer(cls=PlainGroup, name=command.name, help=command.help, no_args_is_help=True)
            for name, member in command.commands.items():
                group.command(name, cls=PlainCommand)(flatten(member))
            app.add_typer(group)
        else:
            app.command(cls=PlainCommand, context_settings=HELP_OPTIONS)(flatten(command))
    return app


def of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before any command."""


def flatten(command: Command) -> Command:
    """The command with the fields of its dataclass parameters as parameters of their own, by keyword."""
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    paths: set[str] = set()

    def add(parameter: inspect.Parameter, name: str, annotation: Any, default: Any) -> None:
        annotation, is_path = _paths_as_text(_with_placeholder(name, annotation))
        if is_path:
            paths.add(name)
            default = str(default) if isinstance(default, Path) else default
        keyword = parameter.KEYWORD_ONLY
        parameters.append(parameter.replace(name=name, kind=keyword, default=default, annotation=annotation))

    for parameter in inspect.signature(command).parameters.values():
        bundle = parameter.annotation
        if not is_dataclass(bundle):
            add(parameter, parameter.name, bundle, parameter.default)
            continue
        bundles[parameter.name] = bundle
        hints = get_type_hints(bundle, include_extras=True)
        for field in fields(bundle):
            default = parameter.empty if field.default is MISSING else field.default
            add(parameter, field.name, hints[field.name], default)

    def flat(**values: Any) -> None:
        values |= {name: _read_paths(name, values[name]) for name in paths}
        for name, bundle in bundles.items():
            values[name] = bundle(**{field.name: values.pop(field.name) for field in fields(bundle)})
        command(**values)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    return flat


def _with_placeholder(name: str, annotation: Any) -> Any:
    """Return an option's type with a word for its value in the help, where there is none: `--num N`, `--out FOLDER`."""
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    kinds = {kind, *get_args(kind)}
    word = PLACEHOLDERS.get(name) or next((word for each, word in PLACEHOLDER_OF.items() if each in kinds), None)
    if bool in kinds:
        word = ""
    elif str in kinds and word is None:
        word = name.upper()
    if word is None or not notes or not isinstance(notes[0], OptionInfo) or notes[0].metavar is not None:
        return annotation
    option = copy.copy(notes[0])
    option.metavar = word
    return Annotated[kind, option]


TEXT_OF: dict[Any, Any] = {Path: str, Path | None: str | None, list[Path]: list[str]}


def _paths_as_text(annotation: Any) -> tuple[Any, bool]:
    """Return an option's type with text in place of paths, and whether it has paths.

    The parser would make the current folder of an empty text, as `pathlib.Path` does, before anybody could refuse it.
    """
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if kind not in TEXT_OF:
        return annotation, False
    if not notes:
        return TEXT_OF[kind], True
    info = copy.copy(notes[0])
    info.path_type = str  # completed in a shell as a path is
    return Annotated[TEXT_OF[kind], info], True


def _read_paths(name: str, value: Any) -> Any:
    """Return the paths that an option gives, with ~ as the user's home; refuse what no file is called."""
    if isinstance(value, list):
        return [_read_paths(name, each) for each in value]
    return None if value is None else to_path(value, name)


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, as wide as its columns need; nothing is cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def fail(message: str) -> NoReturn:
    """Print the message in one line and leave with exit code 2."""
    line = "error: " + " ".join(message.split())
    # What was typed may hold bytes that are no text, which a stream of a notebook's or a test's own cannot print.
    print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    raise SystemExit(2)
