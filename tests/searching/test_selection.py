"""The one-standard-error rule, against the textbook formula and a selection by hand."""

import numpy as np
import pytest
import torch

import bough
from bough.errors import SearchError
from bough.searching.goals import Goals
from bough.searching.points import Point
from bough.searching.selection import explained, selected
from tests.searching.problem import X, build, searched

HALF = bough.Budget(macs="50%")
MAX = Goals({"accuracy": "max"})


def point(number, accuracy, divergence, **more):
    return Point(number, "", {}, metrics={"accuracy": accuracy}, values=(accuracy,), divergence=divergence, **more)


def test_of_near_equal_points_the_least_divergence_is_chosen():
    """By hand: at 84 of 100 with a standard error of 2, points of 82 and more are near."""
    points = [point(0, 84.0, 0.9), point(1, 82.0, 0.2), point(2, 81.9, 0.1), point(3, 83.0, 0.5), point(4, 70.0, 0.0)]
    [found] = selected(points, MAX, {"accuracy": 2.0})
    assert (found.point.number, found.instead_of.number, found.near, found.errors) == (1, 0, 3, {"accuracy": 2.0})
    [found] = selected(points, MAX, {})
    assert (found.point.number, found.near) == (0, 1)
    measured = [
        point(i, a, d, errors={"accuracy": e}) for i, a, d, e in [(0, 84.0, 0.9, 1.0), (1, 82.5, 0.2, 9.0), (2, 83.0, 0.3, 9.0)]
    ]
    [found] = selected(measured, MAX, {})  # the standard error of the best counts
    assert (found.point.number, found.near) == (2, 2)
    [found] = selected([point(0, 84.0, None), point(1, 83.0, None)], MAX, {"accuracy": 2.0})
    assert (found.point.number, found.near) == (0, 2)


def test_a_front_gives_places_only_to_points_that_cost_no_more():
    goals = Goals({"accuracy": "max", "macs": "min"})
    points = [
        Point(i, "", {}, metrics={"accuracy": a}, values=(a, macs), divergence=d)
        for i, (a, macs, d) in enumerate(
            [(90.0, 10.0, 0.3), (89.5, 10.0, 0.1), (80.0, 5.0, 0.6), (79.5, 4.9, 0.7), (79.9, 6.0, 0.2)]
        )
    ]
    found = selected(points, goals, {"accuracy": 1.0})
    assert [(s.point.number, s.instead_of.number) for s in found] == [(1, 0), (2, 2), (3, 3)]
    assert [s.point.number for s in selected(points, goals, {})] == [0, 2, 3]
    [line] = explained(found, goals, ["accuracy"])
    assert line.startswith("one-standard-error rule: point 1 in place of 0 (accuracy 89.5 against 90 +- 1), ")


def signs(model):
    """By sample: whether the first output has the sign that the dense model's has."""
    with torch.no_grad():
        return (model(X)[:, 0] > 0) == (build()(X)[:, 0] > 0)


def share(model):
    return float(signs(model).float().mean())


def test_a_search_by_samples(tmp_path):
    data = list(X.split(16))
    options = {"budget": HALF, "data": data, "trials": 8, "method": "local", "storage": tmp_path / "study"}
    found = searched(evaluate=signs, **options)
    assert [p.metrics["signs"] for p in found.points] == pytest.approx([share(found.model(p)) for p in found.points])
    top = min(found.points, key=lambda p: (-p.values[0], p.divergence))
    error = np.std(signs(found.model(top)).double().numpy(), ddof=1) / np.sqrt(len(X))
    assert top.errors["signs"] == pytest.approx(error)
    near = [p for p in found.points if p.values[0] >= top.values[0] - error]
    assert len(near) > 1
    assert found.best == min(near, key=lambda p: p.divergence)
    assert "one-standard-error rule" in str(found)
    assert found.to_dict()["instead_of"] == [top.number]
    assert searched(evaluate=signs, **options).best == found.best  # read back from the study
    off = searched(evaluate=signs, noise={"signs": 0.0}, **options)
    assert off.best == top


def test_numbers_alone_have_no_standard_error():
    data = list(X.split(16))
    found = searched(budget=HALF, data=data, trials=6)
    assert found.best.values[0] == max(p.values[0] for p in found.points)
    assert "closeness counts as exact: its standard error is unknown" in str(found)
    given = searched(budget=HALF, data=data, trials=6, noise={"closeness": 1e3})
    assert given.best.divergence == min(p.divergence for p in given.points)


def test_wrong_noise():
    with pytest.raises(SearchError, match="noise names 'speed', which is no metric of evaluate"):
        searched(trials=3, noise={"speed": 0.1})
    with pytest.raises(SearchError, match="a standard error is wanted, at least 0"):
        searched(trials=3, noise={"closeness": -0.1})
