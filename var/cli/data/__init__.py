"""The commands that prepare data: `var data index|tokenize`."""

from var.cli.data.index import index
from var.cli.data.tokenize import tokenize
from var.cli.run import Group

DATA = Group(
    "data",
    """List shards, fill the token cache.

    Examples:
      var data index shards
      var data tokenize configs/mini_var.yaml token_cache=runs/tokens
    """,
    {"index": index, "tokenize": tokenize},
)
