"""The commands of frozen features: `var features extract|classify`."""

from var.cli.features.classify import classify
from var.cli.features.extract import extract
from var.cli.run import Group

FEATURES = Group(
    "features",
    """Extract features of images with a frozen model, and classify by them.

    Examples:
      var features extract photos --model var-mini --out photos.parquet
      var features classify train.parquet validation.parquet
    """,
    {"extract": extract, "classify": classify},
)
