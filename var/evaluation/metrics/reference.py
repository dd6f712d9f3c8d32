"""References for metrics, read and written: images, or mean and covariance of their features.

N images, D feature dimension, K classes, S side of images.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError
from var.evaluation.metrics.extractors import INCEPTION, Extractor
from var.evaluation.metrics.feature_metrics import TOO_FEW, Moments, Statistics, check_finite, eigenvectors, statistics
from var.evaluation.samples.image_sets import ImageSet, npz_images, open_image_set
from var.evaluation.samples.npz import IMAGES, LABELS, Npz, open_npz, write_images
from var.utils.files import atomic_write
from var.utils.images import to_uint8
from var.utils.json_text import parse_json

COUNT = "statistics_count"  # name of the array with the number of images that mu and sigma are computed from

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """Images, statistics or both, to compare with. Stored statistics are preferred to those of its images."""

    path: Path
    kind: str  # folder; npz of images; reference batch (images and statistics); statistics
    images: ImageSet | None
    pool: Statistics | None = None
    spatial: Statistics | None = None
    warnings: tuple[str, ...] = ()  # from opening it


class SetFeatures(NamedTuple):
    """Features of all images."""

    pool: Tensor  # (N, D) float32
    logits: Tensor | None  # (N, K) float32
    spatial: Statistics | None


def extract(
    batches: Iterable[Tensor], extractor: Extractor, progress: Callable[[int], None] = lambda done: None
) -> SetFeatures:
    """Extract the features of all images; of spatial features only mean and covariance are kept.

    Raises InputError: features that are not finite, no images.
    """
    pools: list[Tensor] = []
    logits: list[Tensor] = []
    spatial: Moments | None = None
    for batch in batches:
        found = extractor(batch)
        check_finite(found.pool, f"the features that {extractor.name} gives ({extractor.weights})")
        pools.append(found.pool)
        if found.logits is not None:
            logits.append(found.logits)
        if found.spatial is not None:
            spatial = spatial or Moments(found.spatial.shape[1])
            spatial.add(found.spatial)
        progress(sum(map(len, pools)))
    if not pools:
        raise InputError("there are no images: give at least one")
    of_spatial = None if spatial is None else spatial.statistics()
    return SetFeatures(torch.cat(pools), torch.cat(logits) if logits else None, of_spatial)


def open_reference(path: Path, extractor: Extractor) -> Reference:
    """Open a folder of images, an .npz of images, a reference batch (images, mu and sigma), or statistics.

    Statistics without a named extractor are assumed to be Inception's, as in ADM's files. Statistics of another
    extractor are an error if the file has no images; else they are ignored, with a warning.

    Raises InputError: no such file or folder; neither images nor statistics in it; statistics of another extractor or
    dimension, not finite, or with a matrix that is no covariance.
    """
    if path.is_dir():
        return Reference(path, "folder", open_image_set(path))
    npz = open_npz(path)
    images = npz_images(npz) if IMAGES in npz.names else None
    if "mu" not in npz.names:
        if images is None:
            raise InputError(f"{path} holds neither images ({IMAGES}) nor statistics (mu, sigma): give another file")
        return Reference(path, "npz of images", images)
    maker = _read_maker(npz)
    if maker["name"] != extractor.name:
        if images is None:
            raise InputError(
                f"the statistics in {path} are of extractor {maker['name']}, not {extractor.name}: choose the same "
                f"(--extractor), or give images"
            )
        ignored = f"the statistics in {path} are of extractor {maker['name']}: its images are used instead"
        return Reference(path, "npz of images", images, warnings=(ignored,))
    other = maker.get("version", extractor.version) != extractor.version
    differs = f"the statistics in {path} were made by {maker.get('version')}, not by {extractor.version}"
    return Reference(
        path,
        "statistics" if images is None else "reference batch",
        images,
        pool=_read_statistics(npz, "mu", "sigma", extractor, extractor.dimension),
        spatial=_read_spatial_statistics(npz, extractor) if "mu_s" in npz.names else None,
        warnings=(differs,) if other else (),
    )


def check_enough(images: ImageSet) -> None:
    """Raise InputError unless there are at least two images, as a covariance needs."""
    if images.count < 2:
        raise InputError(f"{images.path} holds {images.count} image: {TOO_FEW}")


def write_statistics(
    images: ImageSet,
    extractor: Extractor,
    out: Path,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write mean and covariance of the features of images, for `open_reference`; return the number of images.

    Raises InputError: as `score`, and if `out` cannot be written.
    """
    check_enough(images)
    features = extract(images.batches(batch_size), extractor, lambda done: progress(done, images.count))
    arrays = _to_arrays(features, extractor)
    with atomic_write(out) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return len(features.pool)


