"""Power laws: equal to other implementations, recovered from noise within their intervals; hand-made frontiers."""

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from helpers import refused
from scipy import stats

from var.evaluation.scaling import laws as scaling
from var.evaluation.scaling.laws import AXES, QUANTITIES, Curve, Interval, Point, Quantity

X = tuple(np.geomspace(2e-5, 8e-3, 6))


def noisy(
    seed: int, x: Sequence[float] = X, alpha: float = -0.2, beta: float = 2.0, noise: float = 0.02
) -> list[float]:
    drawn = np.random.default_rng(seed).normal(0, noise, len(x))
    return [float((beta * place) ** alpha * math.exp(error)) for place, error in zip(x, drawn, strict=True)]


def covers(interval: Interval | None, value: float) -> bool:
    assert interval is not None
    return interval.low <= value <= interval.high


# --- one fit


@pytest.mark.parametrize(("alpha", "beta"), [(-0.23, 2.0), (-0.010, 650.0), (0.5, 1e-5), (-0.13, 2.2e-5)])
def test_an_exact_law_is_recovered(alpha: float, beta: float) -> None:
    y = noisy(0, alpha=alpha, beta=beta, noise=0)
    law = scaling.power_law(X, y)
    assert law.alpha == pytest.approx(alpha, rel=1e-9)
    assert law.beta == pytest.approx(beta, rel=1e-6)
    assert law.at(3.0) == pytest.approx((beta * 3.0) ** alpha, rel=1e-9)


@pytest.mark.parametrize("n", [3, 4, 6, 20])
def test_fit_and_errors_are_those_of_scipy(n: int) -> None:
    x = X[:n] if n <= len(X) else tuple(np.geomspace(1e-3, 1e2, n))
    y = noisy(n, x)
    law, errors = scaling.power_law(x, y), scaling.errors(scaling.power_law(x, y), x, y)
    theirs = stats.linregress(np.log(x), np.log(y))
    assert (law.alpha, law.constant) == pytest.approx((theirs.slope, theirs.intercept), rel=1e-10)
    assert law.beta == pytest.approx(math.exp(theirs.intercept / theirs.slope), rel=1e-9)
    reach = stats.t.ppf(0.975, n - 2) * theirs.stderr
    assert errors.alpha == pytest.approx((theirs.slope - reach, theirs.slope + reach), rel=1e-9)


def test_beta_interval_is_the_delta_method_with_the_whole_covariance() -> None:
    """Of intercept and slope, not of level and slope as in the code."""
    y = noisy(3)
    law, errors = scaling.power_law(X, y), scaling.errors(scaling.power_law(X, y), X, y)
    design = np.stack([np.ones(len(X)), np.log(X)], axis=1)
    residuals = np.log(y) - design @ [law.constant, law.alpha]
    covariance = np.linalg.inv(design.T @ design) * (residuals @ residuals) / (len(X) - 2)
    gradient = np.array([1 / law.alpha, -law.constant / law.alpha**2])
    reach = stats.t.ppf(0.975, len(X) - 2) * math.sqrt(gradient @ covariance @ gradient)
    middle = law.constant / law.alpha
    assert errors.beta == pytest.approx((math.exp(middle - reach), math.exp(middle + reach)), rel=1e-8)


def test_resampled_lines_are_lines_through_the_drawn_points() -> None:
    y = noisy(4)
    lines = scaling.resample(X, y, 50, seed=7)
    draws = scaling._drawn(np.log(X), 50, 7)
    assert draws.shape == (50, 6)
    for draw, alpha, constant in zip(draws, *lines, strict=True):
        theirs = stats.linregress(np.log(X)[draw], np.log(y)[draw])
        assert (alpha, constant) == pytest.approx((theirs.slope, theirs.intercept), rel=1e-8)


