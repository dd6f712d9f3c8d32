"""Features of many images, made in parts so that a run that is killed goes on.

While OUT is made, OUT.parts holds manifest.json, which is written first and never changes, and a file for every so many
images; each is written under another name and renamed, so that one that is there is whole.

B batch, N patches, D width, S side of the images, F length of a feature.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError, check_whole_number, one_line
from var.features.feature_file import Pool, Settings, open_table, read_settings, schema_of, table_writer, to_table
from var.features.images import ImageList, LabeledImage
from var.features.sources import FeatureSource, load_features
from var.models.aim import EncoderConfig
from var.utils.device import choose_device, choose_dtype
from var.utils.files import atomic_write
from var.utils.json_text import parse_json
from var.utils.locks import locked
from var.utils.optional_packages import optional_packages
from var.utils.paths import check_no_other_files, check_target, follow_links, is_stream, to_path
from var.utils.provenance import as_key, sha256
from var.utils.readers import Readers
from var.utils.version import version

with optional_packages("features"):
    import pyarrow as pa
    import pyarrow.parquet as pq

log = logging.getLogger(__name__)

EXAMPLE = "features.parquet"  # a name for the file
MANIFEST = "manifest.json"
PART_IMAGES, PART_BYTES = 256, 2**26  # of a part, at most; so much is lost when a process is killed
THREADS = 8  # that read images, at most; Pillow lets them run side by side


class FeatureSummary(NamedTuple):
    """Content of a finished file, and the images that were looked at for it just now."""

    features: int
    length: int  # F
    unreadable: int  # images that were left out
    classes: int
    computed: int  # images that were looked at in this call


def open_source(
    name: str | Path, sizes: EncoderConfig | None = None, device: str = "auto", dtype: str = "auto"
) -> FeatureSource:
    """`var.features.sources.load_features`, on a device and in a type.

    Args:
        name: a folder or a name; `untrained` has the same weights in every call, drawn from seed 0.
        sizes: of `untrained` and `pixels`.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (bfloat16 where the device is fast at it), float32 or bfloat16.

    Raises:
        InputError: an unknown name, sizes that are missing, weights that cannot be had, an impossible device or dtype.
    """
    target = choose_device(device)
    computed_in = choose_dtype(dtype, target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_features(str(name), sizes).to(target, computed_in)


def write_features(
    source: FeatureSource,
    image_list: ImageList,
    out: str | Path,
    model: str,
    layers: str | Sequence[int] | None = None,
    pool: Pool = "mean",
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], object] = log.warning,
) -> FeatureSummary:
    """Write the features of all images; killed at any time, the same call goes on from the parts that were done.

    In memory are a part and two batches: one in the model, one that is read meanwhile. A file that is complete is
    left as it is. Batch and device may change on the way, in rounding only; nothing else may.

    Args:
        source: on the device and in the dtype that it is to run in.
        model: what the file calls the source.
        layers: as `FeatureSource.choose` takes them.
        progress: called with the number of images read in this call and the number to read.
        report: is given a line for every image that cannot be read and is left out.

    Raises:
        InputError: layers that there are not, a batch below 1, a file or parts of other settings or images, a file
            that cannot be written, no image that can be read, features that are not finite.
    """
    batch = check_whole_number("batch", batch, 1)
    if pool not in get_args(Pool):
        raise InputError(f"pool={pool!r} must be {' or '.join(get_args(Pool))}")
    out = to_path(out, "out")
    if is_stream(out):
        raise InputError(f"{out} is a device or a pipe, beside which parts cannot be written: give a file")
    check_target(out, EXAMPLE)
    out = follow_links(out)  # what a link leads to, with the parts beside it
    settings = _settings(source, image_list, model, layers, pool)
    folder = out.with_name(f"{out.name}.parts")
    computed = 0
    with locked(folder, remedy="give another --out"):
        if out.exists():
            _check_same(settings, read_settings(out, remedy="give another --out"), out)
        else:
            computed = _write_parts(source, settings, image_list, out, folder, batch, progress, report)
        _remove(folder)
    return _summary(out, settings, computed)


def _write_parts(
    source: FeatureSource,
    settings: Settings,
    image_list: ImageList,
    out: Path,
    folder: Path,
    batch: int,
    progress: Callable[[int, int], None],
    report: Callable[[str], object],
) -> int:
    """Write the parts that are missing and join them; return the number of images that were looked at."""
    computed = 0
    parts = _parts(folder, settings, batch)
    todo = {file: batches for file, batches in parts.items() if not file.exists()}
    chunks = list(chain(*todo.values()))
    total = sum(map(len, chunks))
    with closing(_extract_batches(source, settings, image_list, chunks, report)) as tables:
        for file, batches in todo.items():
            rows: list[pa.Table] = []
            for chunk in batches:
                rows.append(next(tables))
                computed += len(chunk)
                progress(computed, total)
            with atomic_write(file) as beside, table_writer(beside, schema_of(settings)) as writer:
                writer.write_table(pa.concat_tables(rows).combine_chunks())
    if not any(_read_part(file, pq.read_metadata).num_rows for file in parts):
        _remove(folder)
        raise InputError(f"none of the {settings.images} images could be read: see the lines above")
    _join(parts, settings, out)
    return computed


def _settings(
    source: FeatureSource, image_list: ImageList, model: str, layers: str | Sequence[int] | None, pool: Pool
) -> Settings:
    return Settings(
        model=model,
        weights=_fingerprint(source),
        layers=source.choose(layers),
        pool=pool,
        image_size=source.image_size,
        patches=source.patches,
        width=source.width,
        dtype=str(source.dtype).removeprefix("torch."),
        images=image_list.count,
        checksum=image_list.checksum,
        version=version(),
    )


def _fingerprint(source: FeatureSource) -> str:
    parts = [type(source).__name__, source.image_size, source.patches]
    parts += [network.config.to_dict() for network in source.networks.values()]
    weights = (weight.to(torch.bfloat16) for network in source.networks.values() for weight in network.parameters())
    return sha256([as_key(parts), *weights])


def _check_same(settings: Settings, theirs: Settings, path: Path) -> None:
    """Raise InputError unless the settings agree; the model's name may differ, its weights may not."""
    names = [field.name for field in fields(Settings) if field.name != "model"]
    difference = theirs.difference(settings, names)
    if difference is not None:
        if difference.startswith(("images", "checksum")):
            difference = "from other images or labels"
        elif difference.startswith("weights"):
            difference = f"by another model ({theirs.model})"
        else:
            difference = f"with {difference}"
        raise InputError(f"{path} was made {difference}: give another --out, or remove it")


