"""Folder of a set of generated images, from which generation can be resumed.

settings.json          what is generated and how; written first, never changed
images/LABEL_INDEX.png the images
scores/BATCH.json      scores of a batch's candidates, with rejection sampling
samples.npz            all images in the format of ADM's evaluator; written last
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.evaluation.samples.npz import LABELS, open_npz, write_images
from var.evaluation.samples.rejection import best_indices
from var.evaluation.samples.sample_set import Batch, Sample, Settings
from var.utils.files import atomic_write
from var.utils.images import open_image
from var.utils.json_text import parse_json
from var.utils.paths import check_no_other_files, check_writable

SETTINGS, IMAGES, SCORES, NPZ = "settings.json", "images", "scores", "samples.npz"

PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # followed by width and height
PNG_TAIL = b"\0\0\0\0IEND\xaeB`\x82"


class Records:
    """Scores of candidates, a file for each batch, written after its images."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    def file(self, batch: Batch) -> Path:
        return self.folder / f"{batch.number:06d}.json"

    def write(self, batch: Batch, scores: Sequence[float]) -> None:
        content = {sample.file: score for sample, score in zip(batch.samples, scores, strict=True)}
        with atomic_write(self.file(batch)) as beside:
            beside.write_text(json.dumps(content, indent=1))

    def read(self, batch: Batch) -> list[float] | None:
        """Return the scores of a batch in order; None if missing or damaged."""
        try:
            content = parse_json(self.file(batch).read_bytes())
            return [float(content[sample.file]) for sample in batch.samples]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def scores(self, label: int) -> dict[int, float]:
        """Return the known scores of a class, by index."""
        scores: dict[int, float] = {}
        for batch in self.settings.batches_of(label):
            pairs = zip(batch.samples, self.read(batch) or (), strict=False)
            scores |= {sample.index: score for sample, score in pairs if sample.label == label}
        return scores

    def select_best(self, label: int) -> set[int]:
        """Return the indices of the best images of a class among those with known scores."""
        return best_indices(self.scores(label), self.settings.num_per_class)


def begin_set(folder: Path, settings: Settings) -> None:
    """Write the settings of a new set, or check that an existing set has the same.

    Raises InputError: a folder with other settings or other files, or that cannot be written.
    """
    check_writable(folder)
    if not (folder / SETTINGS).exists():
        check_no_other_files(folder, (SETTINGS,))
        with atomic_write(folder / SETTINGS) as beside:
            beside.write_text(json.dumps(asdict(settings), indent=1) + "\n")
    check_same_set(folder, settings)
    try:
        (folder / IMAGES).mkdir(exist_ok=True)
        known = {sample.file for batch in settings.batches for sample in batch.samples}
        check_no_other_files(folder / IMAGES, known, "move them away")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}: give another folder") from error


def labels_are_imagenets(images: Path) -> bool:
    """Return False for a set, its images/ or samples.npz, whose settings say that its labels are of other classes."""
    folder = images if (images / SETTINGS).is_file() else images.parent
    if folder != images and images.name not in (IMAGES, NPZ):
        return True
    try:
        return parse_json((folder / SETTINGS).read_bytes()).get("imagenet_labels") is not False
    except (OSError, ValueError, AttributeError):  # a plain folder
        return True


