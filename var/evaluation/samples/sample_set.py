"""A set of drawn pictures as a folder, which tells how far it is and goes on after a kill.

settings.json          what is drawn and how; written first, never changed
images/LABEL_INDEX.png the pictures
scores/BATCH.json      what a judge says of the candidates of a batch, if only the best of them are kept
samples.npz            all pictures, as ADM's evaluator takes them; written last
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.evaluation.samples.npz import LABELS, open_npz, write_images
from var.evaluation.samples.rejection import best
from var.pipeline import VARPipeline
from var.sampling.params import FOR_METRICS, with_options
from var.utils.files import atomic_write, check_no_other_files, check_writable
from var.utils.images import open_image
from var.utils.provenance import device_name, fingerprint, version, versions

SETTINGS, PICTURES, SCORES, NPZ = "settings.json", "images", "scores", "samples.npz"

MOST = 10**6  # labels, and pictures of a class: names have six digits for each

PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # followed by width and height
PNG_TAIL = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Sample:
    """The picture of this number within its class."""

    label: int
    index: int

    @property
    def file(self) -> str:
        """Its name, from which the label can be read."""
        return f"{self.label:06d}_{self.index:06d}.png"


class Batch(NamedTuple):
    """What is drawn at once."""

    number: int
    samples: list[Sample]

    @property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.samples]


@dataclass(frozen=True)
class Settings:
    """All that decides what the pictures of a set are, in the order in which a difference is told.

    Attributes:
        model: name or folder.
        dtype, device: of the networks; the device as it calls itself, without its number.
        versions: of what computes and what writes PNG.
        weights: checksum of the transformer and its tokenizer as they were loaded, in dtype, so that another dtype has
            another one.
        labels: in ascending order.
        num_per_class: pictures of each that the set has.
        candidates: pictures of each that are drawn; more than num_per_class where the best are kept.
        judge: by what the best are known; None where all are kept.
        seed, cfg, top_k, top_p: as `var.generate.generate` takes them.
        batch: pictures drawn at once.
    """

    model: str
    dtype: str
    device: str
    versions: Mapping[str, str]
    weights: str
    labels: tuple[int, ...]
    num_per_class: int
    candidates: int
    judge: str | None
    seed: int
    cfg: float
    top_k: int
    top_p: float
    batch: int

    @cached_property
    def batches(self) -> list[Batch]:
        """All that is drawn, class by class, cut into batches."""
        samples = [Sample(label, index) for label in self.labels for index in range(self.candidates)]
        return [
            Batch(number, samples[first : first + self.batch])
            for number, first in enumerate(range(0, len(samples), self.batch))
        ]

    def batches_of(self, label: int) -> list[Batch]:
        """Those that have pictures of this class."""
        first = self.labels.index(label) * self.candidates
        return self.batches[first // self.batch : (first + self.candidates - 1) // self.batch + 1]


def sample_settings(
    pipe: VARPipeline,
    model: str,
    classes: Sequence[int | str] | None = None,
    num_per_class: int = 50,
    cfg: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch: int = 32,
    reject: float | None = None,
    judge: str | None = None,
) -> Settings:
    """What `draw_samples` is to draw, checked.

    Args:
        pipe: the model.
        model: what it is called.
        classes: indices or names; None: all that the model knows.
        num_per_class: pictures of each.
        cfg, top_k, top_p, seed: as `var.generate.generate` takes them; None: the model's, else the paper's for FID.
        batch: pictures drawn at once; another number gives the same pictures but for rounding.
        reject: the part of the drawn pictures that is kept, in (0, 1]; None: no judge, all are.
        judge: a description of what judges; given with reject alone.

    Raises:
        InputError: an unknown class, or an option out of range.
    """
    labels = pipe.known_labels() if classes is None else sorted({pipe.label(given) for given in classes})
    if not labels or labels[-1] >= MOST:
        raise InputError(f"classes {labels[-1:] or 'of none'} given: at least one, and labels below {MOST:,}, needed")
    params = with_options(pipe.sampling or FOR_METRICS, {"cfg": cfg, "top_k": top_k, "top_p": top_p})
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative")
    if reject is not None and not 0 < reject <= 1:
        raise InputError(f"reject={reject} must be in (0, 1], the part that is kept: 0.5 draws twice as many")
    for name, number in (("num_per_class", num_per_class), ("batch", batch)):
        if number < 1:
            raise InputError(f"{name}={number} must be at least 1")
    # 0.1 is a little more than a tenth: without the allowance 5 / 0.1 might become 51.
    candidates = num_per_class if reject is None else math.ceil(num_per_class / reject - 1e-9)
    if candidates > MOST:
        raise InputError(f"{candidates:,} pictures of a class asked for: at most {MOST:,} have names")
    weight = pipe.model.position
    return Settings(
        model=model,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=device_name(weight.device),
        versions=versions() | {name: version(name) for name in ("numpy", "pillow")},
        weights=fingerprint(pipe.model, pipe.vqvae),
        labels=tuple(labels),
        num_per_class=num_per_class,
        candidates=candidates,
        judge=judge,
        seed=seed,
        cfg=float(params.cfg),
        top_k=params.top_k,
        top_p=float(params.top_p),
        batch=batch,
    )


class Records:
    """The scores of candidates, a file for each batch, written when its pictures are there."""

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
        """The indices of the best pictures of a class, of those that are known."""
        return best(self.scores(label), self.settings.num_per_class)


def begin_set(folder: Path, settings: Settings) -> None:
    """Write the settings of a new set, or look whether one that was begun is this one.

    Raises:
        InputError: other settings or other files are there, or the folder cannot be written.
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
    """Whether nothing of a batch needs to be drawn any more, pictures being of this side."""
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
    """Remove pictures of these classes that can no longer be among the best."""
    for label in labels:
        scores = records.scores(label)
        for index in scores.keys() - best(scores, records.settings.num_per_class):
            (folder / PICTURES / Sample(label, index).file).unlink(missing_ok=True)


