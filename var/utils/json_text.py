"""Reading JSON that may be damaged or made to do harm."""

import json
from typing import Any


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON document; NaN and Infinity, which JSON does not have, are read as null.

    Raises ValueError: not JSON; nested too deeply; text that is no Unicode; numbers that are not finite, or whole ones
    beyond 64 bits.
    """
    try:
        value = json.loads(content, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole)
        json.dumps(value, ensure_ascii=False).encode()  # half a character, such as "\\ud800", can be parsed only
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), -float("inf")):
        raise ValueError(f"{text} is not a finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > 20:  # Python itself would refuse thousands of digits, in words of its own
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text} is too large for a whole number")
    return number