def write_reference(
    batches: Iterable[tuple[Tensor, list[int]]],
    side: int,
    out: Path,
    extractor: Extractor | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write a reference batch in ADM's format: images as arr_0, labels as arr_1; with an extractor, statistics too.

    Images are buffered in a temporary file beside `out`, as the array's header needs their number.

    Args:
        batches: from `image_batches`: (B, 3, S, S) in [-1, 1], and labels.
        side: S.
        extractor: computes mu, sigma and, if it has spatial features, mu_s, sigma_s.
        progress: called with the number of images read.

    Returns:
        N, the number of images in the file.

    Raises:
        InputError: no images, or fewer than two with an extractor; `out` cannot be written.
    """
    labels: list[int] = []
    with _open_temporary(out) as buffer:

        def read_pixels() -> Iterator[Tensor]:
            for images, numbers in batches:
                pixels = to_uint8(images)
                buffer.write(pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                labels.extend(numbers)
                progress(len(labels))
                yield pixels

        arrays: dict[str, NDArray[Any]] = {}
        if extractor is None:
            for _ in read_pixels():
                pass
        else:
            arrays = _to_arrays(extract(read_pixels(), extractor), extractor)
        buffer.seek(0)
        size = side * side * 3
        rows = (np.frombuffer(buffer.read(size), np.uint8).reshape(side, side, 3) for _ in labels)
        write_images(out, rows, len(labels), (side, side), **{LABELS: np.array(labels, np.int64)}, **arrays)
    return len(labels)


def _open_temporary(out: Path) -> IO[bytes]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=out.parent)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}: free space there or give another path") from error


def _to_arrays(features: SetFeatures, extractor: Extractor) -> dict[str, NDArray[Any]]:
    """Return statistics by ADM's names, and the extractor as JSON bytes, since arrays of text are not read."""
    pool, spatial = statistics(features.pool), features.spatial
    made = json.dumps({"name": extractor.name, "version": extractor.version, "resize": extractor.resize})
    arrays: dict[str, NDArray[Any]] = {
        "mu": pool.mean,
        "sigma": pool.covariance,
        COUNT: np.array([pool.count], np.int64),
        "extractor": np.frombuffer(made.encode(), np.uint8),
    }
    return arrays if spatial is None else {**arrays, "mu_s": spatial.mean, "sigma_s": spatial.covariance}


def _read_maker(npz: Npz) -> dict[str, str]:
    """Return name and version of the extractor of the statistics; Inception if the file names none."""
    if "extractor" not in npz.names:
        return {"name": INCEPTION}
    with suppress(ValueError, TypeError, KeyError):
        made = parse_json(npz.array("extractor").tobytes())
        return {"name": str(made["name"]), "version": str(made["version"])}
    raise InputError(f"{npz.path} has a damaged entry `extractor`: write the file again with var evaluate reference")


def _read_statistics(npz: Npz, mean: str, covariance: str, extractor: Extractor, dimension: int) -> Statistics:
    """Read statistics by the names of their arrays, and check them before anything is computed."""
    count = int(npz.array(COUNT).sum()) if COUNT in npz.names else None
    arrays = [check_finite(npz.array(name), f"{name} in {npz.path}") for name in (mean, covariance)]
    found = Statistics(arrays[0], arrays[1], count)
    if (found.mean.shape, found.covariance.shape) != ((dimension,), (dimension, dimension)):
        raise InputError(
            f"{npz.path}: {mean} and {covariance} have shapes {found.mean.shape} and {found.covariance.shape}, but "
            f"{extractor.name} needs ({dimension},) and ({dimension}, {dimension}): give statistics of its features"
        )
    eigenvectors(found.covariance, f"{covariance} in {npz.path}")
    return found


def _read_spatial_statistics(npz: Npz, extractor: Extractor) -> Statistics | None:
    """Read mu_s and sigma_s; None if the extractor has no spatial features (tried on a black image)."""
    spatial = extractor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).spatial
    return None if spatial is None else _read_statistics(npz, "mu_s", "sigma_s", extractor, spatial.shape[1])
