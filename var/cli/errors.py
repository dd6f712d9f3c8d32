"""How commands fail: one line on standard error, exit code 2."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from tokenizer.errors import InputError

Parameters = ParamSpec("Parameters")


def one_line_errors(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Print an InputError as `error: ...` and exit with code 2; other exceptions are bugs and keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            typer.echo("error: " + " ".join(str(error).split()), err=True)
            raise typer.Exit(2) from error

    return wrapped
