"""The command that lists WebDataset shards: `var data index FOLDER`."""

import typer

from var.cli import options


def index(folder: options.ShardFolder) -> None:
    """Write FOLDER/index.json, which data.source of a recipe takes; shards and index may be uploaded together then.

    Examples:
      var data index shards
      var data index /data/imagenet-wds
    """
    from var.data.shards import write_index

    typer.echo(f"index: {write_index(folder)}")
