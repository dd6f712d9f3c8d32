"""Features of many images in one Parquet file, made in parts so that a run that is killed goes on.

OUT has a row for each image that can be read: path (as found below the folder), label and class_name (null where there
are none), feature (float32, all of one length). Its metadata, under METADATA, holds the `Settings` as JSON.

While it is made, OUT.parts holds manifest.json, which is written first and never changes, and a file for every so many
images; each is written beside its place and renamed, so that one that is there is whole.

B batch, N patches, D width, S side of the images, F length of a feature: D, or N * D where patches are not pooled.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.aim import AIM, Encoder, val_transforms
from var.checkpoint import load_encoder
from var.device import choose_device, choose_dtype
from var.files import check_writable
from var.images import FORMATS, open_picture, standardised
from var.presets import choose_layers

if TYPE_CHECKING:
    from var.training.sources import Encoded, Source, Split

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    raise InputError("features are kept as Parquet: pip install 'var-next-scale[features]'") from missing

log = logging.getLogger(__name__)

Pool = Literal["mean", "none"]

FORMAT = 1  # raised when files of before can no longer be read
METADATA = b"var.features"
MANIFEST = "manifest.json"
PART_IMAGES, PART_BYTES = 256, 2**26  # of a part, at most; so much is lost when a process is killed
THREADS = 8  # that read images, at most; Pillow lets them run side by side


@dataclass(frozen=True)
class Settings:
    """What a features file tells of itself.

    Attributes:
        model: as it was given.
        weights: checksum of the encoder's, in bfloat16: the same for whatever type they are held in.
        layers: blocks, counted from 0, the mean of whose outputs the features are.
        pool: mean: over the patches. none: all patches, row by row, one behind the other.
        image_size: S.
        patches: N.
        width: D.
        dtype: in which the encoder ran.
        images: how many were found, unreadable ones included.
        checksum: of what tells the images apart without opening them: their paths.
        version: of this library.
        format: FORMAT.
    """

    model: str
    weights: str
    layers: tuple[int, ...]
    pool: Pool
    image_size: int
    patches: int
    width: int
    dtype: str
    images: int
    checksum: str
    version: str
    format: int = FORMAT

    @property
    def length(self) -> int:
        """F."""
        return self.width * (self.patches if self.pool == "none" else 1)

    def difference(self, other: "Settings", names: Iterable[str]) -> str | None:
        """The first of these attributes in which the two differ: `pool=mean, not none`."""
        name = next((name for name in names if getattr(self, name) != getattr(other, name)), None)
        return None if name is None else f"{name}={getattr(self, name)}, not {getattr(other, name)}"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Settings":
        """From what JSON gives of `asdict`. Raises TypeError and the like on anything else."""
        return cls(**{**values, "layers": tuple(values["layers"])})


class Picture(NamedTuple):
    """An image as the encoder reads it."""

    path: str
    label: int | None
    pixels: Tensor  # (3, S, S)


@dataclass(frozen=True)
class Pictures:
    """Images in a fixed order, found but not opened.

    Attributes:
        count: of them.
        checksum: of their paths.
        class_names: name of a label, where it has one.
        reader: takes S and gives the function that reads the image of a number below count. That function may be called
            in several threads, and raises InputError on what cannot be read.
    """

    count: int
    checksum: str
    class_names: Mapping[int, str]
    reader: Callable[[int], Callable[[int], Picture]]


class NoImagesError(InputError):
    """None of the images could be read."""


class FeatureSummary(NamedTuple):
    """What a finished file holds, and what it took just now."""

    features: int
    length: int  # F
    unreadable: int  # images that were left out
    classes: int
    computed: int  # images that were looked at in this call


class Features(NamedTuple):
    """A features file in memory: M images."""

    settings: Settings
    values: NDArray[np.float32]  # (M, F)
    labels: NDArray[np.int64]  # (M,)
    class_names: dict[int, str]


def open_encoder(name: str | Path, device: str = "auto", dtype: str = "auto") -> Encoder:
    """The encoder of a model folder, with or without a probe, or of a released AIM, in evaluation mode.

    Args:
        name: a folder, or a name as AIM.from_pretrained takes it.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (bfloat16 where the device is fast at it), float32 or bfloat16.

    Raises:
        InputError: an unknown name, weights that cannot be had, an impossible device or dtype.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return AIM.from_pretrained(name, device=device, dtype=dtype).encoder
    target = choose_device(device)
    number_type = choose_dtype(dtype, target)
    return load_encoder(folder).to(target, number_type)


