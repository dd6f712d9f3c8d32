"""What images are compared with: other images, or mean and covariance of their features, read and written.

N images, D numbers of a feature, K classes, S side of images.
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
from var.evaluation.metrics.metrics import TOO_FEW, Moments, Statistics, eigenvectors, finite, statistics
from var.evaluation.samples.image_sets import ImageSet, npz_images, open_image_set
from var.evaluation.samples.npz import IMAGES, LABELS, Npz, open_npz, write_images
from var.utils.files import atomic_write
from var.utils.images import to_uint8

COUNT = "statistics_count"  # array of the number of images behind mu and sigma

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """What images are compared with. Statistics that came with it go before those of its images."""

    path: Path
    kind: str  # folder; npz of pictures; reference batch, which has statistics too; statistics
    images: ImageSet | None
    pool: Statistics | None = None
    spatial: Statistics | None = None
    warnings: tuple[str, ...] = ()  # found on opening it


class SetFeatures(NamedTuple):
    """Features of all images."""

    pool: Tensor  # (N, D) float32
    logits: Tensor | None  # (N, K) float32
    spatial: Statistics | None


def extract(
    batches: Iterable[Tensor], extractor: Extractor, progress: Callable[[int], None] = lambda done: None
) -> SetFeatures:
    """The features of all images; of the spatial ones, which are not needed singly, mean and covariance alone.

    Raises InputError: features that are not finite, no images.
    """
    pools: list[Tensor] = []
    logits: list[Tensor] = []
    spatial: Moments | None = None
    for batch in batches:
        found = extractor(batch)
        finite(found.pool, f"the features that {extractor.name} gives ({extractor.weights})")
        pools.append(found.pool)
        if found.logits is not None:
            logits.append(found.logits)
        if found.spatial is not None:
            spatial = spatial or Moments(found.spatial.shape[1])
            spatial.add(found.spatial)
        progress(sum(map(len, pools)))
    if not pools:
        raise InputError("there are no pictures to look at")
    places = None if spatial is None else spatial.statistics()
    return SetFeatures(torch.cat(pools), torch.cat(logits) if logits else None, places)


def open_reference(path: Path, extractor: Extractor) -> Reference:
    """A folder of images, an .npz of them, a reference batch (images, mu and sigma), or statistics alone.

    Statistics that do not say which extractor made them are taken for Inception's, as ADM's files hold. Those of
    another extractor are refused if there are no images beside them; else the images take their place.

    Raises InputError: no such file or folder; neither images nor statistics in it; statistics of another extractor or
    dimension, not finite, or with a covariance that is none.
    """
    if path.is_dir():
        return Reference(path, "folder", open_image_set(path))
    npz = open_npz(path)
    images = npz_images(npz) if IMAGES in npz.names else None
    if "mu" not in npz.names:
        if images is None:
            raise InputError(f"{path} holds neither pictures ({IMAGES}) nor statistics (mu, sigma): give another file")
        return Reference(path, "npz of pictures", images)
    maker = _maker(npz)
    if maker["name"] != extractor.name:
        if images is None:
            raise InputError(
                f"the statistics in {path} are those of {maker['name']}, the extractor is {extractor.name}: choose the "
                f"same (--extractor), or give pictures"
            )
        ignored = f"the statistics in {path} are of {maker['name']}, not used: those of its pictures are"
        return Reference(path, "npz of pictures", images, warnings=(ignored,))
    other = maker.get("version", extractor.version) != extractor.version
    differs = f"the statistics in {path} were made by {maker.get('version')}, not by {extractor.version}"
    return Reference(
        path,
        "statistics" if images is None else "reference batch",
        images,
        pool=_statistics(npz, "mu", "sigma", extractor, extractor.dimension),
        spatial=_spatial_statistics(npz, extractor) if "mu_s" in npz.names else None,
        warnings=(differs,) if other else (),
    )


def check_enough(images: ImageSet) -> None:
    """Raise InputError unless there are images enough for a covariance."""
    if images.count < 2:
        raise InputError(f"{images.path} holds {images.count} picture: {TOO_FEW}")


def write_statistics(
    images: ImageSet,
    extractor: Extractor,
    out: Path,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write mean and covariance of finished images, for `open_reference`; return how many there were.

    Raises InputError: as `score` raises it, and a place that cannot be written.
    """
    check_enough(images)
    seen = extract(images.batches(batch_size), extractor, lambda done: progress(done, images.count))
    arrays = _arrays(seen, extractor)
    with atomic_write(out) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return len(seen.pool)


