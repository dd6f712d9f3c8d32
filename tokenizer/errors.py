"""The one exception type for input that cannot work: commands print it as one line and exit with code 2."""


class InputError(ValueError):
    """What was given cannot work. The message states what was given, what is allowed and what to do."""
