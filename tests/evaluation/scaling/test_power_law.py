"""Power laws: equal to other implementations, and recovered from noise within their intervals."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from helpers import refused
from scipy import stats

from var.evaluation.scaling import power_law
from var.evaluation.scaling.power_law import Interval

X = tuple(np.geomspace(2e-5, 8e-3, 6))


def noisy(
    seed: int, x: Sequence[float] = X, alpha: float = -0.2, beta: float = 2.0, noise: float = 0.02
) -> list[float]:
    drawn = np.random.default_rng(seed).normal(0, noise, len(x))
    return [float((beta * place) ** alpha * math.exp(error)) for place, error in zip(x, drawn, strict=True)]


def covers(interval: Interval | None, value: float) -> bool:
    assert interval is not None
    return interval.low <= value <= interval.high


@pytest.mark.parametrize(("alpha", "beta"), [(-0.23, 2.0), (-0.010, 650.0), (0.5, 1e-5), (-0.13, 2.2e-5)])
def test_an_exact_law_is_recovered(alpha: float, beta: float) -> None:
    y = noisy(0, alpha=alpha, beta=beta, noise=0)
    law = power_law.fit_power_law(X, y)
    assert law.alpha == pytest.approx(alpha, rel=1e-9)
    assert law.beta == pytest.approx(beta, rel=1e-6)
    assert law.at(3.0) == pytest.approx((beta * 3.0) ** alpha, rel=1e-9)


@pytest.mark.parametrize("n", [3, 4, 6, 20])
def test_fit_and_errors_are_those_of_scipy(n: int) -> None:
    x = X[:n] if n <= len(X) else tuple(np.geomspace(1e-3, 1e2, n))
    y = noisy(n, x)
    law, errors = power_law.fit_power_law(x, y), power_law.errors(power_law.fit_power_law(x, y), x, y)
    theirs = stats.linregress(np.log(x), np.log(y))
    assert (law.alpha, law.constant) == pytest.approx((theirs.slope, theirs.intercept), rel=1e-10)
    assert law.beta == pytest.approx(math.exp(theirs.intercept / theirs.slope), rel=1e-9)
    reach = stats.t.ppf(0.975, n - 2) * theirs.stderr
    assert errors.alpha == pytest.approx((theirs.slope - reach, theirs.slope + reach), rel=1e-9)


def test_beta_interval_is_the_delta_method_with_the_whole_covariance() -> None:
    """Of intercept and slope, not of level and slope as in the code."""
    y = noisy(3)
    law, errors = power_law.fit_power_law(X, y), power_law.errors(power_law.fit_power_law(X, y), X, y)
    design = np.stack([np.ones(len(X)), np.log(X)], axis=1)
    residuals = np.log(y) - design @ [law.constant, law.alpha]
    covariance = np.linalg.inv(design.T @ design) * (residuals @ residuals) / (len(X) - 2)
    gradient = np.array([1 / law.alpha, -law.constant / law.alpha**2])
    reach = stats.t.ppf(0.975, len(X) - 2) * math.sqrt(gradient @ covariance @ gradient)
    middle = law.constant / law.alpha
    assert errors.beta == pytest.approx((math.exp(middle - reach), math.exp(middle + reach)), rel=1e-8)


def test_resampled_lines_are_lines_through_the_drawn_points() -> None:
    y = noisy(4)
    lines = power_law.resample(X, y, 50, seed=7)
    draws = power_law._draw_with_replacement(np.log(X), 50, 7)
    assert draws.shape == (50, 6)
    for draw, alpha, constant in zip(draws, *lines, strict=True):
        theirs = stats.linregress(np.log(X)[draw], np.log(y)[draw])
        assert (alpha, constant) == pytest.approx((theirs.slope, theirs.intercept), rel=1e-8)


def test_the_bootstrap_follows_its_seed_and_never_draws_a_single_point() -> None:
    x, y = X[:3], noisy(5)[:3]  # one draw in nine is a single point three times
    one, again, other = (power_law.resample(x, y, 300, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.alpha, again.alpha)
    assert not np.array_equal(one.alpha, other.alpha)
    assert np.isfinite(one.alpha).all()


def test_intervals_cover_what_is_true_as_often_as_they_say() -> None:
    """200 series of 6 points with t; of 12 for the bootstrap, which is too narrow for fewer (docs/scaling.md)."""
    counts = {"alpha": 0, "beta": 0, "prediction": 0, "bootstrap": 0}
    many = tuple(np.geomspace(1e-3, 1e2, 12))
    for seed in range(200):
        y = noisy(seed)
        law = power_law.fit_power_law(X, y)
        found = power_law.errors(law, X, y)
        counts["alpha"] += covers(found.alpha, -0.2)
        counts["beta"] += covers(found.beta, 2.0)
        new = noisy(seed + 1000, [0.05])[0]
        counts["prediction"] += covers(
            power_law.predict(law, X, y, power_law.resample(X, y, 100, seed), 0.05).interval, new
        )
        lines = power_law.resample(many, noisy(seed, many), 400, seed)
        counts["bootstrap"] += covers(power_law.percentiles(lines.alpha), -0.2)
    for name, count in counts.items():
        assert 0.88 <= count / 200 <= 0.99, (name, count)


def test_percentiles_are_the_middle_of_the_draws() -> None:
    assert power_law.percentiles(np.arange(1.0, 1001.0)) == (25, 975)


def test_a_prediction_is_scipys_and_widens_with_the_distance() -> None:
    y = noisy(6)
    law, lines = power_law.fit_power_law(X, y), power_law.resample(X, y, 200, 0)
    u = np.log(X)
    theirs = stats.linregress(u, np.log(y))
    residual = np.log(y) - theirs.intercept - theirs.slope * u
    deviation = math.sqrt((residual**2).sum() / 4)
    for x in (0.02, 2.0):
        found = power_law.predict(law, X, y, lines, x)
        far = math.sqrt(1 + 1 / 6 + (math.log(x) - u.mean()) ** 2 / (6 * u.var()))
        reach = stats.t.ppf(0.975, 4) * deviation * far
        middle = theirs.intercept + theirs.slope * math.log(x)
        assert found.y == pytest.approx(math.exp(middle))
        assert found.interval == pytest.approx((math.exp(middle - reach), math.exp(middle + reach)))
        assert found.law.low < found.y < found.law.high
    assert power_law.predict(power_law.fit_power_law(X[:2], y[:2]), X[:2], y[:2], lines, 1.0).interval is None


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_refused(wrong: float) -> None:
    with refused(f"L={wrong:g}", "positive"):
        power_law.fit_power_law(X, [*noisy(0)[:5], wrong])
    with refused(f"X={wrong:g}", "positive"):
        power_law.fit_power_law([*X[:5], wrong], noisy(0))


def test_too_few_points_are_refused() -> None:
    with refused("two different X"):
        power_law.fit_power_law([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with refused("at least 3 points, not 2", "at least 3"):
        power_law.errors(power_law.PowerLaw(-1, 0), X[:2], [2.0, 1.0])


# --- a floor


def test_a_floor_is_found_where_there_is_one() -> None:
    x = np.geomspace(1e-4, 1e2, 14)
    y = [3 + value for value in noisy(0, x, alpha=-0.3, noise=0)]
    y = [value * math.exp(error) for value, error in zip(y, np.random.default_rng(1).normal(0, 0.003, 14), strict=True)]
    found, why = power_law.fit_with_irreducible_loss(x, y, resamples=60, seed=0)
    assert found is not None, why
    assert covers(found.floor_interval, 3)
    assert covers(found.alpha_interval, -0.3)
    assert found.floor == pytest.approx(3, rel=0.02)
    assert found.beta == pytest.approx(2, rel=0.2)


def test_no_floor_is_told_where_there_is_none_or_too_few_points() -> None:
    x = np.geomspace(1e-4, 1e2, 14)
    for seed in range(3):
        found, why = power_law.fit_with_irreducible_loss(x, noisy(seed, x), resamples=60, seed=0)
        assert found is None
        assert "does not improve the fit enough" in why
    found, why = power_law.fit_with_irreducible_loss(X[:5], noisy(0)[:5], resamples=60, seed=0)
    assert found is None
    assert "5 points are too few" in why


def test_an_unstable_floor_is_not_told() -> None:
    """Two high points bend the line; the resamples without them have no floor."""
    x = tuple(np.geomspace(1e-3, 1e3, 12))
    y = noisy(2, x, noise=0.002)
    y[0], y[1] = 1.2 * y[0], 1.1 * y[1]
    found, why = power_law.fit_with_irreducible_loss(x, y, resamples=60, seed=0)
    assert found is None
    assert "not stable" in why
