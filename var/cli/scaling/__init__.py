"""The commands of scaling laws: `var scaling train|fit`."""

from var.cli.run import Group
from var.cli.scaling.fit import fit
from var.cli.scaling.train import train

SCALING = Group(
    "scaling",
    """Train one recipe in several sizes, and fit scaling laws to the runs.

    Examples:
      var scaling train configs/tiny_imagenet_scaling.yaml --depths 1,2,4
      var scaling fit runs/scaling/d1 runs/scaling/d2 runs/scaling/d4 --out laws
    """,
    {"train": train, "fit": fit},
)