def kept_samples(folder: Path, settings: Settings) -> list[Sample]:
    """The pictures of a complete set: the first of every class, the second of every class, ...

    Mixed like this, every part of the whole shows all classes: ADM's Inception Score is taken of parts of 5000.

    Raises:
        InputError: it is not complete, or holds others.
    """
    records = Records(folder / SCORES, settings)
    everything = range(settings.candidates)
    kept = {label: everything if settings.judge is None else records.kept(label) for label in settings.labels}
    rounds = zip_longest(*(sorted(kept[label]) for label in settings.labels))
    samples = [
        Sample(label, index)
        for indices in rounds
        for label, index in zip(settings.labels, indices, strict=True)
        if index is not None
    ]
    there = {path.name for path in (folder / PICTURES).iterdir()}
    expected = {sample.file for sample in samples}
    if len(samples) != len(settings.labels) * settings.num_per_class or not expected <= there:
        raise InputError(f"{folder} is not complete: the same command goes on with what is missing")
    if foreign := sorted(there - expected):
        raise InputError(f"{folder / PICTURES} holds other files, such as {foreign[0]}: move them away")
    return samples


def write_samples_npz(folder: Path, settings: Settings) -> Path:
    """Write a complete set into `samples.npz`: arr_0 the pictures in the order of `kept_samples`, arr_1
    their labels; return its path.

    Raises:
        InputError: the set is not complete; a damaged picture; a place that cannot be written.
    """
    files, labels, size = _npz_parts(folder, settings)
    write_images(folder / NPZ, map(_pixels, files), len(files), size, **{LABELS: labels})
    return folder / NPZ


def has_samples_npz(folder: Path, settings: Settings) -> bool:
    """Whether `samples.npz` of a complete set is there, as far as its shape and its labels tell.

    Raises:
        InputError: the set is not complete, or its first picture damaged.
    """
    files, labels, size = _npz_parts(folder, settings)
    try:
        npz = open_npz(folder / NPZ)
        return npz.images().shape == (len(files), *size, 3) and np.array_equal(npz.array(LABELS), labels)
    except InputError:
        return False


def _npz_parts(folder: Path, settings: Settings) -> tuple[list[Path], NDArray[np.int64], tuple[int, int]]:
    """The files of a complete set in their order, their labels, and the height and width of all."""
    samples = kept_samples(folder, settings)
    files = [folder / PICTURES / sample.file for sample in samples]
    height, width = _pixels(files[0]).shape[:2]
    return files, np.array([sample.label for sample in samples], np.int64), (height, width)


def _pixels(file: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(open_image(file))
    except InputError as error:
        raise InputError(f"{file} is damaged: remove it, and the same command draws it anew") from error
