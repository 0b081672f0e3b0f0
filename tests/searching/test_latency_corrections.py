"""Latency budgets that are met by a clock which the table does not know: an overhead for each op, and another speed."""

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.cost.prices import Prices
from bough.cost.traffic import moving
from bough.latency import LatencyLine, required_points
from bough.latency.op_shapes import sized
from bough.planning import Options
from bough.searching import search_space
from tests.searching.problem import X, build, closeness
from tests.test_layers import Stack

PER_OP = 3e-6


def chip(graph):
    """A table that knows the multiplications of linear layers, at 1 ns each, and nothing else."""
    points = {}
    for key, at in required_points(graph, 1):
        op = sized(key, at)
        points.setdefault(key, {})[at] = 1e-9 * float(np.prod(op.shapes[1])) if op.name == "linear" else 0.0
    return bough.LatencyTable("a chip", "eager", 1, 0.0, 0.0, points)


def seconds(model, per_op=PER_OP, speed=0.8e-9):
    """The clock: modules cost the same each, and multiplications less than the table says."""
    modules = [m for m in model if isinstance(m, (nn.Linear, nn.ReLU))]
    return per_op * len(modules) + speed * sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear))


@pytest.mark.parametrize("method", ["local", "random"])
def test_a_budget_is_met_within_5_percent_after_one_measurement(method):
    """Of the dense model's 48 us, 21 are overhead: planned by the table alone, a candidate misses the bound of 60 %."""
    model = build(128)
    table, whole = chip(bough.trace(model, X[:1])), seconds(model)
    options = {"budget": bough.Budget(latency="60%"), "table": table, "importance": "l2", "objectives": {"closeness": "max"}}
    found = bough.search(model, X[:1], closeness, method=method, trials=12, measure=seconds, **options)
    limit = 0.6 * whole
    shares = [p.measured["latency"] / limit for p in found.points]
    assert [p.measured["latency"] for p in found.points] == pytest.approx([seconds(found.model(p)) for p in found.points])
    assert shares[0] > 1.1
    later = [s for s, p in zip(shares, found.points, strict=True) if "corrected" in p.origin or p.origin == method]
    assert all(0.95 <= s <= 1.0 for s in later)
    assert len(later) >= 8
    assert 0.95 * limit <= found.best.measured["latency"] <= limit


def test_an_absolute_budget_is_planned_for_by_the_dense_model_at_first():
    """A clock that takes three times what the table says: the first plan meets the bound, in its own unit of time."""
    model = build(128)
    graph = bough.trace(model, X[:1])

    def slow(model):
        return seconds(model, 0.0, 3e-9)

    found = bough.search(
        model, X[:1], closeness, method="random", trials=3, measure=slow, table=chip(graph), importance="l2",
        budget=bough.Budget(latency=0.5 * slow(model)), objectives={"closeness": "max"},
    )  # fmt: skip
    assert all(0.95 * 0.5 * slow(model) <= p.measured["latency"] <= 0.5 * slow(model) for p in found.points)


def test_overhead_that_exceeds_the_bound_is_an_error_that_says_how_close_it_came():
    model = build(32)
    table = chip(bough.trace(model, X[:1]))
    found = bough.search(
        model, X[:1], closeness, method="random", trials=6, measure=lambda m: seconds(m, 1.0), table=table, importance="l2",
        budget=bough.Budget(latency="60%"), objectives={"closeness": "max"},
    )  # fmt: skip
    with pytest.raises(bough.BoughError, match=r"the closest misses measured latency"):
        _ = found.best


def test_layers_that_are_left_out_take_their_overhead_with_them():
    """The corrected price of a candidate is the line's, with the ops of the cut model counted anew."""
    torch.manual_seed(0)
    graph = bough.trace(Stack().eval(), torch.randn(2, 5))
    prices, line = Prices(table=chip(graph)), LatencyLine(PER_OP, 0.8)
    space, _ = search_space(graph, bough.score(graph, "l2"), Options(), prices=prices, layers=["blocks.*"])
    corrected = space.corrected(line, {"latency": 1.0})
    rng = np.random.default_rng(0)
    for _ in range(6):
        choice = space.draw(rng)
        candidate = space.candidate(choice)
        plan = bough.plan(graph, bough.score(graph, "l2"), keep=dict(candidate.counts), drop=candidate.left_out)
        ops = len(list(moving(bough.trace(bough.cut(graph.model, plan), torch.randn(2, 5)))))
        assert space.pricing.ops(candidate.left_out) == ops
        expected = PER_OP * ops + 0.8 * space.cost(choice).latency
        assert corrected.cost(choice).latency == pytest.approx(expected)
    assert space.corrected(line, {"latency": 1e-9}) is None