def check_same_set(folder: Path, settings: Settings) -> None:
    """Raise InputError unless the folder has these settings. The models' names may differ, their weights may not."""
    file = folder / SETTINGS
    try:
        theirs = parse_json(file.read_bytes())
        ours = json.loads(json.dumps(asdict(settings)))
        later = {field.name: field.default for field in fields(Settings) if field.default is not MISSING}
        theirs = {name: theirs.get(name, later.get(name)) for name in ours}
        different = [name for name, value in theirs.items() if value != ours[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): give another folder") from error
    different = [name for name in different if name not in ("model", "refiner", "imagenet_labels")]
    if different:
        name = different[0]
        was = _describe_difference(name, theirs.get(name), ours[name])
        if name == "weights":
            was = f"by another model ({theirs.get('model')})"
        raise InputError(f"{folder} was begun {was}: give another folder, or remove this one")


def _describe_difference(name: str, theirs: Any, ours: Any) -> str:
    if theirs is None:
        return f"without {name}, not with {_shorten(ours)}"
    return f"with {name}={_shorten(theirs)}, not {'without' if ours is None else _shorten(ours)}"


def _shorten(value: Any, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_done(batch: Batch, folder: Path, records: Records, side: int) -> bool:
    """Return whether all of a batch that is needed is on disk, in images of this side."""
    samples = batch.samples
    if records.settings.judge is not None:
        if records.read(batch) is None:
            return False
        best = {label: records.select_best(label) for label in set(batch.labels)}
        samples = [sample for sample in samples if sample.index in best[sample.label]]
    return all(_is_whole_png(folder / IMAGES / sample.file, side) for sample in samples)


def _is_whole_png(path: Path, side: int) -> bool:
    """Return whether a file has the first and last bytes of a PNG of this size; after a power loss it may not."""
    head = PNG_HEAD + side.to_bytes(4, "big") * 2
    try:
        with path.open("rb") as file:
            if file.read(len(head)) != head:
                return False
            file.seek(-len(PNG_TAIL), 2)
            return file.read() == PNG_TAIL
    except OSError:
        return False


def prune_rejected(folder: Path, records: Records, labels: Iterable[int]) -> None:
    """Remove images of these classes that can no longer be among the best."""
    for label in labels:
        scores = records.scores(label)
        for index in scores.keys() - best_indices(scores, records.settings.num_per_class):
            (folder / IMAGES / Sample(label, index).file).unlink(missing_ok=True)


def list_samples(folder: Path, settings: Settings) -> list[Sample]:
    """List the samples of a complete set in rounds: the first of every class, the second of every class, ...

    In this order every part of 5000, as in ADM's Inception Score, has all classes.

    Raises InputError: an incomplete set, or one with other files.
    """
    records = Records(folder / SCORES, settings)
    everything, select = range(settings.candidates), records.select_best
    selected = {label: everything if settings.judge is None else select(label) for label in settings.labels}
    rounds = [(i, label, index) for label, indices in selected.items() for i, index in enumerate(sorted(indices))]
    samples = [Sample(label, index) for _, label, index in sorted(rounds)]
    there = {path.name for path in (folder / IMAGES).iterdir()}
    expected = {sample.file for sample in samples}
    if len(samples) != len(settings.labels) * settings.num_per_class or not expected <= there:
        raise InputError(f"{folder} is not complete: run the same command again to resume")
    check_no_other_files(folder / IMAGES, expected, "move them away")
    return samples


def write_samples_npz(folder: Path, settings: Settings) -> Path:
    """Write a complete set into `samples.npz`: arr_0 in the order of `list_samples`, arr_1 the labels; return its path.

    Raises InputError: the set is not complete; a damaged image; a file that cannot be written.
    """
    files, labels, size = _read_npz_parts(folder, settings)
    write_images(folder / NPZ, map(_read_pixels, files), len(files), size, **{LABELS: labels})
    return folder / NPZ


def has_samples_npz(folder: Path, settings: Settings) -> bool:
    """Return whether a complete set has its `samples.npz`, judged by shape and labels.

    Raises InputError: the set is not complete, or its first image damaged.
    """
    files, labels, size = _read_npz_parts(folder, settings)
    try:
        npz = open_npz(folder / NPZ)
        return npz.images().shape == (len(files), *size, 3) and np.array_equal(npz.array(LABELS), labels)
    except InputError:
        return False


def _read_npz_parts(folder: Path, settings: Settings) -> tuple[list[Path], NDArray[np.int64], tuple[int, int]]:
    """Return the files of a complete set in order, their labels, and the (height, width) of all."""
    samples = list_samples(folder, settings)
    files = [folder / IMAGES / sample.file for sample in samples]
    height, width = _read_pixels(files[0]).shape[:2]
    return files, np.array([sample.label for sample in samples], np.int64), (height, width)


def _read_pixels(file: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(open_image(file))
    except InputError as error:
        raise InputError(f"{file} is damaged: remove it and run the same command again") from error
