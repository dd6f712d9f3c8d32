"""Text of messages and of files' names."""

import os


def plural(number: int, noun: str, ending: str = "s") -> str:
    """`1 image`, `2 images`, `0 images`."""
    return f"{number} {noun}{'' if number == 1 else ending}"


def escape(text: str) -> str:
    """Return text as valid Unicode: what stands in it for bytes of a file's name that are not UTF-8 is escaped."""
    return text.encode(errors="backslashreplace").decode()


def as_unicode(name: str) -> str:
    """Return a file's name as valid Unicode, as UTF-8 in any locale; bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")
