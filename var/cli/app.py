"""The `var` command: `var sample`, `var edit VERB`, `var train RECIPE`, `var tokenize RECIPE`, `var index FOLDER`."""

from var.cli.edit import EDIT
from var.cli.index import index
from var.cli.run import run
from var.cli.sample import sample
from var.cli.tokenize import tokenize
from var.cli.train import train

# What a command needs it imports when it runs: help, and a slip in an option, should not wait for torch.
COMMANDS = (sample, EDIT, train, tokenize, index)


def main() -> None:
    """Entry point of `var` and of `python -m var`."""
    run(*COMMANDS)
