"""Input that cannot work: the one exception type, how errors are printed, and checks of types."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any


class InputError(ValueError):
    """Input that cannot work. The message states what was given, what is allowed and what to do.

    Commands print it as one line and exit with code 2.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an error's text for use inside a message: its first cause, in one line of at most `limit` characters.

    Libraries wrap errors in others with less information, and spread them over lines.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)  # no number, no path
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def check_whole_number(name: str, value: object, at_least: int, at_most: int | None = None) -> int:
    """Return an argument, a whole number of any library (numpy, torch), as an int.

    Raises InputError: another type, a bool among them, or out of range.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what it refuses is what is checked here
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InputError(f"{name}={value!r} must be a whole number")
    if at_most is not None and not at_least <= number <= at_most:
        raise InputError(f"{name}={number} must be in {at_least}..{at_most}")
    if number < at_least:
        raise InputError(f"{name}={number} must be at least {at_least}")
    return number


_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a number"),
    float | None: (lambda value: value is None or _is_number(value), "a number or null"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    tuple[int, ...]: (lambda value: isinstance(value, list | tuple) and all(map(_is_whole, value)), "whole numbers"),
}


def check_types(config: Any, at_least_one: Sequence[str] = (), bounded: Sequence[str] = ()) -> None:
    """Raise InputError if a field of a configuration dataclass holds something else than its annotation says.

    Configurations also come from JSON files, where nothing else would notice a quoted number. Fields in `bounded` may
    be infinite or NaN: the caller checks their range with a message of its own.
    """
    for field in fields(config):
        fits, wanted = _CHECKS[field.type]
        value = getattr(config, field.name)
        if field.name in bounded and isinstance(value, float):
            continue
        if not fits(value):
            raise InputError(f"{field.name}={value!r} must be {wanted}")
        if field.name in at_least_one and value < 1:
            raise InputError(f"{field.name}={value} must be at least 1")
