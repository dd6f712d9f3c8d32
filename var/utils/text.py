"""Text of messages."""


def plural(number: int, noun: str, ending: str = "s") -> str:
    """`1 image`, `2 images`, `0 images`."""
    return f"{number} {noun}{'' if number == 1 else ending}"
