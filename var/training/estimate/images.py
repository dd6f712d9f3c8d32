"""How many images and classes a recipe has, told without reading or downloading any."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tokenizer.errors import InputError, one_line
from var.data.sources import list_images
from var.data.tables import parquet_files
from var.data.token_cache import MANIFEST, Manifest
from var.training.config import AnyRecipe, Recipe, VARRecipe


class Images(NamedTuple):
    """What is known of the training images without reading them."""

    number: int | None = None
    classes: int | None = None
    unknown: str | None = None  # what could not be told, and why


def find_images(recipe: AnyRecipe) -> Images:
    """The number of training images and classes, from a token cache or from where the images lie."""
    if isinstance(recipe, VARRecipe) and recipe.tokens and (recipe.tokens / MANIFEST).is_file():
        info = Manifest.model_validate_json((recipe.tokens / MANIFEST).read_bytes()).splits["train"]
        return Images(info.samples, info.num_classes)
    source = recipe.data.source
    folder = Path(source).expanduser()
    try:
        if folder.is_dir() and not (folder / "train").is_dir() and (files := parquet_files(folder, "train")):
            return _in_parquet(recipe, files)
        if not folder.exists() and source.count("/") == 1 and not source.endswith(".json"):
            return _on_the_hub(source)
        listing = list_images(recipe.data, "train")
    except InputError as error:
        return Images(unknown=f"the number of images is unknown: {error}")
    return Images(len(listing.rows), listing.num_classes)


def _in_parquet(recipe: Recipe, files: Sequence[str]) -> Images:
    """Counted in the files themselves: opened as a dataset they would be copied to a cache."""
    import pyarrow.parquet

    data = recipe.data
    try:
        if data.label_column is None:
            return Images(sum(pyarrow.parquet.read_metadata(file).num_rows for file in files), 1)
        tables = [pyarrow.parquet.read_table(file, columns=[data.label_column]) for file in files]
        labels = torch.cat([torch.tensor(table[data.label_column].to_numpy()) for table in tables])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own derive from these
        return Images(unknown=f"the number of images is unknown: {one_line(error)}")
    chosen = labels if data.classes is None else labels[torch.isin(labels, torch.tensor(data.classes))]
    return Images(len(chosen), int(labels.max()) + 1)


def _on_the_hub(name: str) -> Images:
    """What `datasets` noted of a dataset when it was loaded here before."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    for path in sorted(folder.glob("*/*/*/dataset_info.json")):
        number = json.loads(path.read_bytes()).get("splits", {}).get("train", {}).get("num_examples")
        if number:
            return Images(int(number))
    return Images(unknown=f"the number of images is unknown: {name} is no folder, nor loaded from the hub before")
