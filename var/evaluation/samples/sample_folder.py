"""A set of generated images as a folder, which tells how far it is and goes on after a kill.

settings.json          what is drawn and how; written first, never changed
images/LABEL_INDEX.png the images
scores/BATCH.json      scores of the candidates of a batch, if only the best of them are kept
samples.npz            all images, as ADM's evaluator takes them; written last
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.evaluation.samples.npz import LABELS, open_npz, write_images
from var.evaluation.samples.rejection import best_indices
from var.evaluation.samples.sample_set import Batch, Sample, Settings
from var.utils.files import atomic_write, check_no_other_files, check_writable
from var.utils.images import open_image

SETTINGS, PICTURES, SCORES, NPZ = "settings.json", "images", "scores", "samples.npz"

PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # followed by width and height
PNG_TAIL = b"\0\0\0\0IEND\xaeB`\x82"


class Records:
    """The scores of candidates, a file for each batch, written when its images are there."""

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
        """The scores of a batch in its order; None if they are not there, or damaged."""
        try:
            content = json.loads(self.file(batch).read_bytes())
            return [float(content[sample.file]) for sample in batch.samples]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def scores(self, label: int) -> dict[int, float]:
        """Those that are known of a class, by index."""
        scores: dict[int, float] = {}
        for batch in self.settings.batches_of(label):
            pairs = zip(batch.samples, self.read(batch) or (), strict=False)
            scores |= {sample.index: score for sample, score in pairs if sample.label == label}
        return scores

    def kept(self, label: int) -> set[int]:
        """The indices of the best images of a class, of those that are known."""
        return best_indices(self.scores(label), self.settings.num_per_class)


def begin_set(folder: Path, settings: Settings) -> None:
    """Write the settings of a new set, or look whether one that was begun is this one.

    Raises InputError: other settings or other files are there, or the folder cannot be written.
    """
    check_writable(folder)
    if not (folder / SETTINGS).exists():
        check_no_other_files(folder, (SETTINGS,))
        with atomic_write(folder / SETTINGS) as beside:
            beside.write_text(json.dumps(asdict(settings), indent=1) + "\n")
    check_same_set(folder, settings)
    try:
        (folder / PICTURES).mkdir(exist_ok=True)
        known = {sample.file for batch in settings.batches for sample in batch.samples}
        for path in (folder / PICTURES).iterdir():
            if re.fullmatch(r"\.\d{6}_\d{6}\.png(\.\d+)?\.new", path.name):  # of a process that was killed
                path.unlink()
            elif path.name not in known:
                raise InputError(f"{folder / PICTURES} holds other files, such as {path.name}: move them away")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}: give another folder") from error


def check_same_set(folder: Path, settings: Settings) -> None:
    """Raise InputError unless the folder is of this set. The name of the model may differ: its weights tell."""
    file = folder / SETTINGS
    try:
        theirs = json.loads(file.read_bytes())
        ours = json.loads(json.dumps(asdict(settings)))
        different = [field.name for field in fields(Settings) if theirs.get(field.name) != ours[field.name]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): give another folder") from error
    different = [name for name in different if name != "model"]
    if different:
        name = different[0]
        was = f"with {name}={_short(theirs.get(name))}, not {_short(ours[name])}"
        if name == "weights":
            was = f"by another model ({theirs.get('model')})"
        raise InputError(f"{folder} was begun {was}: give another folder, or remove this one")


def _short(value: Any, limit: int = 60) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_done(batch: Batch, folder: Path, records: Records, side: int) -> bool:
    """Whether nothing of a batch needs to be drawn any more, images being of this side."""
    samples = batch.samples
    if records.settings.judge is not None:
        if records.read(batch) is None:
            return False
        kept = {label: records.kept(label) for label in set(batch.labels)}
        samples = [sample for sample in samples if sample.index in kept[sample.label]]
    return all(_looks_whole(folder / PICTURES / sample.file, side) for sample in samples)


def _looks_whole(path: Path, side: int) -> bool:
    """Whether a file begins and ends as a PNG of this size does; a machine that lost its power leaves others."""
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
            (folder / PICTURES / Sample(label, index).file).unlink(missing_ok=True)


def list_samples(folder: Path, settings: Settings) -> list[Sample]:
    """The samples of a complete set: the first of every class, the second of every class, ...

    Mixed like this, every part of the whole shows all classes: ADM's Inception Score is taken of parts of 5000.

    Raises InputError: it is not complete, or holds others.
    """
    records = Records(folder / SCORES, settings)
    everything = range(settings.candidates)
    kept = {label: everything if settings.judge is None else records.kept(label) for label in settings.labels}
    rounds = [(i, label, index) for label, indices in kept.items() for i, index in enumerate(sorted(indices))]
    samples = [Sample(label, index) for _, label, index in sorted(rounds)]
    there = {path.name for path in (folder / PICTURES).iterdir()}
    expected = {sample.file for sample in samples}
    if len(samples) != len(settings.labels) * settings.num_per_class or not expected <= there:
        raise InputError(f"{folder} is not complete: the same command goes on with what is missing")
    if foreign := sorted(there - expected):
        raise InputError(f"{folder / PICTURES} holds other files, such as {foreign[0]}: move them away")
    return samples


def write_samples_npz(folder: Path, settings: Settings) -> Path:
    """Write a complete set into `samples.npz`: arr_0 in the order of `list_samples`, arr_1 the labels; return its path.

    Raises InputError: the set is not complete; a damaged image; a file that cannot be written.
    """
    files, labels, size = _npz_parts(folder, settings)
    write_images(folder / NPZ, map(_pixels, files), len(files), size, **{LABELS: labels})
    return folder / NPZ


def has_samples_npz(folder: Path, settings: Settings) -> bool:
    """Whether `samples.npz` of a complete set is there, as far as its shape and its labels tell.

    Raises InputError: the set is not complete, or its first image damaged.
    """
    files, labels, size = _npz_parts(folder, settings)
    try:
        npz = open_npz(folder / NPZ)
        return npz.images().shape == (len(files), *size, 3) and np.array_equal(npz.array(LABELS), labels)
    except InputError:
        return False


def _npz_parts(folder: Path, settings: Settings) -> tuple[list[Path], NDArray[np.int64], tuple[int, int]]:
    """The files of a complete set in their order, their labels, and the height and width of all."""
    samples = list_samples(folder, settings)
    files = [folder / PICTURES / sample.file for sample in samples]
    height, width = _pixels(files[0]).shape[:2]
    return files, np.array([sample.label for sample in samples], np.int64), (height, width)


def _pixels(file: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(open_image(file))
    except InputError as error:
        raise InputError(f"{file} is damaged: remove it, and the same command draws it anew") from error
