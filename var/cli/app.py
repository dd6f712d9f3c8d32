"""The `var` command and all that may follow it: `var sample`, `var edit VERB`, `var train RECIPE`, ..."""

from var.cli.bench import bench
from var.cli.classify import classify
from var.cli.data import DATA
from var.cli.edit import EDIT
from var.cli.evaluation import EVALUATE
from var.cli.features import FEATURES
from var.cli.info import info, models
from var.cli.page import app
from var.cli.plot import plot
from var.cli.recipes import RECIPES
from var.cli.run import run
from var.cli.sample import sample
from var.cli.scaling import SCALING
from var.cli.train import train

# What a command needs it imports when it runs: help, and a slip in an option, should not wait for torch.
WORK = (sample, EDIT, classify, train, plot, DATA, FEATURES, EVALUATE, SCALING, bench, app)
COMMANDS = (*WORK, info, models, RECIPES)

HELP = """Image generation by next-scale prediction (VAR) and image features (AIM).

Examples:
  var sample 207
  var edit outpaint photo.jpg --left 128
  var train mini_var --dry-run
"""


def main() -> None:
    """Entry point of `var` and of `python -m var`."""
    run(*COMMANDS, help=HELP)
