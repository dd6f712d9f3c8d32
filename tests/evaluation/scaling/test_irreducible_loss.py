"""An irreducible loss: found where there is one, and only there."""

import math

import numpy as np
import pytest
from tiny_scaling import X, covers, noisy

from var.evaluation.scaling import irreducible_loss


def test_a_floor_is_found_where_there_is_one() -> None:
    x = np.geomspace(1e-4, 1e2, 14)
    y = [3 + value for value in noisy(0, x, alpha=-0.3, noise=0)]
    y = [value * math.exp(error) for value, error in zip(y, np.random.default_rng(1).normal(0, 0.003, 14), strict=True)]
    found, why = irreducible_loss.fit_with_irreducible_loss(x, y, resamples=60, seed=0)
    assert found is not None, why
    assert covers(found.floor_interval, 3)
    assert covers(found.alpha_interval, -0.3)
    assert found.floor == pytest.approx(3, rel=0.02)
    assert found.beta == pytest.approx(2, rel=0.2)


def test_no_floor_is_told_where_there_is_none_or_too_few_points() -> None:
    x = np.geomspace(1e-4, 1e2, 14)
    for seed in range(3):
        found, why = irreducible_loss.fit_with_irreducible_loss(x, noisy(seed, x), resamples=60, seed=0)
        assert found is None
        assert "not fit so much better" in why
    found, why = irreducible_loss.fit_with_irreducible_loss(X[:5], noisy(0)[:5], resamples=60, seed=0)
    assert found is None
    assert "5 points are too few" in why


def test_an_unstable_floor_is_not_told() -> None:
    """Two high points bend the line; the resamples without them have no floor."""
    x = tuple(np.geomspace(1e-3, 1e3, 12))
    y = noisy(2, x, noise=0.002)
    y[0], y[1] = 1.2 * y[0], 1.1 * y[1]
    found, why = irreducible_loss.fit_with_irreducible_loss(x, y, resamples=60, seed=0)
    assert found is None
    assert "not stable" in why