def _parts(folder: Path, settings: Settings, batch: int) -> dict[Path, list[range]]:
    """The files of a run, which is begun or goes on, and the batches of images of each."""
    file = folder / MANIFEST
    if not file.exists():
        check_no_other_files(folder, (MANIFEST,), "give another --out")
        whole = max(1, min(PART_IMAGES, PART_BYTES // (4 * settings.length)) // batch)  # batches
        with atomic_write(file) as beside:
            beside.write_text(json.dumps({"part_images": whole * batch, "settings": asdict(settings)}, indent=1))
    try:
        manifest = parse_json(file.read_bytes())
        size, theirs = int(manifest["part_images"]), Settings.parse(manifest["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): remove {folder} to begin anew") from error
    _check_same(settings, theirs, folder)
    images = range(settings.images)
    starts = range(0, len(images), size)
    parts = {folder / f"{i:05d}.parquet": images[first : first + size] for i, first in enumerate(starts)}
    return {file: [part[at : at + batch] for at in range(0, len(part), batch)] for file, part in parts.items()}


def _extract_batches(
    source: FeatureSource,
    settings: Settings,
    image_list: ImageList,
    chunks: Sequence[range],
    report: Callable[[str], object],
) -> Generator[pa.Table]:
    """A table for each batch of images."""
    with closing(_read_ahead(lambda i: image_list.read(i, settings.image_size), chunks)) as batches:
        for found in batches:
            for failure in found:
                if isinstance(failure, InputError):
                    report(f"left out: {failure}")
            readable = [image for image in found if isinstance(image, LabeledImage)]
            values = np.empty((0, settings.length), np.float32)
            if readable:
                values = _features(source, torch.stack([image.pixels for image in readable]), settings)
            if not np.isfinite(values).all():
                bad = readable[int(np.argmin(np.isfinite(values).all(axis=1)))].path
                raise InputError(
                    f"the features of {bad} are not finite: the model is damaged, or overflows in {settings.dtype}"
                )
            yield to_table(readable, values, settings, image_list.class_names)


def _read_ahead(
    read: Callable[[int], LabeledImage], chunks: Sequence[range]
) -> Generator[list[LabeledImage | InputError]]:
    """The images of each chunk, the next one being read in threads meanwhile."""

    def outcome(i: int) -> LabeledImage | InputError:
        try:
            return read(i)
        except InputError as error:
            return error

    with Readers(min(THREADS, os.cpu_count() or 1)) as readers:
        coming: list[Future[LabeledImage | InputError]] = []
        for chunk in [*chunks, range(0)]:
            now, coming = coming, [readers.submit(outcome, i) for i in chunk]
            if now:
                yield [future.result() for future in now]


@torch.inference_mode()
def _features(source: FeatureSource, pixels: Tensor, settings: Settings) -> NDArray[np.float32]:
    """(B, 3, S, S) in [-1, 1] -> (B, F); means are taken in float32."""
    outputs = source.features(pixels.to(source.device), settings.layers)
    patches = torch.stack(outputs).float().mean(dim=0)  # (B, N, D)
    return (patches.mean(dim=1) if settings.pool == "mean" else patches.flatten(1)).cpu().numpy()


def _join(parts: Iterable[Path], settings: Settings, out: Path) -> None:
    """The parts one after the other, of which only one is in memory; those without readable images leave no trace."""
    with atomic_write(out) as beside, table_writer(beside, schema_of(settings)) as writer:
        for file in parts:
            table = _read_part(file, lambda file: open_table(file).read())
            if len(table):
                writer.write_table(table)


def _remove(folder: Path) -> None:
    """The parts, if they are ours; the manifest last, so that what is left is known as ours."""
    if (folder / MANIFEST).exists():
        for file in folder.glob("*.parquet"):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _read_part(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        remedy = "remove this file, and the same command makes it anew"
        raise InputError(f"{file} is damaged ({one_line(error)}): {remedy}") from error


def _summary(out: Path, settings: Settings, computed: int) -> FeatureSummary:
    with open_table(out) as parquet:
        rows = parquet.metadata.num_rows
        classes = parquet.read(columns=["label"])["label"].unique().drop_null()
    return FeatureSummary(rows, settings.length, settings.images - rows, len(classes), computed)
