"""Hand-made frontiers, the points that laws are fitted to, and what fits say."""

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from helpers import refused

from var.evaluation.scaling import laws
from var.evaluation.scaling.laws import AXES, QUANTITIES, Curve, Point, Quantity

# --- the frontier


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(str(i), x, y) for i, (x, y) in enumerate(pairs)]


def xy(found: Sequence[Point]) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in found]


def test_the_envelope_of_hand_made_points() -> None:
    given = points((4, 2.0), (1, 5.0), (2, 5.5), (2, 4.0), (2, 4.5), (3, 4.0), (8, 2.5), (16, 1.9), (16, 1.8))
    assert xy(laws.envelope(given)) == [(1, 5.0), (2, 4.0), (4, 2.0), (16, 1.8)]


def test_the_envelope_by_its_definition() -> None:
    drawn = np.random.default_rng(0).uniform(1, 10, (200, 2)).round(1)
    given = points(*map(tuple, drawn))
    found = laws.envelope(given)
    for point in given:
        beaten = any(other.x <= point.x and other.y < point.y for other in given)
        twin = any((other.x, other.y) == (point.x, point.y) for other in found)
        equal_before = any(other.x < point.x and other.y == point.y for other in given)
        assert twin == (not beaten and not equal_before)


def test_thinning_keeps_points_apart_and_always_the_largest() -> None:
    given = points(*((10 ** (i / 20), 100.0 - i) for i in range(41)))  # two factors of ten, twenty points in each
    places = [round(20 * math.log10(point.x)) for point in laws.thin(given, a_decade=4)]
    assert places == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    uneven = points((1.0, 9), (1.1, 8), (1.9, 7), (3.5, 6), (3.6, 5), (100, 4))
    assert xy(laws.thin(uneven, a_decade=4)) == [(1.0, 9), (1.9, 7), (3.6, 5), (100, 4)]
    assert xy(laws.thin(given[:1])) == [(1, 100.0)]


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
    findings = {(found.axis, found.quantity): found for found in laws.analyze(curves, resamples=100, seed=0)}
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
    assert laws.shared_images(curves) == 1000
    found = laws.select_points(curves, "parameters", "loss_last", 1000)
    assert found == [Point("a", 1, 1000), Point("b", 2, 2000), Point("c", 4, 4000)]
    with refused("no validation after the same number of images", "validate_every"):
        laws.shared_images([*curves, curve("d", 8, by_size, [77])])


def test_the_frontier_takes_the_best_run_at_each_compute() -> None:
    curves = [curve(f"d{i}", size, by_both) for i, size in enumerate(SIZES)]
    found = laws.select_points(curves, "compute", "loss_last", 1000)
    everything = [(c.compute[i], c.values["loss_last"][i]) for c in curves for i in range(10)]
    for point in found:
        assert point.y == min(y for x, y in everything if x <= point.x)
    assert len({point.run for point in found}) >= 3
    assert len(found) <= laws.A_DECADE * math.log10(everything[-1][0] / everything[0][0]) + 1
    finding = laws.fit_quantity(curves, "compute", "loss_last", 1000, 100, 0)
    assert finding.fit is not None
    assert -0.4 < finding.fit.law.alpha < -0.1
    back = finding.fit.back_test
    assert back is not None
    assert (back.run, back.measured) == (found[-1].run, found[-1].y)


def test_ends_of_runs_among_the_points_of_a_frontier() -> None:
    curves = [curve("a", 1, by_both), curve("b", 2, by_both)]
    frontier = [Point("a", 300, 1), Point("a", 1000, 1), Point("b", 1000, 1), Point("b", 2000, 1)]
    assert laws.share_of_run_ends(curves, frontier) == 0.5


def test_the_back_test_is_blind_to_the_largest_run() -> None:
    curves = [curve(f"d{i}", size, by_size) for i, size in enumerate(SIZES[:4])]
    tests = []
    for factor in (1.0, 1.5):
        last = curve("large", 0.16, lambda n, c, factor=factor: factor * by_size(n, c))  # type: ignore[misc]
        fit = laws.fit_quantity([*curves, last], "parameters", "loss_last", 1000, 100, 0).fit
        assert fit is not None
        assert fit.back_test is not None
        tests.append(fit.back_test)
    right, wrong = tests
    assert wrong.predicted == right.predicted
    assert wrong.measured == pytest.approx(1.5 * right.measured)
    assert wrong.inside is False


def test_what_does_not_improve_has_a_frontier_of_one_point_and_no_fit() -> None:
    curves = [curve(f"d{i}", size, lambda n, c: 0.9) for i, size in enumerate(SIZES)]
    finding = laws.fit_quantity(curves, "compute", "error_all", 1000, 100, 0)
    assert (len(finding.points), finding.fit) == (1, None)
    flat = laws.fit_quantity(curves, "parameters", "error_all", 1000, 100, 0)
    text = json.dumps(flat.to_dict(), allow_nan=False)  # its correlation and beta are not defined
    assert json.loads(text)["fit"]["pearson"] is None


def test_a_finding_is_json() -> None:
    curves = [curve(f"d{i}", size, by_size) for i, size in enumerate(SIZES[:3])]
    values = json.loads(
        json.dumps(laws.fit_quantity(curves, "parameters", "loss_last", 1000, 100, 0).to_dict(), allow_nan=False)
    )
    assert values["points"][0] == {"run": "d0", "x": 0.01, "y": pytest.approx(by_size(0.01, 0))}
    assert values["fit"]["law"]["beta"] == pytest.approx(2.0)
    assert values["fit"]["back_test"]["predicted"]["interval"] is None  # two points are left
    assert values["fit"]["back_test"]["inside"] is None
    assert "3 points are too few" in values["fit"]["no_floor"]
