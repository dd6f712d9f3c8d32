"""The numbers against closed forms, SciPy and plain NumPy, to 1e-6 relative or better."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import refused
from numpy.typing import NDArray
from torch import Tensor

from var.evaluation.metrics import feature_metrics
from var.evaluation.metrics.feature_metrics import (
    Moments,
    Statistics,
    accuracy,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    shuffled_inception_score,
    statistics,
)
from var.utils.torchvision_compat import import_torchvision

Array = NDArray[np.float64]


def features_with(mean: Array, covariance: Array, count: int, seed: int = 0) -> Array:
    """Features whose sample mean and covariance are exactly these."""
    dimension = len(mean)
    drawn = np.random.default_rng(seed).normal(size=(count, dimension))
    white = np.linalg.qr(drawn - drawn.mean(0))[0] * np.sqrt(count - 1)
    return white @ np.linalg.cholesky(covariance).T + mean


def rotation(dimension: int, seed: int = 7) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))[0]


def from_features(a: Array, b: Array) -> float:
    """The distance without a covariance: with S = A^T A the trace of (S_a S_b)^(1/2) is the nuclear norm of A B^T."""
    centered = [(each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (a, b)]
    shared = np.linalg.svd(centered[0] @ centered[1].T, compute_uv=False).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + sum((each**2).sum() for each in centered) - 2 * shared)


def fidelity(a: Statistics, b: Statistics) -> float:
    """torch-fidelity's distance of the same statistics."""
    import_torchvision()
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    given = [{"mu": each.mean, "sigma": each.covariance} for each in (a, b)]
    return metric_fid.fid_statistics_to_metric(*given, False)["frechet_inception_distance"]


# Statistics


def test_statistics_are_numpys() -> None:
    features = np.random.default_rng(0).normal(size=(2500, 7)) + 100  # more than one part
    found = statistics(torch.from_numpy(features))
    assert found.count == 2500
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-10, atol=1e-13)


def test_moments_do_not_depend_on_the_parts() -> None:
    features = np.random.default_rng(1).normal(size=(50, 5)) * [1, 2, 3, 4, 5]
    moments = Moments(5)
    for part in np.split(features, [1, 1, 4, 30]):  # one of them empty
        moments.add(part)
    np.testing.assert_allclose(moments.statistics().covariance, statistics(features).covariance, rtol=1e-12)
    np.testing.assert_allclose(moments.statistics().mean, features.mean(0), rtol=1e-12)


def test_float32_statistics_lose_digits_that_these_keep() -> None:
    """Why torch-fidelity's fid_features_to_statistics is not used: it sums features in their own type."""
    import_torchvision()
    theirs = pytest.importorskip("torch_fidelity.metric_fid").fid_features_to_statistics
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4000, 4, generator=generator) + 10 for _ in range(2))  # float32
    exact = [each.double().numpy() for each in (a, b)]
    truth = fidelity(*(Statistics(each.mean(0), np.cov(each, rowvar=False), None) for each in exact))
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(truth, rel=1e-9)
    lossy = fidelity(*(Statistics(s["mu"].astype(float), s["sigma"], None) for s in map(theirs, (a, b))))
    assert abs(lossy / truth - 1) > 1e-4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    features = torch.zeros(6, 2)
    features[3, 1] = value
    good = torch.rand(6, 2)
    with refused("1 of 12 numbers are not finite"):
        statistics(features)
    for measure in (precision_recall, kernel_distance):
        with refused("not finite"):
            measure(features, good)
        with refused("not finite"):
            measure(good, features)
    with refused("not finite"):
        inception_score(features)
    fine = statistics(good)
    with refused("not finite"):
        frechet_distance(Statistics(fine.mean, fine.covariance * value, 6), fine)


def test_one_image_has_no_covariance() -> None:
    with refused("a covariance needs at least 2 images", "not 1"):
        statistics(torch.zeros(1, 3))


# Frechet distance


def test_frechet_distance_of_gaussians_with_shared_axes() -> None:
    """Exact: |m_a - m_b|^2 + sum (sqrt(a) - sqrt(b))^2."""
    axes = rotation(5)
    a, b = np.array([1.0, 4, 9, 0.25, 2]), np.array([4.0, 1, 9, 1, 0.5])
    step = np.array([1.0, -2, 0.5, 0, 3])
    sets = features_with(np.zeros(5), axes * a @ axes.T, 40), features_with(step, axes * b @ axes.T, 60, seed=1)
    truth = (step**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(*map(statistics, sets))
    assert found == pytest.approx(truth, rel=1e-12)
    assert frechet_distance(*map(statistics, sets[::-1])) == pytest.approx(truth, rel=1e-12)
    assert fidelity(*map(statistics, sets)) == pytest.approx(truth, rel=1e-6)


def test_frechet_distance_of_two_dimensions_in_closed_form() -> None:
    """tr (AB)^(1/2) = (tr AB + 2 sqrt(det AB))^(1/2): axes that are not shared."""
    a, b = np.array([[2.0, 0.6], [0.6, 1]]), np.array([[1.0, -0.5], [-0.5, 3]])
    shared = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    truth = 5 + np.trace(a) + np.trace(b) - 2 * shared
    sets = features_with(np.array([0.0, 1]), a, 10), features_with(np.array([2.0, 2]), b, 10, seed=1)
    assert frechet_distance(*map(statistics, sets)) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("count_a", "count_b", "dimension"), [(300, 200, 20), (20, 30, 40), (6, 100, 60)])
