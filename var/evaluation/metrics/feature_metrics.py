"""Metrics as pure functions of features, in float64: Frechet distance, Inception Score, precision/recall, KID.

N images, M reference images, D feature dimension, K classes. torch-fidelity's functions on features are called where
they are exact; docs/evaluation.md lists where they are not, and the differences from ADM's evaluator (arXiv
2105.05233).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError
from var.utils.optional_packages import import_package
from var.utils.torchvision_compat import import_torchvision

TOO_FEW = "a covariance needs at least 2 images"
NEIGHBORS = 3  # k of the k-nearest-neighbor radii of precision and recall
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

_NOT_ROUNDING = 1e-5  # of the largest eigenvalue: above the rounding of covariances stored in float32
_ROUNDING = 1e-12  # of two features' squared norms: above the rounding of their squared distance as a product
_ROWS = 1000  # chunk size: rows of the distance matrix in memory at a time, features per update of the moments

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D), divided by N - 1, of features; float64. `count` is N if known."""

    mean: Array
    covariance: Array
    count: int | None


class MeanStd(NamedTuple):
    """Mean and standard deviation (divided by n) of values."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """Fraction of samples on the reference's manifold, and of the reference on that of the samples."""

    precision: float
    recall: float


class Moments:
    """Streaming mean and covariance of features that arrive in batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))  # sum of outer products of the deviations from the mean

    def add(self, features: Tensor | NDArray[Any]) -> None:
        """Update with (N, D) features. Raises InputError if they are not finite."""
        part = check_finite(features)
        if not len(part):
            return
        mean = part.mean(0)
        part = part - mean
        total = self.count + len(part)
        step = mean - self._mean
        self._scatter += part.T @ part
        self._scatter += np.outer(step, step * (self.count * len(part) / total))
        self._mean += step * (len(part) / total)
        self.count = total

    def statistics(self) -> Statistics:
        """Return mean and covariance of all features so far. Raises InputError for fewer than two."""
        if self.count < 2:
            raise InputError(f"{TOO_FEW}, not {self.count}: give more")
        return Statistics(self._mean.copy(), self._scatter / (self.count - 1), self.count)


def statistics(features: Tensor | NDArray[Any]) -> Statistics:
    """Return mean and covariance of (N, D) features. Raises InputError for fewer than two, or if not finite."""
    moments = Moments(features.shape[1])
    for start in range(0, len(features), _ROWS):
        moments.add(features[start : start + _ROWS])
    return moments.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) between Gaussians (FID, arXiv 1706.08500).

    With S = F F^T the trace of (S_a S_b)^(1/2) is the sum of the singular values of F_a^T F_b. This takes no square
    root of a product's rounding errors, which makes torch-fidelity's and ADM's functions inaccurate for singular
    covariances.

    Raises InputError: statistics of different dimensions, not finite, or a matrix that is no covariance.
    """
    _check_same_dimension(len(a.mean), len(b.mean))
    step = check_finite(a.mean) - check_finite(b.mean)
    factors = [_factor(check_finite(each.covariance)) for each in (a, b)]
    shared = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    return float(step @ step + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def _factor(covariance: Array) -> Array:
    """Return F (D, rank) with F F^T the covariance. Eigenvalues within rounding of zero are dropped."""
    values, vectors = eigenvectors(covariance, "the matrix")
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def eigenvectors(covariance: Array, name: str) -> tuple[Array, Array]:
    """Return ascending eigenvalues (D,) and eigenvectors (D, D). Raises InputError if `name` is no covariance."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    largest = max(values[-1], 0.0)
    asymmetry = np.abs(covariance - covariance.T).max()
    if max(-values[0], asymmetry) > _NOT_ROUNDING * largest:
        raise InputError(
            f"{name} is no covariance (smallest eigenvalue {values[0]:.3g}, largest {values[-1]:.3g}, "
            f"asymmetry {asymmetry:.3g}): give statistics of features"
        )
    return values, vectors


def inception_score(logits: Tensor, split_size: int = 5000) -> MeanStd:
    """Return exp(mean KL(p(y|x) || p(y))) as ADM does: over consecutive splits of (N, K) logits, in the given order.

    The last split may be smaller; all splits have the same weight in the mean.

    Raises InputError: no logits, or not finite.
    """
    _check_features(logits, 1)
    scores = []
    for part in logits.split(split_size):  # in logarithms: no division by zero for classes that no image has
        conditional = part.double().log_softmax(1)
        marginal = conditional.logsumexp(0) - math.log(len(part))
        scores.append((conditional.exp() * (conditional - marginal)).sum(1).mean().exp().item())
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def shuffled_inception_score(logits: Tensor, splits: int = 10) -> MeanStd:
    """Return the Inception Score as torch-fidelity does: over `splits` nearly equal parts, shuffled with its seed.

    Raises InputError: fewer logits than splits, not finite, or a class whose probability underflows in a part (then
    only `inception_score` is defined).
    """
    _check_features(logits, splits)
    found = _import_fidelity("metric_isc").isc_features_to_metric(logits.double(), splits)
    score = MeanStd(found["inception_score_mean"], found["inception_score_std"])
    if not all(map(math.isfinite, score)):
        raise InputError("torch-fidelity's Inception Score of these logits is NaN: a class probability underflows")
    return score


def precision_recall(samples: Tensor, reference: Tensor) -> PrecisionRecall:
    """Return improved precision and recall (arXiv 1904.06991) of (N, D) and (M, D) features, with k = NEIGHBORS = 3.

    Every image of a set has a ball that reaches its third nearest neighbor in that set (itself not counted). Precision
    is the fraction of samples inside any ball of the reference, recall that of the reference inside any ball of the
    samples. An image that occurs more than three times has a ball of radius 0, which contains its copies.

    Raises InputError: features of different dimensions, not finite, or fewer than NEIGHBORS + 1 in a set.
    """
    _check_pair(samples, reference, NEIGHBORS + 1)
    center = reference.double().mean(0)  # keeps the distances, reduces cancellation in computing them
    samples, reference = samples.double() - center, reference.double() - center
    return PrecisionRecall(precision=_fraction_within(samples, reference), recall=_fraction_within(reference, samples))


def _fraction_within(points: Tensor, centers: Tensor) -> float:
    """Return the fraction of (N, D) points that are in the k-nearest-neighbor ball of any of (M, D) centers.

    Distances are computed by matrix products, which is fast, but rounding makes the distance of equal points differ
    from zero: points outside a ball by no more than that count as inside.
    """
    nearest = [near.topk(NEIGHBORS + 1, largest=False).values for near in _squared_distances(centers, centers)]
    radii = torch.cat(nearest)[:, -1]  # squared; the first neighbor is the center itself
    inside = sum((near <= radii).any(1).sum().item() for near in _squared_distances(points, centers, 1 - _ROUNDING))
    return inside / len(points)


def _squared_distances(points: Tensor, centers: Tensor, share: float = 1) -> Iterator[Tensor]:
    """Yield |x|^2 + |y|^2 - 2 x.y of (N, D) and (M, D) float64, (_ROWS, M) at a time, squared norms times `share`."""
    norms = share * centers.square().sum(1)
    for rows in points.split(_ROWS):
        yield torch.addmm(norms, rows, centers.T, alpha=-2).add_(share * rows.square().sum(1, keepdim=True))


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 2020) -> MeanStd:
    """Return KID (arXiv 1801.01401): unbiased squared MMD, kernel (x.y / D + 1)^3, over KID_SUBSETS random subsets.

    Subsets have `kid_subset_size` images; mean and standard deviation are over the subsets. The unbiased estimate may
    be slightly negative for similar sets.

    Raises InputError: features of different dimensions, not finite, or fewer than two in a set.
    """
    _check_pair(samples, reference, 2)
    found = _import_fidelity("metric_kid").kid_features_to_metric(
        samples.double(),
        reference.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset_size(len(samples), len(reference)),
        rng_seed=seed,
        verbose=False,
    )
    return MeanStd(found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"])


def kid_subset_size(samples: int, reference: int) -> int:
    """Return the subset size of KID: KID_SUBSET_SIZE, or the size of the smaller set."""
    return min(KID_SUBSET_SIZE, samples, reference)


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the top-k accuracy of (N, K) logits."""
    return (logits.topk(k).indices == labels[:, None]).any(1).double().mean().item()


def check_finite(values: Tensor | NDArray[Any], name: str = "features or statistics") -> Array:
    """Return the values in float64. Raises InputError, with their name, if some are not finite."""
    array = np.asarray(values.numpy() if isinstance(values, Tensor) else values, dtype=np.float64)
    if not np.isfinite(array).all():
        wrong = np.count_nonzero(~np.isfinite(array))
        raise InputError(f"{name}: {wrong} of {array.size} numbers are not finite: the weights or the file are damaged")
    return array


def _check_pair(samples: Tensor, reference: Tensor, fewest: int) -> None:
    for features in (samples, reference):
        _check_features(features, fewest)
    _check_same_dimension(samples.shape[1], reference.shape[1])


def _check_features(features: Tensor, fewest: int) -> None:
    if len(features) < fewest:
        raise InputError(f"too few images, {len(features)}: give at least {fewest}")
    check_finite(features)


def _check_same_dimension(a: int, b: int) -> None:
    if a != b:
        raise InputError(f"features of dimensions {a} and {b} cannot be compared: use one extractor")


def _import_fidelity(module: str) -> Any:
    """Import a module of torch-fidelity, which imports torchvision."""
    import_torchvision()
    return import_package(f"torch_fidelity.{module}")
