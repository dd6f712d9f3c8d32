"""The `var` command and all that may follow it: `var sample`, `var edit VERB`, `var train RECIPE`, ..."""

import sys
from collections.abc import Sequence

from var.cli.data import DATA
from var.cli.edit import EDIT
from var.cli.evaluation import EVALUATE
from var.cli.features import FEATURES
from var.cli.run import run
from var.cli.sample import sample
from var.cli.scaling import SCALING
from var.cli.train import train

# What a command needs it imports when it runs: help, and a slip in an option, should not wait for torch.
COMMANDS = (sample, EDIT, train, DATA, FEATURES, EVALUATE, SCALING)

HELP = """Image generation by next-scale prediction (VAR) and image features (AIM).

Examples:
  var sample --class 207
  var edit outpaint photo.jpg --left 128
  var train configs/mini_var.yaml --dry-run
"""

# Read for one release.
OLD_COMMANDS = {
    "index": ["data", "index"],
    "tokenize": ["data", "tokenize"],
    "classify": ["features", "classify"],
    "series": ["scaling", "train"],
}
OLD_GROUPS = {"features": (FEATURES, "extract"), "scaling": (SCALING, "fit")}  # what the name alone meant
OLD_OPTIONS = {
    "--hide": "--hide-masked",
    "--no-hide": "--no-hide-masked",
    "--match": "--color-match",
    "--no-match": "--no-color-match",
}


def main() -> None:
    """Entry point of `var` and of `python -m var`."""
    run(*COMMANDS, help=HELP, arguments=current_spelling(sys.argv[1:]))


def current_spelling(arguments: Sequence[str]) -> list[str]:
    """What was typed in today's words, with a warning on standard error where it was in older ones."""
    first, *rest = arguments or [""]
    if first in OLD_COMMANDS:
        return [*_renamed([first], OLD_COMMANDS[first]), *rest]
    if first in OLD_GROUPS and rest:
        group, verb = OLD_GROUPS[first]
        return [*([first] if rest[0] in {*group.commands, "--help"} else _renamed([first], [first, verb])), *rest]
    if first == "edit":
        return [first, *(_renamed([word], [OLD_OPTIONS[word]])[0] if word in OLD_OPTIONS else word for word in rest)]
    return list(arguments)


def _renamed(old: list[str], new: list[str]) -> list[str]:
    """The new words, after a warning."""
    print(
        f"warning: {' '.join(old)} is now {' '.join(new)}: the old spelling goes with the next release", file=sys.stderr
    )
    return new
