"""Lists of a split's images and labels, from any source, without opening the images."""

import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError
from var.data.config import DataConfig
from var.data.listing import Encoded, Listing, MissingSplitError, Split, split_names, unlabeled
from var.data.tables import list_hub, list_parquet, parquet_files
from var.data.webdataset import list_shards
from var.utils.classes import class_labels, folder_names, label_of_text, named_classes
from var.utils.classes import listing as listing_of
from var.utils.image_files import IMAGE_SUFFIXES, class_folders, find_images, log_once
from var.utils.paths import subfolders, to_path
from var.utils.text import plural

log = logging.getLogger(__name__)

_CHOICE = 0  # seed of choices of images, the same for all runs: no stage may train on images that another one holds out


def list_images(config: DataConfig, split: Split) -> Listing:
    """List the images and labels of a split.

    Folders: train/CLASS and val/CLASS. Labels number the sorted class names of train/; if all names are numbers, they
    are the labels themselves, unless they are too large for so few classes (`labels_fit`), as ids are. Folders without
    images are no classes. Images directly below train/ are one class. A folder without train/ that holds CLASS/*.jpg or
    *.jpg is the training split, unless the names CLASS are those of splits. Parquet files and hub datasets: the label
    column. A classes.json in the folder, {"207": {"name": "golden retriever"}}, names the labels. The index of shards:
    see `shards`. With data.label_column=null every label is 0.

    Without a validation split, data.validation_fraction holds out that part of the training images: one drawn from
    every 1 / fraction consecutive ones, so that all classes have their share; of shards, whole ones. A split named test
    serves for validation where there is no other and nothing is held out.

    Of the training images of the chosen classes, at most data.train_images are taken, chosen likewise.

    Raises InputError: no such folder or dataset, split, column or class; no images; labels that are missing.
    """
    listing = _hold_out(config, split) if config.validation_fraction else _list_split(config, split)
    if config.classes is not None:
        listing = _select_classes(config, config.classes, split, listing)
    count = len(listing.rows)
    if split == "validation" or config.train_images is None or config.train_images >= count:
        return listing
    return listing.select(np.isin(np.arange(count), _spread_choice(count, config.train_images)))


def _hold_out(config: DataConfig, split: Split) -> Listing:
    try:
        validation = _list_split(config, "validation")
    except MissingSplitError:
        whole = _list_split(config, "train")
        units = np.arange(len(whole.rows)) if whole.shards is None else whole.shards
        held_out = np.isin(units, _choose_held_out(int(units[-1]) + 1, config))
        return whole.select(held_out if split == "validation" else ~held_out)
    log_once(
        logging.WARNING,
        f"data.validation_fraction={config.validation_fraction:g} is not used: {config.source} has a validation split",
    )
    return validation if split == "validation" else _list_split(config, split)


def _choose_held_out(count: int, config: DataConfig) -> NDArray[np.int64]:
    if count < 2:
        raise InputError(
            f"data.source={config.source!r} has a single training image or shard, none of which can be held out: "
            "add a validation split, or more of them"
        )
    chosen = max(1, round(config.validation_fraction * count))
    if chosen >= count:
        raise InputError(
            f"data.validation_fraction={config.validation_fraction:g} holds out {chosen} of {count} training images "
            f"or shards of {config.source!r}, which leaves none: lower it, or add a validation split"
        )
    return _spread_choice(count, chosen)


def _spread_choice(count: int, chosen: int) -> NDArray[np.int64]:
    """(chosen,): one of each of so many equal stretches of 0..count - 1, drawn, the same in every call."""
    edges = np.arange(chosen + 1) * count // chosen
    return np.random.default_rng(_CHOICE).integers(edges[:-1], edges[1:])


def _select_classes(config: DataConfig, given: Sequence[int | str], split: Split, listing: Listing) -> Listing:
    labels = listing.labels
    if labels is None:
        raise InputError(
            f"data.classes cannot choose from the shards of {config.source!r}, whose labels are inside them: "
            "leave it out, or make shards of these classes"
        )
    classes = [_label_of(config, each, listing.class_names) for each in given]
    chosen = listing.select(np.isin(labels, classes))
    present = np.unique(labels).tolist()
    absent = sorted(set(classes) - set(present))
    if split == "train" and absent:
        some = ", ".join(map(str, present[:40])) + (", ..." if len(present) > 40 else "")
        raise InputError(f"data.classes: {config.source!r} has no training images of {absent}, only of {some}")
    if not len(chosen.rows):
        raise InputError(f"data.source={config.source!r} has no {split} images of data.classes={list(given)}")
    return chosen._replace(class_names={label: name for label, name in listing.class_names.items() if label in classes})


def _label_of(config: DataConfig, given: int | str, names: Mapping[int, str]) -> int:
    label = label_of_text(given, names) if isinstance(given, str) else given
    if label is None:
        known = listing_of(names) if names else "no names of classes: give labels"
        raise InputError(f"data.classes: {config.source!r} has no class {given!r}, but {known}")
    return label


def _list_split(config: DataConfig, split: Split) -> Listing:
    if config.source.endswith(".json"):
        return list_shards(config, split)
    folder = to_path(config.source, "data.source")
    if not folder.is_dir():
        return list_hub(config, split, folder)
    if split_folder_of(folder, "train") is None and parquet_files(folder, "train"):
        return list_parquet(config, split, folder)
    return list_folder(config, split, folder)


def _holds_images(folder: Path) -> bool:
    """Return whether there are images in a folder or in a folder in it."""
    paths = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    return any(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in paths)


