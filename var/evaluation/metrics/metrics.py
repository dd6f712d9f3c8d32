"""Metrics as pure functions of features: nothing here knows of images or networks. All in float64.

N images, M of the reference, D numbers of a feature, K classes. Where torch-fidelity's function on features is right,
it is what is called; docs/evaluation.md tells where it is not, and where it differs from the evaluator of ADM (arXiv
2105.05233).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.errors import InputError
from var.utils.torchvision_compat import import_torchvision

TOO_FEW = "a covariance needs at least 2 pictures"
NEIGHBORS = 3  # whose distance is the radius of a ball, in precision and recall
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

_NOT_ROUNDING = 1e-5  # of the largest eigenvalue: covariances that were stored in float32 are off by less
_ROUNDING = 1e-12  # of two features' squared norms: their squared distance as a product is off by less
_ROWS = 1000  # of distances in memory at a time, and of features in a part of their moments

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D), divided by N - 1, of features; float64. `count` is N, where it is known."""

    mean: Array
    covariance: Array
    count: int | None


class MeanStd(NamedTuple):
    """A mean and the standard deviation (divided by n) of what it is the mean of."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """Fractions of the samples near the reference, and of the reference near the samples."""

    precision: float
    recall: float


class Moments:
    """Mean and covariance of features that come in parts, none of which is kept (Chan, Golub and LeVeque 1979)."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))  # sum of the outer products of what differs from the mean

    def add(self, features: Tensor | NDArray[Any]) -> None:
        """Take in (N, D) features. Raises InputError if they are not finite."""
        part = finite(features)
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
        """Of all that was taken in. Raises InputError for fewer than two features."""
        if self.count < 2:
            raise InputError(f"{TOO_FEW}, and there are {self.count}")
        return Statistics(self._mean.copy(), self._scatter / (self.count - 1), self.count)


def statistics(features: Tensor | NDArray[Any]) -> Statistics:
    """Of (N, D) features. Raises InputError for fewer than two, or some that are not finite."""
    moments = Moments(features.shape[1])
    for start in range(0, len(features), _ROWS):
        moments.add(features[start : start + _ROWS])
    return moments.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), between the Gaussians of these statistics (arXiv 1706.08500).

    With S = F F^T the trace of (S_a S_b)^(1/2) is the sum of the singular values of F_a^T F_b: no root of the rounding
    errors of a product is taken, which is what costs torch-fidelity's and ADM's functions their digits where a
    covariance is singular.

    Raises InputError: statistics of other dimensions, not finite, or a covariance that is none.
    """
    _check_same_dimension(len(a.mean), len(b.mean))
    step = finite(a.mean) - finite(b.mean)
    factors = [_factor(finite(each.covariance)) for each in (a, b)]
    shared = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    return float(step @ step + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def _factor(covariance: Array) -> Array:
    """F (D, rank) with F F^T the covariance. Eigenvalues within rounding of zero are zero."""
    values, vectors = eigenvectors(covariance, "what is given as a covariance")
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def eigenvectors(covariance: Array, name: str) -> tuple[Array, Array]:
    """Eigenvalues (D,), ascending, and eigenvectors (D, D) of a covariance. Raises InputError if `name` is none."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    largest = max(values[-1], 0.0)
    asymmetry = np.abs(covariance - covariance.T).max()
    if max(-values[0], asymmetry) > _NOT_ROUNDING * largest:
        raise InputError(
            f"{name} is no covariance (smallest eigenvalue {values[0]:.3g}, largest {values[-1]:.3g}, "
            f"asymmetry {asymmetry:.3g}): give statistics that features have"
        )
    return values, vectors


def inception_score(logits: Tensor, split_size: int = 5000) -> MeanStd:
    """exp(mean KL(p(y|x) || p(y))) as ADM computes it: over consecutive parts of (N, K) logits, in the order given.

    The last part may be smaller; every part counts the same in the mean.

    Raises InputError: no logits, or some that are not finite.
    """
    _check_features(logits, 1)
    scores = []
    for part in logits.split(split_size):  # in logarithms: a class that no image has gives no zero to divide by
        conditional = part.double().log_softmax(1)
        marginal = conditional.logsumexp(0) - math.log(len(part))
        scores.append((conditional.exp() * (conditional - marginal)).sum(1).mean().exp().item())
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def shuffled_inception_score(logits: Tensor, splits: int = 10) -> MeanStd:
    """The same as torch-fidelity computes it: over `splits` parts of nearly equal size, shuffled with its seed.

    Raises InputError: fewer logits than splits, some that are not finite, or none of a class in a part, whose
    probability underflows (then only `inception_score` is defined).
    """
    _check_features(logits, splits)
    found = _fidelity("metric_isc").isc_features_to_metric(logits.double(), splits)
    score = MeanStd(found["inception_score_mean"], found["inception_score_std"])
    if not all(map(math.isfinite, score)):
        raise InputError("torch-fidelity's Inception Score of these logits is not a number: a class's share underflows")
    return score