def test_the_bootstrap_follows_its_seed_and_never_draws_a_single_point() -> None:
    x, y = X[:3], noisy(5)[:3]  # one draw in nine is a single point three times
    one, again, other = (scaling.resample(x, y, 300, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.alpha, again.alpha)
    assert not np.array_equal(one.alpha, other.alpha)
    assert np.isfinite(one.alpha).all()


def test_intervals_cover_what_is_true_as_often_as_they_say() -> None:
    """200 series of 6 points with t; of 12 for the bootstrap, which is too narrow for fewer (docs/scaling.md)."""
    counts = {"alpha": 0, "beta": 0, "prediction": 0, "bootstrap": 0}
    many = tuple(np.geomspace(1e-3, 1e2, 12))
    for seed in range(200):
        y = noisy(seed)
        law = scaling.power_law(X, y)
        found = scaling.errors(law, X, y)
        counts["alpha"] += covers(found.alpha, -0.2)
        counts["beta"] += covers(found.beta, 2.0)
        new = noisy(seed + 1000, [0.05])[0]
        counts["prediction"] += covers(
            scaling.predict(law, X, y, scaling.resample(X, y, 100, seed), 0.05).interval, new
        )
        lines = scaling.resample(many, noisy(seed, many), 400, seed)
        counts["bootstrap"] += covers(scaling.percentiles(lines.alpha), -0.2)
    for name, count in counts.items():
        assert 0.88 <= count / 200 <= 0.99, (name, count)


def test_percentiles_are_the_middle_of_the_draws() -> None:
    assert scaling.percentiles(np.arange(1.0, 1001.0)) == (25, 975)


def test_a_prediction_is_scipys_and_widens_with_the_distance() -> None:
    y = noisy(6)
    law, lines = scaling.power_law(X, y), scaling.resample(X, y, 200, 0)
    u = np.log(X)
    theirs = stats.linregress(u, np.log(y))
    residual = np.log(y) - theirs.intercept - theirs.slope * u
    deviation = math.sqrt((residual**2).sum() / 4)
    for x in (0.02, 2.0):
        found = scaling.predict(law, X, y, lines, x)
        far = math.sqrt(1 + 1 / 6 + (math.log(x) - u.mean()) ** 2 / (6 * u.var()))
        reach = stats.t.ppf(0.975, 4) * deviation * far
        middle = theirs.intercept + theirs.slope * math.log(x)
        assert found.y == pytest.approx(math.exp(middle))
        assert found.interval == pytest.approx((math.exp(middle - reach), math.exp(middle + reach)))
        assert found.law.low < found.y < found.law.high
    assert scaling.predict(scaling.power_law(X[:2], y[:2]), X[:2], y[:2], lines, 1.0).interval is None


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_refused(wrong: float) -> None:
    with refused(f"L={wrong:g}", "positive"):
        scaling.power_law(X, [*noisy(0)[:5], wrong])
    with refused(f"X={wrong:g}", "positive"):
        scaling.power_law([*X[:5], wrong], noisy(0))


def test_too_few_points_are_refused() -> None:
    with refused("two different X"):
        scaling.power_law([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with refused("2 points", "at least 3"):
        scaling.errors(scaling.PowerLaw(-1, 0), X[:2], [2.0, 1.0])


# --- a floor


def test_a_floor_is_found_where_there_is_one() -> None:
    x = np.geomspace(1e-4, 1e2, 14)
    y = [3 + value for value in noisy(0, x, alpha=-0.3, noise=0)]
    y = [value * math.exp(error) for value, error in zip(y, np.random.default_rng(1).normal(0, 0.003, 14), strict=True)]
    found, why = scaling.fit_with_irreducible_loss(x, y, resamples=60, seed=0)
    assert found is not None, why
    assert covers(found.floor_interval, 3)
    assert covers(found.alpha_interval, -0.3)
    assert found.floor == pytest.approx(3, rel=0.02)
    assert found.beta == pytest.approx(2, rel=0.2)


def test_no_floor_is_told_where_there_is_none_or_too_few_points() -> None:
    x = np.geomspace(1e-4, 1e2, 14)
    for seed in range(3):
        found, why = scaling.fit_with_irreducible_loss(x, noisy(seed, x), resamples=60, seed=0)
        assert found is None
        assert "not fit so much better" in why
    found, why = scaling.fit_with_irreducible_loss(X[:5], noisy(0)[:5], resamples=60, seed=0)
    assert found is None
    assert "5 points are too few" in why


def test_an_unstable_floor_is_not_told() -> None:
    """Two high points bend the line; the resamples without them have no floor."""
    x = tuple(np.geomspace(1e-3, 1e3, 12))
    y = noisy(2, x, noise=0.002)
    y[0], y[1] = 1.2 * y[0], 1.1 * y[1]
    found, why = scaling.fit_with_irreducible_loss(x, y, resamples=60, seed=0)
    assert found is None
    assert "not stable" in why


# --- the frontier


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(str(i), x, y) for i, (x, y) in enumerate(pairs)]


def xy(found: Sequence[Point]) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in found]


def test_the_envelope_of_hand_made_points() -> None:
    given = points((4, 2.0), (1, 5.0), (2, 5.5), (2, 4.0), (2, 4.5), (3, 4.0), (8, 2.5), (16, 1.9), (16, 1.8))
    assert xy(scaling.envelope(given)) == [(1, 5.0), (2, 4.0), (4, 2.0), (16, 1.8)]


def test_the_envelope_by_its_definition() -> None:
    drawn = np.random.default_rng(0).uniform(1, 10, (200, 2)).round(1)
    given = points(*map(tuple, drawn))
    found = scaling.envelope(given)
    for point in given:
        beaten = any(other.x <= point.x and other.y < point.y for other in given)
        twin = any((other.x, other.y) == (point.x, point.y) for other in found)
        equal_before = any(other.x < point.x and other.y == point.y for other in given)
        assert twin == (not beaten and not equal_before)


def test_thinning_keeps_points_apart_and_always_the_largest() -> None:
    given = points(*((10 ** (i / 20), 100.0 - i) for i in range(41)))  # two factors of ten, twenty points in each
    places = [round(20 * math.log10(point.x)) for point in scaling.thin(given, a_decade=4)]
    assert places == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    uneven = points((1.0, 9), (1.1, 8), (1.9, 7), (3.5, 6), (3.6, 5), (100, 4))
    assert xy(scaling.thin(uneven, a_decade=4)) == [(1.0, 9), (1.9, 7), (3.6, 5), (100, 4)]
    assert xy(scaling.thin(given[:1])) == [(1, 100.0)]


# --- the whole


def curve(
    name: str, size: float, value: Callable[[float, float], float], images: Sequence[int] = range(100, 1100, 100)
) -> Curve:
    """A run whose compute is size * images; value takes size and compute."""
    compute = [size * number for number in images]
    values: dict[Quantity, Sequence[float]] = {
        quantity: [(i + 1) * value(size, spent) for spent in compute] for i, quantity in enumerate(QUANTITIES)
    }
    return Curve(name, size, 3 * size, list(images), compute, values)


def by_size(size: float, compute: float) -> float:
    """A run that has learned all that its size can."""
    return (2.0 * size) ** -0.23


def by_both(size: float, compute: float) -> float:
    """Too small a model saturates, too large a one has seen too little: the best size grows with compute."""
    return ((2.0 * size) ** -0.4 + (compute / size / 50) ** -0.4) / 2


SIZES = (0.01, 0.02, 0.04, 0.08, 0.16)


def test_known_laws_come_out_of_runs() -> None:
    curves = [curve(f"d{i}", size, by_size) for i, size in enumerate(SIZES)]
    findings = {(found.axis, found.quantity): found for found in scaling.analyze(curves, resamples=100, seed=0)}
    assert list(findings) == [(axis, quantity) for axis in AXES for quantity in QUANTITIES]
    fit = findings["parameters", "loss_last"].fit
    assert fit is not None
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((-0.23, 2.0))
    assert (fit.pearson, fit.r_squared) == pytest.approx((-1, 1))
    assert fit.without == pytest.approx({f"d{i}": -0.23 for i in range(5)})
    assert [prediction.x for prediction in fit.predictions] == pytest.approx([0.32, 1.6])
    assert [prediction.y for prediction in fit.predictions] == pytest.approx([0.64**-0.23, 3.2**-0.23])
    assert fit.back_test is not None
    assert (fit.back_test.run, fit.back_test.points) == ("d4", 4)
    assert fit.back_test.predicted.y == pytest.approx(fit.back_test.measured)
    other = findings["all_parameters", "loss_all"].fit
    assert other is not None
    assert other.law.at(0.03) == pytest.approx(2 * by_size(0.01, 0))


def test_points_against_size_are_taken_after_the_images_that_all_runs_share() -> None:
    long = range(100, 2100, 100)
    curves = [curve("a", 1, lambda n, c: c, range(150, 2000, 50)), curve("b", 2, lambda n, c: c, long)]
    curves.append(curve("c", 4, lambda n, c: c))
    assert scaling.shared_images(curves) == 1000
    found = scaling.measured(curves, "parameters", "loss_last", 1000)
    assert found == [Point("a", 1, 1000), Point("b", 2, 2000), Point("c", 4, 4000)]
    with refused("no validation after the same number of images", "validate_every"):
        scaling.shared_images([*curves, curve("d", 8, by_size, [77])])


def test_the_frontier_takes_the_best_run_at_each_compute() -> None:
    curves = [curve(f"d{i}", size, by_both) for i, size in enumerate(SIZES)]
    found = scaling.measured(curves, "compute", "loss_last", 1000)
    everything = [(c.compute[i], c.values["loss_last"][i]) for c in curves for i in range(10)]
    for point in found:
        assert point.y == min(y for x, y in everything if x <= point.x)
    assert len({point.run for point in found}) >= 3
    assert len(found) <= scaling.A_DECADE * math.log10(everything[-1][0] / everything[0][0]) + 1
    finding = scaling.find(curves, "compute", "loss_last", 1000, 100, 0)
    assert finding.fit is not None
    assert -0.4 < finding.fit.law.alpha < -0.1
    back = finding.fit.back_test
    assert back is not None
    assert (back.run, back.measured) == (found[-1].run, found[-1].y)


def test_ends_of_runs_among_the_points_of_a_frontier() -> None:
    curves = [curve("a", 1, by_both), curve("b", 2, by_both)]
    frontier = [Point("a", 300, 1), Point("a", 1000, 1), Point("b", 1000, 1), Point("b", 2000, 1)]
    assert scaling.ends_of_runs(curves, frontier) == 0.5


def test_the_back_test_is_blind_to_the_largest_run() -> None:
    curves = [curve(f"d{i}", size, by_size) for i, size in enumerate(SIZES[:4])]
    tests = []
    for factor in (1.0, 1.5):
        last = curve("large", 0.16, lambda n, c, factor=factor: factor * by_size(n, c))  # type: ignore[misc]
        fit = scaling.find([*curves, last], "parameters", "loss_last", 1000, 100, 0).fit
        assert fit is not None
        assert fit.back_test is not None
        tests.append(fit.back_test)
    right, wrong = tests
    assert wrong.predicted == right.predicted
    assert wrong.measured == pytest.approx(1.5 * right.measured)
    assert wrong.inside is False


def test_what_does_not_improve_has_a_frontier_of_one_point_and_no_fit() -> None:
    curves = [curve(f"d{i}", size, lambda n, c: 0.9) for i, size in enumerate(SIZES)]
    finding = scaling.find(curves, "compute", "error_all", 1000, 100, 0)
    assert (len(finding.points), finding.fit) == (1, None)
    flat = scaling.find(curves, "parameters", "error_all", 1000, 100, 0)
    text = json.dumps(flat.to_dict(), allow_nan=False)  # its correlation and beta are not defined
    assert json.loads(text)["fit"]["pearson"] is None


def test_a_finding_is_json() -> None:
    curves = [curve(f"d{i}", size, by_size) for i, size in enumerate(SIZES[:3])]
    values = json.loads(
        json.dumps(scaling.find(curves, "parameters", "loss_last", 1000, 100, 0).to_dict(), allow_nan=False)
    )
    assert values["points"][0] == {"run": "d0", "x": 0.01, "y": pytest.approx(by_size(0.01, 0))}
    assert values["fit"]["law"]["beta"] == pytest.approx(2.0)
    assert values["fit"]["back_test"]["predicted"]["interval"] is None  # two points are left
    assert values["fit"]["back_test"]["inside"] is None
    assert "3 points are too few" in values["fit"]["no_floor"]