def _holds_split(folder: Path) -> bool:
    """Return whether a folder could be data.source, as far as a look at it shows."""
    return split_folder_of(folder, "train") is not None or bool(parquet_files(folder, "train")) or _holds_images(folder)


class FolderSource:
    """Image files below a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        # One array rather than a million strings: reader processes share it without copying.
        self.names = np.array([os.fsencode(name) for name in names])

    def location(self, row: int) -> str:
        return str(self.folder / os.fsdecode(self.names[row]))

    def read(self, row: int) -> Encoded:
        location = self.location(row)
        return Encoded(Path(location), location)


def split_folder_of(folder: Path, split: Split, held_out: float = 0) -> Path | None:
    """Find the folder of a split, by any of its names in any case; None: there is none. See `split_names`."""
    found = {name.lower(): folder / name for name in reversed(subfolders(folder))}
    return next((found[name] for name in split_names(split, held_out) if name in found), None)


def _class(name: str) -> str:
    """Return the class folder of an image by its path in the split's folder; "" for one outside them."""
    folder, inside, _ = name.partition("/")
    return folder if inside else ""


_SPLIT_LIKE = re.compile(  # train_images, trainA, val2017; not valley
    r"(?i:(train|val|test)(?:ing|id|idation)?(?:images|imgs|set|data)?)(?![a-z]).*"
)


def _refuse_splits_as_classes(folder: Path) -> None:
    """Raise InputError where the folders in a folder name splits: train_images beside test_images, or train alone."""
    names = subfolders(folder)
    kinds = {name: match[1].lower() for name in names if (match := _SPLIT_LIKE.fullmatch(name))}
    if "train" in kinds.values() and (len(set(kinds.values())) > 1 or len(names) == 1):
        raise InputError(
            f"{folder} holds the folders {', '.join(kinds)}, which name splits rather than classes: rename them "
            "to train/CLASS and val/CLASS, or give the one with the training images as data.source"
        )


def list_folder(config: DataConfig, split: Split, folder: Path) -> Listing:
    """List the images of a split below a folder. Raises InputError as `sources.list_images`."""
    validation_folder = split_folder_of(folder, "validation", config.validation_fraction)
    train_folder = split_folder_of(folder, "train")
    if train_folder is None:
        if split_folder_of(folder, "validation") is not None or not _holds_images(folder):
            inner = [path for path in (folder / name for name in subfolders(folder)) if _holds_split(path)]
            remedy = "give a folder that does, the name of a hub dataset, or the index of shards"
            if (index := folder / "index.json").is_file():
                remedy = f"it holds an index of shards, so give data.source={shlex.quote(str(index))}"
            elif next(folder.glob("train*.tar"), None):
                remedy = f"list its shards by `var data index {shlex.quote(str(folder))}`"
            elif len(inner) == 1:
                remedy = f"give {inner[0]}, which does"
            raise InputError(
                f"data.source={str(folder)!r} holds neither a train folder nor train*.parquet files, nor only images: "
                f"{remedy}"
            )
        train_folder = folder  # CLASS/*.jpg or *.jpg
    else:
        used = {path.name for path in (train_folder, validation_folder) if path is not None}
        if unused := [name for name in subfolders(folder) if name not in used]:
            some = ", ".join(unused[:8]) + (f" and {len(unused) - 8} others" if len(unused) > 8 else "")
            log_once(logging.INFO, f"{folder}: not used beside {train_folder.name}: {some}")
    _refuse_splits_as_classes(train_folder)
    split_folder = train_folder if split == "train" else validation_folder
    folders = [] if config.label_column is None else class_folders(train_folder)
    if split_folder is None or (folders and not subfolders(split_folder)):
        kind = "no validation folder" if split_folder is None else f"no classes in {split_folder.name}/"
        raise MissingSplitError(
            f"data.source={str(folder)!r} has {kind}: add val/CLASS/*.jpg, or set data.validation_fraction "
            "to hold out that fraction of the training images"
        )
    if not folders:
        files = sorted(find_images(split_folder), key=lambda name: "/" in name)  # those outside subfolders first
        if not files:
            raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or *.jpg")
        return unlabeled(FolderSource(split_folder, files), len(files))
    try:
        classes = class_labels(folders)
    except InputError as error:
        raise InputError(f"{train_folder}: {error}") from error
    files, labels = [], []
    by_class = {name: list(found) for name, found in groupby(sorted(find_images(split_folder), key=_class), key=_class)}
    if outside := by_class.pop("", None):
        line = f"{split_folder}: {plural(len(outside), 'image')} outside the class folders passed over"
        log_once(logging.WARNING, line)
    for name, found in by_class.items():
        if name not in classes:
            raise InputError(
                f"class folder {split_folder / name} is not in {train_folder}, or empty there: add or remove it"
            )
        files += found
        labels += [classes[name]] * len(found)
    if not files:
        raise InputError(f"{split_folder} holds no images: expected {split_folder.name}/CLASS/*.jpg, or png, webp")
    names, of_folders = named_classes(folder), folder_names(classes)
    if of_folders and all(name.isdecimal() for name in classes):
        log.info("%s: the numbers of the class folders are too large for labels, so they are names", train_folder)
        named = {classes[str(number)]: name for number, name in names.items() if str(number) in classes}
        names = of_folders | named
    names = names or of_folders
    source = FolderSource(split_folder, files)
    return Listing(source, np.arange(len(files)), np.array(labels), max(classes.values()) + 1, names)