def test_frechet_distance_agrees_with_two_other_computations(count_a: int, count_b: int, dimension: int) -> None:
    """SciPy's matrix root, and a sum of singular values of features; in two of three cases covariances are singular."""
    generator = np.random.default_rng(3)
    mixing = generator.normal(size=(dimension, dimension)) * np.exp(generator.normal(size=dimension))
    a, b = (generator.normal(size=(count, dimension)) @ mixing + 5 for count in (count_a, count_b))
    sa, sb = statistics(a), statistics(b)
    found = frechet_distance(sa, sb)
    assert found == pytest.approx(from_features(a, b), rel=1e-11)
    root = scipy.linalg.sqrtm(sa.covariance @ sb.covariance)
    usual = ((sa.mean - sb.mean) ** 2).sum() + np.trace(sa.covariance + sb.covariance - 2 * root.real)
    assert found == pytest.approx(usual, rel=1e-6)


def test_frechet_distance_of_identical_sets_is_zero_where_torch_fidelitys_is_not() -> None:
    """Fewer images than dimensions: it takes roots of the rounding errors of a product's eigenvalues."""
    same = statistics(np.random.default_rng(0).normal(size=(60, 300)) * np.exp(np.arange(300) / 100))
    scale = np.trace(same.covariance)
    assert abs(frechet_distance(same, same)) < 1e-12 * scale
    assert abs(fidelity(same, same)) > 1e-9 * scale


def test_frechet_distance_of_constant_features_is_that_of_the_means() -> None:
    a, b = (statistics(np.full((5, 3), value)) for value in (1.0, 3.0))
    assert frechet_distance(a, b) == pytest.approx(12, rel=1e-14)


def test_what_is_no_covariance_is_refused() -> None:
    fine = Statistics(np.zeros(2), np.eye(2), None)
    for covariance in (np.diag([1.0, -0.1]), np.array([[1.0, 0.5], [0.0, 1.0]]), -np.eye(2)):
        with refused("covariance", "eigenvalue"):
            frechet_distance(fine, Statistics(np.zeros(2), covariance, None))
    with refused("of dimensions 2 and 3"):
        frechet_distance(fine, Statistics(np.zeros(3), np.eye(3), None))


def test_a_singular_covariance_in_float32_is_none_the_less_one() -> None:
    features = np.random.default_rng(0).normal(size=(10, 40))
    exact = statistics(features)
    rounded = Statistics(exact.mean, exact.covariance.astype(np.float32).astype(np.float64), 10)
    assert frechet_distance(rounded, exact) == pytest.approx(0, abs=1e-3 * np.trace(exact.covariance))


# Inception Score


def one_hot(classes: list[int], size: int, height: float = 30.0) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), size).float() * height


@pytest.mark.parametrize("height", [40.0, 2000.0])  # at the second probabilities underflow
def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes(height: float) -> None:
    score = inception_score(one_hot([0, 1, 2, 3] * 5, 6, height))
    assert score.mean == pytest.approx(4, rel=1e-9)
    assert score.std == 0


def test_inception_score_of_equal_predictions_is_one() -> None:
    assert inception_score(torch.full((8, 5), 3.0)).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(one_hot([2] * 8, 5)).mean == pytest.approx(1, rel=1e-9)


def test_inception_score_of_unsure_predictions_is_that_of_its_definition() -> None:
    logits = torch.randn(11, 7, generator=torch.Generator().manual_seed(0)) * 2
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    truth = math.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert inception_score(logits).mean == pytest.approx(truth, rel=1e-12)
    assert shuffled_inception_score(logits, 1).mean == pytest.approx(truth, rel=1e-12)


def test_adms_parts_are_consecutive_and_torch_fidelitys_are_shuffled() -> None:
    logits = one_hot([0] * 10 + [1] * 10, 3)
    assert inception_score(logits, 10) == pytest.approx((1, 0), abs=1e-9)  # one class a part
    assert inception_score(logits, 15).mean == pytest.approx(
        (3 / 2 ** (2 / 3) + 1) / 2, rel=1e-9
    )  # the last is smaller
    assert shuffled_inception_score(logits, 2).mean > 1.5