def write_reference(
    batches: Iterable[tuple[Tensor, list[int]]],
    side: int,
    out: Path,
    extractor: Extractor | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write a reference batch in ADM's form: arr_0 and, as arr_1, labels; with an extractor, statistics too.

    The images wait on disk, beside `out`, until all are there.

    Args:
        batches: from `image_batches`: (B, 3, S, S) in [-1, 1], and labels.
        side: S.
        extractor: makes mu, sigma and, where it has spatial features, mu_s, sigma_s.
        progress: is told how many images were read.

    Returns:
        N, the number of images in the file.

    Raises:
        InputError: no images, or fewer than two with an extractor, a place that cannot be written.
    """
    labels: list[int] = []
    with _waiting(out) as waiting:

        def kept() -> Iterator[Tensor]:
            for images, numbers in batches:
                pixels = to_uint8(images)
                waiting.write(pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                labels.extend(numbers)
                progress(len(labels))
                yield pixels

        arrays: dict[str, NDArray[Any]] = {}
        if extractor is None:
            for _ in kept():
                pass
        else:
            arrays = _arrays(extract(kept(), extractor), extractor)
        waiting.seek(0)
        size = side * side * 3
        rows = (np.frombuffer(waiting.read(size), np.uint8).reshape(side, side, 3) for _ in labels)
        write_images(out, rows, len(labels), (side, side), **{LABELS: np.array(labels, np.int64)}, **arrays)
    return len(labels)


def _waiting(out: Path) -> IO[bytes]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=out.parent)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}: make room there or give another place") from error


def _arrays(seen: SetFeatures, extractor: Extractor) -> dict[str, NDArray[Any]]:
    """Statistics by ADM's names, and what made them: JSON in bytes, since arrays of text are not read."""
    pool, spatial = statistics(seen.pool), seen.spatial
    made = json.dumps({"name": extractor.name, "version": extractor.version, "resize": extractor.resize})
    arrays: dict[str, NDArray[Any]] = {
        "mu": pool.mean,
        "sigma": pool.covariance,
        COUNT: np.array([pool.count], np.int64),
        "extractor": np.frombuffer(made.encode(), np.uint8),
    }
    return arrays if spatial is None else {**arrays, "mu_s": spatial.mean, "sigma_s": spatial.covariance}


def _maker(npz: Npz) -> dict[str, str]:
    """What made the statistics; Inception if the file does not tell."""
    if "extractor" not in npz.names:
        return {"name": INCEPTION}
    with suppress(ValueError, TypeError, KeyError):
        made = json.loads(npz.array("extractor").tobytes())
        return {"name": str(made["name"]), "version": str(made["version"])}
    raise InputError(f"{npz.path} does not tell which extractor made its statistics: make it again")


def _statistics(npz: Npz, mean: str, covariance: str, extractor: Extractor, dimension: int) -> Statistics:
    """By the names of their arrays: checked here, where the file is known, before anything is computed."""
    count = int(npz.array(COUNT).sum()) if COUNT in npz.names else None
    arrays = [finite(npz.array(name), f"{name} in {npz.path}") for name in (mean, covariance)]
    found = Statistics(arrays[0], arrays[1], count)
    if (found.mean.shape, found.covariance.shape) != ((dimension,), (dimension, dimension)):
        raise InputError(
            f"{npz.path}: {mean} and {covariance} have shapes {found.mean.shape} and {found.covariance.shape}, those "
            f"of {extractor.name} are ({dimension},) and ({dimension}, {dimension}): give statistics of its features"
        )
    eigenvectors(found.covariance, f"{covariance} in {npz.path}")
    return found


def _spatial_statistics(npz: Npz, extractor: Extractor) -> Statistics | None:
    """None where the extractor has no spatial features, whose number one black image tells."""
    places = extractor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).spatial
    return None if places is None else _statistics(npz, "mu_s", "sigma_s", extractor, places.shape[1])
