"""The `var` command and all that may follow it: `var sample`, `var edit VERB`, `var train RECIPE`, ..."""

from var.cli.classify import classify
from var.cli.edit import EDIT
from var.cli.evaluation import EVALUATE
from var.cli.features import features
from var.cli.index import index
from var.cli.run import run
from var.cli.sample import sample
from var.cli.scaling import scaling
from var.cli.series import series
from var.cli.tokenize import tokenize
from var.cli.train import train

# What a command needs it imports when it runs: help, and a slip in an option, should not wait for torch.
COMMANDS = (sample, EDIT, train, tokenize, series, index, features, classify, EVALUATE, scaling)


def main() -> None:
    """Entry point of `var` and of `python -m var`."""
    run(*COMMANDS)