def precision_recall(samples: Tensor, reference: Tensor) -> PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991) between (N, D) and (M, D) features, with NEIGHBORS = 3.

    Around every image of a set lies a ball that reaches to its third nearest neighbor in that set (itself not
    counted). Precision is the fraction of samples within any ball of the reference, recall that of the reference within
    any ball of the samples. An image that occurs more than three times has a ball of radius 0, which holds its copies.

    Raises InputError: features of other dimensions, not finite, or fewer than NEIGHBORS + 1 in a set.
    """
    _check_pair(samples, reference, NEIGHBORS + 1)
    center = reference.double().mean(0)  # distances stay, and what their computation cancels is smaller
    samples, reference = samples.double() - center, reference.double() - center
    return PrecisionRecall(precision=_within(samples, reference), recall=_within(reference, samples))


def _within(points: Tensor, centers: Tensor) -> float:
    """The fraction of (N, D) points in a ball around any of (M, D) centers.

    Distances are rows of a product of matrices, which is fast, and whose rounding makes those of equal points differ
    from zero: what is outside by no more than that is inside.
    """
    nearest = [near.topk(NEIGHBORS + 1, largest=False).values for near in _squared_distances(centers, centers)]
    radii = torch.cat(nearest)[:, -1]  # squared; the first neighbor is the center itself
    inside = sum((near <= radii).any(1).sum().item() for near in _squared_distances(points, centers, 1 - _ROUNDING))
    return inside / len(points)


def _squared_distances(points: Tensor, centers: Tensor, share: float = 1) -> Iterator[Tensor]:
    """(N, D) and (M, D) float64 -> (_ROWS, M) at a time, |x|^2 + |y|^2 - 2 x.y; of the squared norms only a share."""
    norms = share * centers.square().sum(1)
    for rows in points.split(_ROWS):
        yield torch.addmm(norms, rows, centers.T, alpha=-2).add_(share * rows.square().sum(1, keepdim=True))


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 2020) -> MeanStd:
    """KID (arXiv 1801.01401): squared MMD, unbiased, kernel (x.y / D + 1)^3, of KID_SUBSETS random subsets of each set.

    The subsets have `kid_subset_size` of the counts images; the standard deviation is that over the subsets. Values
    slightly below zero are right for sets that are alike.

    Raises InputError: features of other dimensions, not finite, or fewer than two in a set.
    """
    _check_pair(samples, reference, 2)
    found = _fidelity("metric_kid").kid_features_to_metric(
        samples.double(),
        reference.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset_size(len(samples), len(reference)),
        rng_seed=seed,
        verbose=False,
    )
    return MeanStd(found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"])


def kid_subset_size(samples: int, reference: int) -> int:
    """The images of a subset: KID_SUBSET_SIZE, or as many as there are."""
    return min(KID_SUBSET_SIZE, samples, reference)


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """The fraction of (N, K) logits whose label is among the k largest of them."""
    return (logits.topk(k).indices == labels[:, None]).any(1).double().mean().item()


def finite(values: Tensor | NDArray[Any], name: str = "features or statistics") -> Array:
    """The values in float64. Raises InputError, with their name, if some are not finite."""
    array = np.asarray(values.numpy() if isinstance(values, Tensor) else values, dtype=np.float64)
    if not np.isfinite(array).all():
        wrong = np.count_nonzero(~np.isfinite(array))
        raise InputError(f"{name}: {wrong} of {array.size} numbers are not finite: what made them is damaged")
    return array


def _check_pair(samples: Tensor, reference: Tensor, fewest: int) -> None:
    for features in (samples, reference):
        _check_features(features, fewest)
    _check_same_dimension(samples.shape[1], reference.shape[1])


def _check_features(features: Tensor, fewest: int) -> None:
    if len(features) < fewest:
        raise InputError(f"{len(features)} pictures are too few: give at least {fewest}")
    finite(features)


def _check_same_dimension(a: int, b: int) -> None:
    if a != b:
        raise InputError(f"features of {a} and of {b} numbers cannot be compared: use one extractor")


def _fidelity(module: str) -> Any:
    """A module of torch-fidelity, which imports torchvision."""
    import_torchvision()
    try:
        return import_module(f"torch_fidelity.{module}")
    except ModuleNotFoundError as error:
        raise InputError("torch-fidelity is not installed: pip install 'var-next-scale[evaluation]'") from error
