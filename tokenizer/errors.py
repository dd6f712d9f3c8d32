"""Input that cannot work: the one exception type, how errors are printed, and the check of configurations' types."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any


class InputError(ValueError):
    """What was given cannot work. The message states what was given, what is allowed and what to do.

    Commands print it as one line and exit with code 2.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an error says, for use inside a message: its first cause, in one line of at most `limit` characters.

    Libraries wrap an error in ones that say less, and spread it over lines.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a number"),
    float | None: (lambda value: value is None or _is_number(value), "a number or null"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    tuple[int, ...]: (lambda value: isinstance(value, list | tuple) and all(map(_is_whole, value)), "whole numbers"),
}


def check_types(config: Any, at_least_one: Sequence[str] = (), bounded: Sequence[str] = ()) -> None:
    """Raise InputError if a field of a configuration dataclass holds something else than its annotation says.

    Configurations come from JSON files too, where nothing else would notice a quoted number. The fields that are
    `bounded` by the caller may be infinite or not a number here: its own message says more.
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
