"""Input that cannot work: the one exception type, how errors are printed, and checks of types."""

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

LONGEST_MESSAGE = 2000  # characters


class InputError(ValueError):
    """Input that cannot work. The message states what was given, what is allowed and what to do.

    Commands print it as one line and exit with code 2. Of a longer text than LONGEST_MESSAGE the middle is left out:
    what was given may be of any length.
    """

    def __str__(self) -> str:
        text = super().__str__()
        half = LONGEST_MESSAGE // 2
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an error's text for use inside a message: its first cause, in one line of at most `limit` characters.

    Libraries wrap errors in others with less information, and spread them over lines.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)  # no number, no path
    if "set_int_max_str_digits" in text:  # Python's advice, which is for programmers
        text = "a whole number of thousands of digits is too large"
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def abbreviate(value: object, limit: int = 80) -> str:
    """Return a value as Python writes it, cut after `limit` characters, for use inside a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits" if isinstance(value, int) else f"a nested {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" with the known name nearest to that given, in any case; "" if none is near."""
    by_spelling = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_spelling, n=1)
    return f" (did you mean {by_spelling[near[0]]}?)" if near else ""


LARGEST = 2**24  # of a size that has no smaller bound: far above what is built anywhere, far below what overflows
DEEPEST = 2**7  # of a number of blocks, each of which takes time to build


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38


def _is_sequence_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


def check_whole_number(name: str, value: object, at_least: int, at_most: int | None = None) -> int:
    """Return an argument, a whole number of any library (numpy, torch), as an int of at most 64 bits.

    Raises InputError: another type, a bool among them, or out of range.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what it refuses is what is checked here
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InputError(f"{name}={abbreviate(value)} must be a whole number")
    if at_most is not None and not at_least <= number <= at_most:
        raise InputError(f"{name}={abbreviate(number)} must be in {at_least}..{at_most}")
    if number >= 2**63:
        raise InputError(f"{name}={abbreviate(number)} is too large: less than 2^63 is needed")
    if number < at_least:
        raise InputError(f"{name}={abbreviate(number)} must be at least {at_least}")
    return number


_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a number"),
    int | None: (lambda value: value is None or _is_whole(value), "a whole number, or None (null in files)"),
    float | None: (lambda value: value is None or _is_number(value), "a number, or None (null in files)"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    tuple[int, ...]: (_is_sequence_of(_is_whole), "whole numbers"),
    tuple[int, ...] | None: (
        lambda value: value is None or _is_sequence_of(_is_whole)(value),
        "whole numbers, such as (1, 4), or None (null in files)",
    ),
    float | tuple[float, ...]: (
        lambda value: _is_number(value) or _is_sequence_of(_is_number)(value),
        "a number or several",
    ),
}


def _check_choice(literal: Any) -> tuple[Callable[[Any], bool], str]:
    choices = get_args(literal)
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def check_types(
    config: Any,
    at_least_one: Sequence[str] = (),
    bounded: Sequence[str] = (),
    at_most: Mapping[str, int] | None = None,
) -> None:
    """Raise InputError if a field of a configuration dataclass holds something else than its annotation says.

    Configurations also come from JSON files, where nothing else would notice a quoted number. Fields in `bounded` may
    be infinite or NaN: the caller checks their range with a message of its own. Whole numbers are at most LARGEST, or
    what `at_most` says of their field, so that nothing is built, or even counted, of a size that cannot work.
    """
    for field in fields(config):
        fits, wanted = _CHECKS.get(field.type) or _check_choice(field.type)
        value = getattr(config, field.name)
        if field.name in bounded and isinstance(value, float):
            continue
        if not fits(value):
            raise InputError(f"{field.name}={abbreviate(value)} must be {wanted}")
        largest = (at_most or {}).get(field.name, LARGEST)
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, int) and abs(number) > largest for number in numbers):
            raise InputError(f"{field.name}={abbreviate(value)} is too large: at most {largest}")
        if field.name in at_least_one and value < 1:
            raise InputError(f"{field.name}={value} must be at least 1")
