"""`search`: exhaustive oracles on small spaces, budgets that hold, nothing worse than one shot."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.calibration import as_data
from bough.defaults.discrepancy import discrepancy, outputs_on
from bough.errors import ArgumentError, SearchError
from bough.exporting import footprint
from bough.latency import required_points
from bough.planning import Options
from bough.searching import METHODS, search_space
from bough.searching.surrogate import Surrogate
from tests.searching.problem import X, build, closeness, searched, widths
from tests.test_layers import Stack

HALF = bough.Budget(macs="50%")


def counted(evaluate=closeness):
    models = []

    def function(model):
        models.append(model)
        return evaluate(model)

    return function, models


@pytest.mark.parametrize("method", METHODS)
def test_a_small_space_is_searched_whole(method):
    """Brute force: every pair of widths, cut by keep=."""
    model = build(4, 3)
    graph = bough.trace(model, X[:1])
    scores = bough.score(graph, "l2")
    pairs = list(itertools.product(range(1, 5), repeat=2))
    plans = [bough.plan(graph, scores, keep={"0": a, "2": b}) for a, b in pairs]
    evaluate, models = counted(lambda m: -float((m(X) - model(X)).square().mean().detach()))
    all_of_them = [(evaluate(bough.cut(model, p)), p.cost.macs) for p in plans]
    models.clear()
    found = bough.search(model, X[:1], evaluate, importance="l2", method=method, trials=100, population=4)
    assert sorted((p.counts["0"], p.counts["2"]) for p in found.points) == sorted(pairs)
    assert len(models) == len(pairs) + 1  # and the dense model, for the names of the metrics
    best = {x for x in all_of_them if not any(a >= x[0] and b <= x[1] and (a, b) != x for a, b in all_of_them)}
    assert {(p.metrics["function"], p.cost["macs"]) for p in found.front} == best


@pytest.mark.parametrize("method", ["nsga2", "local"])
def test_never_worse_than_one_shot_and_always_within_the_budget(method):
    budget = bough.Budget(macs="50%", peak_memory="80%")
    evaluate, models = counted()
    found = searched(evaluate=evaluate, budget=budget, method=method, trials=14, objectives={"function": "max"})
    graph = bough.trace(build(), X[:1])
    for small in models[1:]:
        cost = bough.trace(small, X[:1]).cost()
        assert cost.macs <= 0.5 * graph.cost().macs
        assert cost.peak_memory <= 0.8 * graph.cost().peak_memory
    assert len({widths(m) for m in models}) == len(models) == 15
    for way in ("uniform", "global", "greedy"):
        alone = bough.prune(build(), X[:1], budget, importance="l2", allocation=way)
        assert found.best.values[0] >= closeness(alone.model)


def test_points_are_what_the_stages_give():
    data = list(X.split(16))
    found = searched(trials=8, data=data, round_to=2)
    model = build()
    graph = bough.trace(model, X[:1])
    for point in found.points:
        plan = bough.plan(graph, bough.score(graph, "l2"), keep=dict(point.counts), round_to=2)
        small = bough.cut(model, plan)
        if plan.kept:
            bough.recovery.refit_(model, small, plan, data)
        assert point.metrics["closeness"] == closeness(small) == closeness(found.model(point))
        assert point.cost == plan.cost.to_dict()
        assert found.plan(point).kept == plan.kept
        assert point.values == (point.metrics["closeness"], point.cost["macs"])
    assert found.points[0].origin == "start: dense"


def test_seeds():
    one, same, other = (searched(trials=16, seed=s, start=()) for s in (0, 0, 1))
    assert [p.counts for p in one.points] == [p.counts for p in same.points]
    assert [p.counts for p in one.points] != [p.counts for p in other.points]


def test_bounds_on_metrics():
    def evaluate(model):
        return {"closeness": closeness(model), "first": model[0].out_features}

    found = searched(evaluate=evaluate, trials=25, objectives={"closeness": "max"}, at_most={"first": 4}, at_least={"first": 2})
    assert 2 <= found.best.metrics["first"] <= 4
    assert all(2 <= p.metrics["first"] <= 4 for p in found.points if p.good)
    inside = [p for p in found.points if 2 <= p.metrics["first"] <= 4]
    assert found.best.values[0] == max(p.values[0] for p in inside)
    none = searched(evaluate=evaluate, trials=5, at_least={"first": 99})
    assert none.front == ()
    with pytest.raises(SearchError, match="none of 5 candidates meets the bounds"):
        _ = none.best


def test_layers_in_or_out():
    torch.manual_seed(0)
    model, x = Stack().eval(), torch.randn(16, 5)

    def error(small):
        return float((small(x) - model(x)).square().mean().detach())

    found = bough.search(
        model, x[:2], error, objectives={"error": "min", "macs": "min"}, trials=12, layers=["blocks.*"], importance="l2",
        start=(),
    )  # fmt: skip
    assert {len(p.left_out) for p in found.points} > {0, 1}
    assert all(p.error is None for p in found.points)
    for p in found.points[-5:]:
        assert len(found.model(p).blocks) == 4 - len(p.left_out)
        assert bough.trace(found.model(p), x[:2]).cost().macs == p.cost["macs"]


def screen_free(model):
    return float(model[0].weight.numel())


def test_a_screen_halves_mutations_over_the_data():
    shares = []

    def screen(model, share):
        shares.append(share)
        return float(model[0].weight.numel())

    found = bough.search(
        build(32),
        X[:1],
        screen_free,
        objectives={"screen_free": "max"},
        method="local",
        screen=screen,
        trials=6,
        importance="l2",
    )
    rounds = [(share, len(list(same))) for share, same in itertools.groupby(shares)]
    begins = [i for i, (share, _) in enumerate(rounds) if share == 0.125]
    assert begins[:2] == [0, 3]
    for i in begins[:4]:
        assert 4 < rounds[i][1] <= 8
        assert rounds[i + 1 : i + 3] == [(0.25, rounds[i][1] // 2), (0.5, rounds[i][1] // 4)]
    assert [p.origin for p in found.points] == ["start: dense", *["local"] * 5]


def test_models_may_be_made_in_another_way():
    """A supernet selects a subnet: here the widths are masked in one and the same module."""
    model, asked = build(), []
    graph = bough.trace(model, X[:1])
    scores = bough.score(graph, "l2")

    def make(counts, left_out):
        asked.append(dict(counts))
        return bough.mask(model, bough.plan(graph, scores, keep=counts))

    found, cut = searched(make=make, trials=8), searched(trials=8)
    assert [dict(p.counts) for p in found.points] == asked
    assert [p.metrics["closeness"] for p in found.points] == pytest.approx([p.metrics["closeness"] for p in cut.points])
    with pytest.raises(SearchError, match=r"made by make=\.\.\., not by plans"):
        found.plan(found.best)


def test_the_subnets_of_a_supernet():
    """They are evaluated as they are, in its order of layers; an extracted one gives what was found."""
    torch.manual_seed(0)
    net = bough.supernet(Stack().eval(), torch.randn(2, 5), depth=["blocks.*"], round_to=2, minimum=0.25)
    x = torch.randn(16, 5)

    def error(small):
        return float((small(x) - net.model(x)).square().mean().detach())

    found = bough.search(net, None, error, objectives={"error": "min", "macs": "min"}, trials=12, start=())
    assert all(p.error is None for p in found.points)
    order = net.space.depths[0]
    assert {len(p.left_out) for p in found.points} > {0}
    for p in found.points:
        assert set(p.left_out) == set(order[: len(p.left_out)])
        small = net.extract(net.subnet(p.counts, drop=p.left_out)).model
        assert error(small) == pytest.approx(p.metrics["error"], abs=1e-9)
        assert bough.trace(small, x[:2]).cost().macs == p.cost["macs"]
    best = bough.search(net, None, error, budget=bough.Budget(macs="40%"), objectives={"error": "min"}, trials=8).best
    assert best.cost["macs"] <= 0.4 * net.graph.cost().macs
    assert found.plan(found.best).cost.macs == found.best.cost["macs"]
    with pytest.raises(SearchError, match=r"leave out round_to; give them to bough\.supernet"):
        bough.search(net, None, error, trials=3, round_to=4)


def test_failures_are_kept_and_do_not_stop_the_search():
    def fails(model):
        if model[0].out_features == 4:
            raise ZeroDivisionError("no luck")
        return {"closeness": closeness(model)}

    found = searched(evaluate=fails, trials=30)
    failed = [p for p in found.points if p.error]
    assert len(found.points) == 30
    assert failed
    assert {p.error for p in failed} == {"ZeroDivisionError: no luck"}
    assert all(p.counts["0"] == 4 for p in failed)
    assert "failed, such as by: ZeroDivisionError" in str(found)

    def never(model):
        if model[0].out_features < 8 or model[2].out_features < 8:
            raise ZeroDivisionError("no luck")
        return closeness(model)

    with pytest.raises(SearchError, match="all of 10 candidates failed, the first one by: ZeroDivisionError"):
        searched(evaluate=never, trials=30, budget=HALF)


def test_results_are_written_and_drawn(tmp_path):
    found = searched(trials=6, storage=tmp_path / "study")
    assert (tmp_path / "study" / "front.json").exists()
    found.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert found.to_dict()["front"] == [p.number for p in found.front]
    with pytest.raises(SearchError, match="against 'weight': known are"):
        found.plot(tmp_path / "other.png", "weight")


def test_costs_as_objectives():
    points = {}
    for key, at in required_points(bough.trace(build(), X[:1])):
        points.setdefault(key, {})[at] = 1e-6 * sum(at)
    table = bough.LatencyTable("a chip", "eager", 8, 1e-6, 1e-9, points)
    goals = {"closeness": "max", "latency": "min", "energy": "min", "peak_memory": "min"}
    found = searched(objectives=goals, table=table, trials=6)
    assert all(p.values[1:] == tuple(p.cost[n] for n in ("latency", "energy", "peak_memory")) for p in found.points)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "grid"}, "method='grid' is unknown: use one of nsga2, tpe, local, random"),
        ({"trials": 0}, "trials=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"screen": lambda m, s: 0.0}, "screen= is for method='local', not for method='nsga2'"),
        ({"objectives": {"speed": "max"}}, "objectives names 'speed', which is neither a metric of evaluate nor a cost"),
        ({"objectives": {"latency": "min"}}, "objectives names 'latency', which needs table="),
        ({"objectives": {"macs": "max"}}, "a cost can only be minimized"),
        ({"objectives": {"closeness": "best"}}, "write 'max' or 'min'"),
        ({"at_most": {"macs": 3.0}}, "at_most names 'macs', which is no metric .*: bound costs by the budget"),
        ({"measure": closeness}, "measure= is for a budget of latency"),
        ({"uniform": True}, "search has no option 'uniform': those of planning are round_to"),
        ({"refit": True}, r"search\(refit=True\) and .* need data"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(SearchError, match=said):
        searched(**{"trials": 3, **options})


def test_evaluate_must_give_numbers():
    with pytest.raises(bough.BoughError, match="finite numbers are wanted"):
        searched(evaluate=lambda model: float("nan"), trials=3)
    with pytest.raises(ArgumentError):
        bough.search(nn.Linear(3, 3), X[:1], "accuracy")


def chip(graph=None, **options):
    points = {}
    for key, at in required_points(graph or bough.trace(build(), X[:1])):
        points.setdefault(key, {})[at] = 1e-6 * sum(at)
    return bough.LatencyTable("a chip", "eager", 1, 1e-6, 1e-9, points, **options)


@pytest.mark.parametrize("method", ["local", "random"])
def test_latency_is_met_as_measured(method):
    """The machine takes 30 % longer than the table says for all that is cut."""
    graph, table = bough.trace(build(), X[:1]), chip()
    whole = float(table.seconds(graph)[0])

    def measure(model):
        names = [g.name for g in graph.groups]
        counts = dict(zip(names, widths(model)[: len(names)], strict=True))
        seconds = float(table.seconds(graph, counts)[0])
        return seconds if seconds == whole else min(1.3 * seconds, whole)

    options = {
        "budget": bough.Budget(latency="60%"),
        "table": table,
        "trials": 30,
        "method": method,
        "objectives": {"closeness": "max"},
    }
    found = searched(measure=measure, **options)
    limit = 0.6 * whole
    assert all(p.measured["latency"] == pytest.approx(measure(found.model(p))) for p in found.points)
    assert found.points[0].measured["latency"] > limit  # the first start point is planned by the table alone
    assert found.best.measured["latency"] <= limit
    assert all(p.measured["latency"] <= limit for p in found.front)
    assert any(p.origin.startswith("start") and p.origin.endswith("corrected") for p in found.points)
    best = max(p.metrics["closeness"] for p in found.points if p.measured["latency"] <= limit)
    assert found.best.metrics["closeness"] == best
    assert "measured latency" in str(found)
    assert not any(p.measured for p in searched(**options).points)


def test_arena_and_constants_are_those_of_each_candidates_c_export():
    net = build(depth=2)

    def export_bytes(model):
        found = footprint(model, ((X[:1],), {}))
        return {"peak_memory": found.arena, "flash": found.flash}

    budget = bough.Budget(peak_memory="100%", flash="85%", precision="int8")
    options = {"budget": budget, "importance": "l2", "trials": 3, "start": ["greedy"], "method": "random"}
    found = bough.search(net, X[:1], lambda model: float(model[0].out_features), **options)
    assert found.best.measured == export_bytes(found.model(found.best))
    assert found.best.measured["flash"] <= 0.85 * export_bytes(net)["flash"]
    assert "measured flash" in str(found)


def test_divergence_decides_between_equal_metrics():
    data = list(X.split(16))
    found = searched(evaluate=lambda model: 1.0, budget=HALF, data=data, trials=8, method="local")
    known = [p.divergence for p in found.points]
    assert None not in known
    assert found.best.divergence == min(known)
    graph, point = bough.trace(build(), X[:1]), found.best
    expected, actual = (outputs_on(graph, m, as_data(data)) for m in (build(), found.model(point)))
    assert point.divergence == pytest.approx(discrepancy(expected, actual))


@pytest.mark.parametrize("seed", range(5))
def test_the_surrogate_learns_what_groups_weigh(seed):
    rng = np.random.default_rng(seed)
    graph = bough.trace(build(), X[:1])
    space, _ = search_space(graph, bough.score(graph, "l2"), Options(), budget=HALF)
    truth = rng.uniform(0.3, 3.0, len(space.columns))
    choices = [space.draw(rng) for _ in range(60)]
    learned = Surrogate.of(space, choices, [float(truth @ space.losses(c)) for c in choices])
    assert learned.weights == pytest.approx(truth, rel=0.05)
    assert Surrogate.of(space, [], []).weights == pytest.approx(np.ones(len(truth)))
    least = learned.least(space.limits)
    assert space.feasible(least)[0]
    every = [c for c in space.every() if space.feasible(c)[0]]
    best = min(map(learned.loss, every))
    assert best <= learned.loss(least) <= 1.5 * best + 1e-9
    assert learned.least({"macs": 1.0}) is None