def test_shuffled_inception_score_hides_no_nan() -> None:
    with refused("is NaN"):
        shuffled_inception_score(one_hot([0, 1] * 10, 3, 2000.0))
    with refused("too few images, 9", "at least 10"):
        shuffled_inception_score(torch.zeros(9, 3))
    with refused("too few images, 0"):
        inception_score(torch.zeros(0, 3))


# Precision and recall


def brute_force(samples: Array, reference: Array, k: int = 3) -> tuple[float, float]:
    def within(points: Array, centers: Array) -> float:
        apart = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
        radii = np.sort(apart, axis=1)[:, k]  # the first is the distance to itself
        distances = np.linalg.norm(points[:, None] - centers[None], axis=-1)
        return float((distances <= radii).any(1).mean())

    return within(samples, reference), within(reference, samples)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_precision_and_recall_are_those_of_brute_force(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_metrics, "_ROWS", 11)  # in several parts
    generator = np.random.default_rng(5)
    samples, reference = generator.normal(size=(40, 6)) * 0.8 + 50 + shift, generator.normal(size=(30, 6)) + 50
    found = precision_recall(torch.from_numpy(samples), torch.from_numpy(reference))
    assert found == pytest.approx(brute_force(samples, reference), rel=1e-12)
    assert 0 < found.recall < 1 or shift > 0


@pytest.mark.parametrize(("grid", "width"), [(2, 3), (3, 4), (30, 2)])
def test_precision_and_recall_with_copies_and_ties_are_those_of_brute_force(grid: int, width: int) -> None:
    """On a grid images occur many times, in balls of radius 0, and others stand just at a ball's edge."""
    generator = np.random.default_rng(grid)
    samples, reference = (generator.integers(0, grid, (count, width)) * 1.0 for count in (90, 70))
    found = precision_recall(torch.from_numpy(samples / 7 + 100), torch.from_numpy(reference / 7 + 100))
    assert found == pytest.approx(brute_force(samples, reference), rel=1e-12)


def test_copies_are_in_a_ball_of_radius_0_and_what_is_near_is_not() -> None:
    copies = torch.rand(40, 64, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    assert precision_recall(copies[:40], copies) == precision_recall(copies, copies) == (1, 1)
    assert precision_recall(copies + 1e-4, copies) == (0, 0)


def test_precision_and_recall_of_identical_and_of_disjoint_sets() -> None:
    features = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    assert precision_recall(features, features) == (1, 1)
    assert precision_recall(features, features + 100) == (0, 0)


def test_precision_asks_for_the_samples_and_recall_for_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    spread, narrow = (torch.randn(60, 2, generator=generator) * width for width in (10, 0.1))
    found = precision_recall(narrow, spread)
    assert found.precision == 1
    assert found.recall < 0.2


def test_too_few_neighbors_are_refused() -> None:
    with refused("too few images, 3", "at least 4"):
        precision_recall(torch.rand(3, 2), torch.rand(9, 2))
    with refused("of dimensions 2 and 3"):
        precision_recall(torch.rand(9, 2), torch.rand(9, 3))


# KID


def mmd(x: Array, y: Array) -> float:
    """Unbiased, sum by sum."""

    def kernel(a: Array, b: Array) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    m, n = len(x), len(y)
    inside = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (m * (m - 1))
    others = sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (n * (n - 1))
    return inside + others - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


def test_kernel_distance_is_the_unbiased_mmd() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(9, 5)), generator.normal(size=(9, 5)) + 0.5
    found = kernel_distance(torch.from_numpy(x), torch.from_numpy(y))  # every subset is all of them
    assert found.mean == pytest.approx(mmd(x, y), rel=1e-10)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_kernel_distance_of_subsets_is_near_that_of_all_and_has_a_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_metrics, "KID_SUBSET_SIZE", 20)
    generator = np.random.default_rng(0)
    x, y = (torch.from_numpy(generator.normal(size=(60, 4)) + shift) for shift in (0, 1))
    found = kernel_distance(x, y)
    assert found.std > 0
    assert found.mean == pytest.approx(mmd(x.numpy(), y.numpy()), abs=found.std)
    assert kernel_distance(x, y) == found
    assert kernel_distance(x, y, seed=1) != found


def test_the_subsets_are_no_larger_than_the_sets() -> None:
    assert feature_metrics.kid_subset_size(5000, 4000) == 1000
    assert feature_metrics.kid_subset_size(5000, 40) == 40
    with refused("too few images, 1"):
        kernel_distance(torch.rand(1, 2), torch.rand(5, 2))


# Accuracy


def test_accuracy_counts_labels_among_the_largest() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 2, 1]])
    labels = torch.tensor([0, 0, 1, 2])
    assert [accuracy(logits, labels, k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]
