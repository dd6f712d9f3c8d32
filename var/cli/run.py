"""How commands run and fail: one line on standard error, exit code 2."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

import typer
from typer.exceptions import TyperException

from tokenizer.errors import InputError

Command = Callable[..., None]


class Group(NamedTuple):
    """Commands that share a first word."""

    name: str
    help: str
    commands: Mapping[str, Command]  # by the word that follows


def run(*commands: Command | Group) -> None:
    """Run a function as a command, or the one of several that the first argument names; of a group, the first two.

    Input that cannot work ends it in one line; other exceptions are bugs and show.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries: the error that ends them says enough
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for command in commands:
        if isinstance(command, Group):
            group = typer.Typer(name=command.name, help=command.help)
            for name, member in command.commands.items():
                group.command(name)(member)
            app.add_typer(group)
        else:
            app.command()(command)
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        fail(f"{error.format_message()} (--help lists the options)")
    except InputError as error:
        fail(str(error))
    if code:  # Ctrl-C
        raise SystemExit(code)


def fail(message: str) -> NoReturn:
    """Print the message in one line and leave with exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)
