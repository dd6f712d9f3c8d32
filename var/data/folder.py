"""Images in folders: train/CLASS/*.jpg and val/CLASS/*.jpg, or without class folders."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenizer.errors import InputError, one_line
from var.data.config import DataConfig
from var.data.listing import SPLIT_NAMES, Encoded, Listing, MissingSplitError, Split, unlabeled
from var.utils.classes import class_labels
from var.utils.files import subfolders
from var.utils.images import find_images


class FolderSource:
    """Image files below a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        # One array instead of a million strings: reader processes share it without copying.
        self.names = np.array([os.fsencode(name) for name in names])

    def location(self, row: int) -> str:
        return str(self.folder / os.fsdecode(self.names[row]))

    def read(self, row: int) -> Encoded:
        location = self.location(row)
        return Encoded(Path(location), location)


def split_folder_of(folder: Path, split: Split) -> Path | None:
    """The folder of a split, by any of its names; None: there is none."""
    return next((folder / name for name in SPLIT_NAMES[split] if (folder / name).is_dir()), None)


def list_folder(config: DataConfig, split: Split, folder: Path) -> Listing:
    """List the images of a split below a folder. Raises InputError as `sources.list_images`."""
    split_folder, train_folder = split_folder_of(folder, split), split_folder_of(folder, "train")
    if split_folder is None or train_folder is None:
        raise MissingSplitError(
            f"data.source={str(folder)!r} has no {split} folder: add val/CLASS/*.jpg, or set data.validation_fraction "
            "to hold out that fraction of the training images"
        )
    if config.label_column is None or not subfolders(train_folder):
        return _list_unlabeled(split_folder)
    try:
        classes = class_labels(subfolders(train_folder))
    except InputError as error:
        raise InputError(f"{train_folder}: {error}") from error
    files: list[str] = []
    labels: list[int] = []
    for name in subfolders(split_folder):
        found = [f"{name}/{file}" for file in find_images(split_folder / name)]
        if found and name not in classes:
            raise InputError(f"class folder {split_folder / name} is not in {train_folder}: add or remove it")
        files += found
        labels += [classes[name]] * len(found)
    if not files:
        raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or png, webp")
    names = named_classes(folder)
    if not names and not all(name.isdecimal() for name in classes):
        names = {label: name for name, label in classes.items()}
    source = FolderSource(split_folder, files)
    return Listing(source, np.arange(len(files)), np.array(labels), max(classes.values()) + 1, names)


def _list_unlabeled(split_folder: Path) -> Listing:
    files = sorted(find_images(split_folder), key=lambda name: "/" in name)  # those of no subfolder first
    if not files:
        raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or *.jpg")
    return unlabeled(FolderSource(split_folder, files), len(files))


def named_classes(folder: Path) -> dict[int, str]:
    """What classes.json in a folder calls the labels; {} where there is none. Raises InputError on another form."""
    path = folder / "classes.json"
    if not path.is_file():
        return {}
    try:
        return {int(label): str(entry["name"]) for label, entry in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"207": {"name": "golden retriever"}}'
        raise InputError(f"{path} is not of the form {form}: correct or remove it ({one_line(error)})") from error
