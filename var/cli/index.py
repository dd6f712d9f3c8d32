"""The command that lists WebDataset shards: `var index FOLDER`."""

from pathlib import Path
from typing import Annotated

import typer


def index(
    folder: Annotated[Path, typer.Argument(help="Folder with train*.tar and val*.tar in the WebDataset form.")],
) -> None:
    """Write FOLDER/index.json, which data.source of a recipe takes; shards and index may be uploaded together then."""
    from var.data.shards import write_index

    typer.echo(f"index: {write_index(folder)}")