def folder_pictures(folder: Path) -> Pictures:
    """All images below a folder, sorted by path; those in subfolders are labelled by the first of them.

    Labels number the folder's sorted subfolders; where all their names are numbers, they are the labels themselves, as
    in training. Images directly in the folder have no label. Hidden files and folders are passed over.

    Raises:
        InputError: no such folder, one that cannot be read, no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder" if folder.exists() else f"{folder} does not exist")
    names = sorted(_image_names(folder))
    if not names:
        tables = next(folder.glob("**/*.parquet"), None)
        remedy = "say which of its images with --split train or validation" if tables else f"known are {_suffix_list()}"
        raise InputError(f"{folder} holds no image files{' but Parquet' if tables else ''}: {remedy}")
    classes = class_labels(entry.name for entry in os.scandir(folder) if entry.is_dir() and _visible(entry.name))
    numbered = all(name.isdecimal() for name in classes)

    def reader(side: int) -> Callable[[int], Picture]:
        transform = val_transforms(side)

        def read(i: int) -> Picture:
            path = folder / names[i]
            try:
                pixels = transform(open_picture(path))
            except InputError:
                raise
            except Exception as error:  # damaged metadata makes Pillow raise nearly anything
                raise InputError(f"cannot read {path}: {one_line(error)}") from error
            first, inside, _ = names[i].partition("/")
            return Picture(_text(names[i]), classes[first] if inside else None, pixels)

        return read

    class_names = {} if numbered else {label: _text(name) for name, label in classes.items()}
    return Pictures(len(names), _checksum(map(os.fsencode, names)), class_names, reader)


def class_labels(names: Iterable[str]) -> dict[str, int]:
    """Labels of class folders: places among the sorted names; where all names are numbers, these.

    Raises:
        InputError: numbers that are the same, such as 1 and 01.
    """
    ordered = sorted(names)
    if not all(name.isdecimal() for name in ordered):
        return {name: label for label, name in enumerate(ordered)}
    labels = {name: int(name) for name in ordered}
    if len(set(labels.values())) < len(labels):
        raise InputError("class folders have the same number, such as 1 and 01: rename one of them")
    return labels


def split_pictures(source: str, split: "Split") -> Pictures:
    """The images of a split of what a recipe takes as data.source, in its order and with its labels.

    Args:
        source: a folder with train/ and val/ or with train*.parquet and validation*.parquet, a hub dataset, or the
            index of shards. See `var.training.sources.list_images`.
        split: train or validation.

    Raises:
        InputError: as list_images raises it; the packages for training are not installed.
    """
    try:
        from var.training.config import DataConfig
        from var.training.data import ImageDataset, Unreadable
        from var.training.sources import list_images
    except ImportError as error:
        raise InputError("splits are read as training reads them: pip install 'var-next-scale[train]'") from error

    # The short side and the crop of `val_transforms`.
    config = DataConfig(source=source, resize=256 / 224)
    listing = list_images(config, split)
    listing = listing._replace(source=_OneByOne(listing.source))
    prefix = f"{Path(source)}/"

    def reader(side: int) -> Callable[[int], Picture]:
        dataset = ImageDataset(listing, config, side, seed=0, augment=False)

        def read(i: int) -> Picture:
            found = dataset[0, i]
            if isinstance(found, Unreadable):
                raise InputError(f"cannot read {found.place}: {found.reason}")
            return Picture(_text(found.place.removeprefix(prefix)), found.label, standardised(found.content))

        return read

    told = [os.fsencode(listing.source.place(int(row))) for row in listing.rows]
    labels = [] if listing.labels is None else [listing.labels.tobytes()]
    return Pictures(len(told), _checksum([*told, *labels]), listing.class_names, reader)


class _OneByOne:
    """A source that several threads may read: not all of them can be read by two at once."""

    def __init__(self, source: "Source") -> None:
        self.source = source
        self.lock = threading.Lock()

    def place(self, row: int) -> str:
        return self.source.place(row)

    def read(self, row: int) -> "Encoded":
        with self.lock:
            return self.source.read(row)


def write_features(
    encoder: Encoder,
    pictures: Pictures,
    out: Path,
    model: str,
    layers: str | Sequence[int] = "last",
    pool: Pool = "mean",
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], object] = log.warning,
) -> FeatureSummary:
    """Write the features of all pictures; killed at any time, the same call goes on from the parts that were done.

    In memory are a part and two batches: one in the encoder, one that is read meanwhile. A file that is complete is
    left as it is. Batch and device may change on the way, in rounding only; nothing else may.

    Args:
        encoder: in evaluation mode, on the device and in the dtype that it is to run in.
        pictures: from `folder_pictures` or `split_pictures`.
        out: the file.
        model: what the file calls the encoder.
        layers: as `choose_layers` takes them.
        pool: see Settings.
        batch: images at once.
        progress: is told how many images were looked at in this call, and how many there are to look at.
        tell: is given a line for every image that cannot be read and is left out.

    Raises:
        InputError: layers that there are not, a batch below 1, a file or parts of other settings or images, a place
            that cannot be written, no image that can be read, features that are not finite.
    """
    if batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
    check_target(out)
    settings = _settings(encoder, pictures, model, layers, pool)
    folder = out.with_name(f"{out.name}.parts")
    computed = 0
    if out.exists():
        _check_same(settings, _settings_of(out), out)
    else:
        parts = _parts(folder, settings, batch)
        todo = [part for part in parts if not part.file.exists()]
        total = sum(len(part.images) for part in todo)
        with closing(_extracted(encoder, settings, pictures, todo, batch, tell)) as tables:
            for part in todo:
                rows: list[pa.Table] = []
                for chunk in part.batches(batch):
                    rows.append(next(tables))
                    computed += len(chunk)
                    progress(computed, total)
                with written_beside(part.file) as beside, _writer(beside, _schema(settings)) as writer:
                    writer.write_table(pa.concat_tables(rows).combine_chunks())
        try:
            _join(parts, settings, out)
        except NoImagesError:
            _remove(folder)
            raise
    _remove(folder)
    return _summary(out, settings, computed)


def check_target(out: Path) -> None:
    """Raise InputError if the file could not be written; nothing is made yet."""
    check_writable(out.parent)
    if out.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file, such as {out / 'features.parquet'}")


def read_features(file: Path) -> Features:
    """A features file with the label of every image.

    Raises:
        InputError: no such file, not a features file, damaged, images without labels.
    """
    settings = _settings_of(file)
    try:
        with pq.ParquetFile(file) as parquet:
            values = np.empty((parquet.metadata.num_rows, settings.length), np.float32)
            first = 0
            for group in range(parquet.num_row_groups):  # one by one: they are never in memory twice
                column = parquet.read_row_group(group, columns=["feature"])["feature"].combine_chunks()
                values[first : first + len(column)] = column.flatten().to_numpy().reshape(len(column), -1)
                first += len(column)
            table = parquet.read(columns=["label", "class_name"])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
        raise InputError(f"{file} cannot be read ({one_line(error)}): make it anew with var features") from error
    labels = table["label"]
    if labels.null_count:
        remedy = "make it from a folder with a subfolder a class, or from a split that has labels"
        raise InputError(f"{file}: {labels.null_count} of {len(labels)} images have no label: {remedy}")
    array = labels.to_numpy().astype(np.int64)
    named = dict(zip(array.tolist(), table["class_name"].to_pylist(), strict=True))
    return Features(settings, values, array, {label: name for label, name in named.items() if name is not None})


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """A path beside the file, renamed to it when the block ends; whoever reads the file finds it whole.

    Raises:
        InputError: it cannot be written.
    """
    beside = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    except OSError as error:
        remedy = "make room there or give another place"
        raise InputError(f"cannot write {file}: {error.strerror or one_line(error)}: {remedy}") from error
    finally:
        with suppress(OSError):  # it is there only if something failed, and then that is what to tell
            beside.unlink()


class _Part(NamedTuple):
    """So many images in a row."""

    file: Path
    images: range

    def batches(self, batch: int) -> list[range]:
        return [self.images[first : first + batch] for first in range(0, len(self.images), batch)]


def _settings(encoder: Encoder, pictures: Pictures, model: str, layers: str | Sequence[int], pool: Pool) -> Settings:
    config = encoder.config
    return Settings(
        model=model,
        weights=_fingerprint(encoder),
        layers=choose_layers(layers, config),
        pool=pool,
        image_size=config.image_size,
        patches=config.patches,
        width=config.width,
        dtype=str(next(encoder.parameters()).dtype).removeprefix("torch."),
        images=pictures.count,
        checksum=pictures.checksum,
        version=_version(),
    )


def _fingerprint(encoder: Encoder) -> str:
    hashing = hashlib.sha256(json.dumps(encoder.config.to_dict(), sort_keys=True).encode())
    for parameter in encoder.parameters():
        hashing.update(parameter.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().data)
    return hashing.hexdigest()


def _checksum(texts: Iterable[bytes]) -> str:
    hashing = hashlib.sha256()
    for text in texts:
        hashing.update(text + b"\0")  # which no path contains
    return hashing.hexdigest()


def _version() -> str:
    try:
        return metadata.version("var-next-scale")
    except metadata.PackageNotFoundError:  # run from a clone
        return "unknown"


def _check_same(settings: Settings, theirs: Settings, place: Path) -> None:
    """The name of the model may differ: its weights tell."""
    names = [field.name for field in fields(Settings) if field.name != "model"]
    difference = theirs.difference(settings, names)
    if difference is not None:
        if difference.startswith(("images", "checksum")):
            difference = "from other images"
        elif difference.startswith("weights"):
            difference = f"by another model ({theirs.model})"
        else:
            difference = f"with {difference}"
        raise InputError(f"{place} was made {difference}: give another --out, or remove it")


def _parts(folder: Path, settings: Settings, batch: int) -> list[_Part]:
    """The parts of a run, which is begun or goes on."""
    file = folder / MANIFEST
    if not file.exists():
        if folder.exists() and (foreign := sorted(path.name for path in folder.iterdir() if path.suffix != ".new")):
            raise InputError(f"{folder} holds other files, such as {foreign[0]}: give another --out")
        whole = max(1, min(PART_IMAGES, PART_BYTES // (4 * settings.length)) // batch)  # batches
        with written_beside(file) as beside:
            beside.write_text(json.dumps({"part_images": whole * batch, "settings": asdict(settings)}, indent=1))
    try:
        manifest = json.loads(file.read_bytes())
        size, theirs = int(manifest["part_images"]), Settings.parse(manifest["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): remove {folder} to begin anew") from error
    _check_same(settings, theirs, folder)
    images = range(settings.images)
    return [
        _Part(folder / f"{number:05d}.parquet", images[first : first + size])
        for number, first in enumerate(range(0, len(images), size))
    ]


def _extracted(
    encoder: Encoder,
    settings: Settings,
    pictures: Pictures,
    parts: Sequence[_Part],
    batch: int,
    tell: Callable[[str], object],
) -> Generator[pa.Table]:
    """A table for each batch of each part."""
    chunks = [chunk for part in parts for chunk in part.batches(batch)]
    with closing(_read_ahead(pictures.reader(settings.image_size), chunks)) as batches:
        for found in batches:
            for failure in found:
                if isinstance(failure, InputError):
                    tell(f"left out: {failure}")
            readable = [picture for picture in found if isinstance(picture, Picture)]
            values = np.empty((0, settings.length), np.float32)
            if readable:
                values = _features(encoder, torch.stack([picture.pixels for picture in readable]), settings)
            if not np.isfinite(values).all():
                bad = readable[int(np.argmin(np.isfinite(values).all(axis=1)))].path
                raise InputError(
                    f"the features of {bad} are not finite: the model is damaged, or overflows in {settings.dtype}"
                )
            yield _table(readable, values, settings, pictures.class_names)


def _read_ahead(read: Callable[[int], Picture], chunks: Sequence[range]) -> Generator[list[Picture | InputError]]:
    """The images of each chunk, the next one being read in threads meanwhile."""

    def outcome(i: int) -> Picture | InputError:
        try:
            return read(i)
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        coming = [pool.submit(outcome, i) for i in chunks[0]] if chunks else []
        for following in [*chunks[1:], range(0)]:
            now, coming = coming, [pool.submit(outcome, i) for i in following]
            yield [future.result() for future in now]
    finally:
        pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _features(encoder: Encoder, pixels: Tensor, settings: Settings) -> NDArray[np.float32]:
    """(B, 3, S, S) -> (B, F); means are taken in float32."""
    outputs = encoder.extract_features(pixels.to(next(encoder.parameters()).device), settings.layers)
    patches = torch.stack(outputs).float().mean(dim=0)  # (B, N, D)
    return (patches.mean(dim=1) if settings.pool == "mean" else patches.flatten(1)).cpu().numpy()


def _schema(settings: Settings) -> pa.Schema:
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.int64()),
            ("class_name", pa.string()),
            ("feature", pa.list_(pa.float32(), settings.length)),
        ],
        metadata={METADATA: json.dumps(asdict(settings))},
    )


def _table(
    pictures: Sequence[Picture], values: NDArray[np.float32], settings: Settings, class_names: Mapping[int, str]
) -> pa.Table:
    columns = {
        "path": [picture.path for picture in pictures],
        "label": [picture.label for picture in pictures],
        "class_name": [None if picture.label is None else class_names.get(picture.label) for picture in pictures],
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), settings.length),
    }
    return pa.table(columns, schema=_schema(settings))


def _writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, use_dictionary=["class_name"])  # numbers of features hardly repeat


def _join(parts: Sequence[_Part], settings: Settings, out: Path) -> None:
    """The parts one after the other, of which only one is in memory; those without readable images leave no trace."""
    if not any(_read_part(part, pq.read_metadata).num_rows for part in parts):
        raise NoImagesError(f"none of the {settings.images} images could be read: see the lines above")
    with written_beside(out) as beside, _writer(beside, _schema(settings)) as writer:
        for part in parts:
            table = _read_part(part, lambda file: pq.ParquetFile(file).read())
            if len(table):
                writer.write_table(table)


def _remove(folder: Path) -> None:
    """The parts, if they are ours; the manifest last, so that what is left is known as ours."""
    if (folder / MANIFEST).exists():
        for file in folder.glob("*.parquet"):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _read_part(part: _Part, read: Callable[[Path], Any]) -> Any:
    try:
        return read(part.file)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        remedy = "remove this file, and the same command makes it anew"
        raise InputError(f"{part.file} is damaged ({one_line(error)}): {remedy}") from error


def _settings_of(file: Path) -> Settings:
    remedy = "make one with var features"
    try:
        found = (pq.read_schema(file).metadata or {})[METADATA]
        settings = Settings.parse(json.loads(found))
    except FileNotFoundError as error:
        raise InputError(f"features file {file} does not exist: {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a features file: {remedy}") from error
    if settings.format != FORMAT:
        raise InputError(f"{file} is of format {settings.format}, this version reads {FORMAT}: {remedy}")
    return settings


def _summary(out: Path, settings: Settings, computed: int) -> FeatureSummary:
    with pq.ParquetFile(out) as parquet:
        rows = parquet.metadata.num_rows
        classes = parquet.read(columns=["label"])["label"].unique().drop_null()
    return FeatureSummary(rows, settings.length, settings.images - rows, len(classes), computed)


def _image_names(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = filter(_visible, folders)
        below = Path(parent).relative_to(folder)
        suffixes = _suffixes()
        yield from (
            (below / file).as_posix() for file in files if _visible(file) and Path(file).suffix.lower() in suffixes
        )


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS)


def _suffix_list() -> str:
    return ", ".join(sorted(_suffixes()))


def _text(given: str) -> str:
    """What Parquet can hold: names of files may be no text."""
    return os.fsencode(given).decode(errors="backslashreplace")
