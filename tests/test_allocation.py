"""Laws that all allocators share, over one table; exact ones against brute force."""

import json
import sys
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.analysis import sensitivity
from bough.cli.demo import digits_net
from bough.cost import closed_form
from bough.errors import BudgetError, PlanError
from bough.planning.allocation import (
    ALLOCATORS,
    Global,
    Greedy,
    Isomorphic,
    Knapsack,
    LeastError,
    Milp,
    Sensitivity,
    Uniform,
    columns,
)  # fmt: skip
from bough.planning.allocation.along import form_of
from bough.planning.allocation.greedy import cumulated, total_loss
from bough.planning.allocation.knapsack import fit
from bough.planning.allocation.problem import Problem
from bough.planning.constraints.equations import ties
from tests.zoo.small import ZOO


class Branches(nn.Module):
    """Hidden widths that no op has in common."""

    def __init__(self):
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(3, n) for n in (5, 4, 6))
        self.b = nn.ModuleList(nn.Linear(n, 2) for n in (5, 4, 6))

    def forward(self, x):
        return sum(b(torch.relu(a(x))) for a, b in zip(self.a, self.b, strict=True))


def chain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4)


GRAPHS = {
    "chain": chain,
    "branches": lambda: (Branches(), torch.randn(2, 3)),
    **{n: ZOO[n] for n in ("residual", "channel_shuffle", "gated_attention")},
}


def traced(name):
    torch.manual_seed(0)
    model, inputs = GRAPHS[name]()
    return bough.trace(model.eval(), inputs)


@pytest.fixture(scope="module", params=list(GRAPHS))
def graph(request):
    return traced(request.param)


def curves(graph):
    """What Sensitivity needs: loss as the square of the share removed, heavier for later groups."""
    return {g.name: [(n, (i + 1) * (1 - n / g.size) ** 2) for n in {g.size, max(1, g.size // 2), 1}]
            for i, g in enumerate(graph.groups)}  # fmt: skip


TABLE = {
    **{name: lambda _, a=a: a for name, a in ALLOCATORS.items()},
    "global, scores as they are": lambda _: Global(relative=False),
    "milp, a small menu": lambda _: Milp(widths=3),
    "sensitivity": lambda graph: Sensitivity(curves(graph)),
}
BOUNDED = [{"macs": 0.6}, {"params": 0.7, "macs": 0.6}, {"peak_memory": 0.85}, {"size": 0.8, "peak_memory": 0.9, "macs": 0.7}]


def planned(graph, name, budget, **options):
    scores = bough.score(graph, bough.importance.Random(1))
    return bough.plan(graph, scores, budget, allocation=TABLE[name](graph), **options)


def instance(graph, seed):
    """The closed form and the columns of a graph, with random scores."""
    groups = {g.name: g for g in graph.groups}
    classes = [[groups[n] for n in names] for names in ties(graph, {}).classes]
    made = columns(classes, bough.score(graph, bough.importance.Random(seed)))
    return closed_form(graph), made


def limits_of(form, bounded):
    return {k: share * form.cost().to_dict()[k] for k, share in bounded.items()}


def steps_of(allocation, made):
    """Which step of each column an allocation is at; its counts must be those of a step."""
    found = []
    for c in made:
        (at,) = np.flatnonzero((c.counts == [allocation.counts[g.name] for g in c.groups]).all(axis=1))
        found.append(at)
    return np.array(found)


@pytest.mark.parametrize("name", list(TABLE))
@pytest.mark.parametrize("bounded", BOUNDED, ids=str)
def test_limits_are_met_nothing_can_be_put_back_and_again_is_the_same(graph, name, bounded):
    form, made = instance(graph, 3)
    allocator, limits = TABLE[name](graph), limits_of(form, bounded)
    if name == "knapsack" and "peak_memory" in bounded:
        with pytest.raises(PlanError, match="peak_memory is a maximum"):
            allocator(form, made, limits)
        return
    problem = Problem(form, made, limits)
    found = allocator(form, made, limits)
    steps = steps_of(found, made)
    assert found.met == problem.meets(problem.steps)
    if not found.met:
        assert (steps == problem.steps).all()
        return
    cost = form.cost(form.vector(found.counts)).to_dict()
    assert all(cost[k] <= limit for k, limit in limits.items())
    for i in np.flatnonzero(steps) if name != "uniform" else ():  # which keeps shares together instead
        back = steps.copy()
        back[i] -= 1
        assert not problem.meets(back)
    assert allocator(form, made, limits) == found


@pytest.mark.parametrize("name", list(TABLE))
def test_widths_minimum_and_rounding_are_observed(name):
    graph = traced("residual")
    plan = planned(graph, name, bough.Budget(macs="60%"), round_to=4, minimum=0.5)
    for kept, size in plan.groups.values():
        assert kept == size or (kept % 4 == 0 and kept >= size / 2)
    with pytest.raises(BudgetError, match="best reachable"):
        planned(graph, name, bough.Budget(macs="5%"), minimum=0.9)


@pytest.mark.parametrize("name", list(TABLE))
def test_of_a_wider_budget_more_is_used(graph, name):
    """And of that of the original, all."""
    spent = [planned(graph, name, bough.Budget(params=f"{share}%")).cost.params for share in (60, 75, 90, 100)]
    assert spent == sorted(spent)
    assert spent[-1] == graph.cost().params


def brute_force(problem, lost):
    """The least importance lost by any plan that meets the limits."""
    plans = np.array(list(product(*(range(n + 1) for n in problem.steps))))
    losses = sum(values[plans[:, i]] for i, values in enumerate(lost))
    return losses[problem.excess(plans) == 0].min()


def lost_by(allocation, made):
    return total_loss(cumulated(made, True), steps_of(allocation, made))


MIXED = [("macs",), ("peak_memory",), ("params", "macs"), ("size", "peak_memory", "macs")]
SMALL = {name: traced(name) for name in ("chain", "residual", "branches")}


@pytest.mark.parametrize("bounded", MIXED, ids=str)
@given(st.integers(0, 10**6), st.floats(0.55, 0.95), st.sampled_from(list(SMALL)))
@settings(max_examples=12)
def test_milp_is_the_optimum_and_greedy_is_not_below_it(bounded, seed, share, name):
    form, made = instance(SMALL[name], seed)
    limits = limits_of(form, dict.fromkeys(bounded, share))
    problem = Problem(form, made, limits)
    if problem.unreachable() is None:
        best = brute_force(problem, cumulated(made, True))
        assert lost_by(Milp(widths=13)(form, made, limits), made) == pytest.approx(best, abs=1e-9)
        assert lost_by(Greedy()(form, made, limits), made) >= best - 1e-9


@given(st.integers(0, 10**6), st.floats(0.3, 0.95), st.sampled_from(["params", "macs", "size"]))
@settings(max_examples=25)
def test_the_knapsack_is_the_optimum_where_no_op_has_two_widths(seed, share, cost):
    form, made = instance(SMALL["branches"], seed)
    limits = limits_of(form, {cost: share})
    best = brute_force(Problem(form, made, limits), cumulated(made, True))
    assert lost_by(Knapsack()(form, made, limits), made) == pytest.approx(best, abs=1e-9)


@given(st.integers(0, 10**6), st.floats(0.3, 0.95), st.sampled_from(["chain", "residual"]))
@settings(max_examples=15)
def test_the_knapsack_is_never_worse_than_greedy(seed, share, name):
    form, made = instance(SMALL[name], seed)
    limits = limits_of(form, {"macs": share, "params": 0.95})
    losses = [lost_by(a(form, made, limits), made) for a in (Knapsack(), Greedy())]
    assert losses[0] <= losses[1] + 1e-9


@given(st.integers(0, 10**6), st.floats(0.4, 0.95), st.floats(0.4, 0.95), st.sampled_from(list(SMALL)))
@settings(max_examples=25)
def test_weighing_several_limits_anew_never_loses_and_milp_is_never_worse(seed, first, second, name):
    form, made = instance(SMALL[name], seed)
    limits = limits_of(form, {"macs": first, "params": second})
    losses = [lost_by(a(form, made, limits), made) for a in (Milp(widths=4), Greedy(), Greedy(rounds=0))]
    assert losses[0] <= losses[1] + 1e-9
    assert losses[1] <= losses[2]


def error_of(plan, scores):
    """The errors of a plan's groups, added up: the score of the last unit of each that leaves."""
    return sum(np.sort(scores[n])[size - kept - 1] for n, (kept, size) in plan.groups.items() if kept < size)


def least(graph, scores, field, limit):
    """The least sum of errors of any plan within a limit, by trying them all."""
    groups = [g for g in graph.groups if g.size > 1]
    plans = [dict(zip([g.name for g in groups], c, strict=True)) for c in product(*(range(1, g.size + 1) for g in groups))]
    sizes = {g.name: g.size for g in groups}
    fits = [p for p in plans if graph.cost(p).to_dict()[field] <= limit]
    return min(sum(np.sort(scores[n])[sizes[n] - k - 1] for n, k in p.items() if k < sizes[n]) for p in fits)


@pytest.mark.parametrize(("name", "field"), [("chain", "macs"), ("branches", "params")])
@pytest.mark.parametrize("seed", range(3))
def test_errors_add_up_over_groups_and_not_within_them(name, field, seed):
    """Against all plans: by a solver the least sum of errors is found, greedily no less than that."""
    graph = SMALL[name]
    scores = {n: s**2 for n, s in bough.score(graph, bough.importance.Random(seed)).items()}
    budget = bough.Budget(**{field: "60%"})
    best = least(graph, scores, field, 0.6 * graph.cost().to_dict()[field])
    by_solver, by_steps = (bough.plan(graph, scores, budget, allocation=a) for a in (LeastError(Milp(widths=13)), "error"))
    assert error_of(by_solver, scores) == pytest.approx(best, abs=1e-12)
    assert error_of(by_steps, scores) >= best - 1e-12
    if name == "branches":
        exact = bough.plan(graph, scores, budget, allocation=LeastError(Knapsack()))
        assert error_of(exact, scores) == pytest.approx(best, abs=1e-12)


def stepwise(graph, scores, limit):
    """Counts by the least rise of error per MAC, one width after the other, priced by the cost of whole plans."""
    counts = {g.name: g.size for g in graph.groups}
    while graph.cost(counts).macs > limit:
        now, found = graph.cost(counts).macs, []
        for g in graph.groups:
            made = np.concatenate([[0.0], np.sort(scores[g.name])])[g.size - counts[g.name]]
            for kept in range(1, counts[g.name]):
                saved = now - graph.cost({**counts, g.name: kept}).macs
                found.append(((np.sort(scores[g.name])[g.size - kept - 1] - made) / max(saved, 1e-9), g.name, kept))
        _, name, kept = min(found)
        counts[name] = kept
    return counts


def test_error_goes_down_by_the_least_slope_as_a_search_over_whole_plans_does():
    torch.manual_seed(0)
    net = digits_net().eval().double()
    x = torch.randn(32, 1, 8, 8).double()
    graph = bough.trace(net, x)
    scores = bough.score(graph, bough.importance.OBS(sites=16, relative=True), [x])
    plan = bough.plan(graph, scores, bough.Budget(macs="50%"), allocation="error")
    other = bough.plan(graph, scores, keep=stepwise(graph, scores, 0.5 * graph.cost().macs))
    assert all(abs(kept - other.groups[n][0]) <= 2 for n, (kept, _) in plan.groups.items())
    assert error_of(plan, scores) <= 1.02 * error_of(other, scores)
    assert error_of(plan, scores) < error_of(bough.plan(graph, scores, bough.Budget(macs="50%"), allocation="greedy"), scores)


def test_units_that_add_no_error_go_first_and_scores_below_zero_are_no_errors():
    graph = traced("branches")
    scores = {g.name: np.arange(1.0, g.size + 1) for g in graph.groups} | {"a.1": np.full(4, 1.5)}
    plan = bough.plan(graph, scores, bough.Budget(macs="50%"), allocation="error")
    assert plan.groups["a.1"][0] == 1
    with pytest.raises(PlanError, match=r"scores\['a.1'\] are below 0, and LeastError takes errors"):
        bough.plan(graph, {**scores, "a.1": -scores["a.1"]}, bough.Budget(macs="50%"), allocation="error")


def test_prune_by_errors_asks_for_a_criterion_that_gives_errors():
    model, x = chain()
    with pytest.raises(PlanError, match="Magnitude does not say that its scores are errors"):
        bough.prune(model, x, bough.Budget(macs="50%"), importance="l2", allocation="error")
    with pytest.raises(PlanError, match="need data"):
        bough.prune(model, x, bough.Budget(macs="50%"), allocation="error")
    criterion = bough.importance.OBS(relative=True)
    done = bough.prune(model, x, bough.Budget(macs="50%"), importance=criterion, data=[x], allocation="error", refit=True)
    assert done.plan.cost.macs <= 0.5 * done.plan.original.macs


def test_a_solver_without_time_gives_the_greedy_plan_and_says_so():
    form, made = instance(SMALL["residual"], 0)
    limits = limits_of(form, {"macs": 0.6})
    found = Milp(seconds=0.0)(form, made, limits)
    assert found.counts == Greedy()(form, made, limits).counts
    assert "the solver" in found.note


def test_milp_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    form, made = instance(SMALL["chain"], 0)
    with pytest.raises(PlanError, match=r"needs scipy: pip install bough\[search\]"):
        Milp()(form, made, limits_of(form, {"macs": 0.5}))


@given(st.data())
@settings(max_examples=40)
def test_dynamic_programming_equals_brute_force(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    weights = [
        np.array([*sorted(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), reverse=True), 0]) for n in sizes
    ]
    lost = [np.array(data.draw(st.lists(st.integers(0, 9), min_size=n + 1, max_size=n + 1)), dtype=float) for n in sizes]
    capacity = data.draw(st.integers(0, 20))
    taken = fit(weights, lost, capacity)
    choices = list(product(*(range(n + 1) for n in sizes)))
    fits = [c for c in choices if sum(w[k] for w, k in zip(weights, c, strict=True)) <= capacity]
    assert tuple(taken) in fits
    assert total_loss(lost, taken) == min(total_loss(lost, np.array(c)) for c in fits)


def test_two_equal_peaks_are_no_plateau():
    """Two separate moments of the same peak: no single step lowers it, and steps of both together do."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 2))
    graph = bough.trace(net, torch.randn(1, 2))
    scores = bough.score(graph, bough.importance.Random())
    for allocation in ("greedy", "milp"):
        plan = bough.plan(graph, scores, bough.Budget(peak_memory="70%"), allocation=allocation)
        assert plan.groups["0"][0] == plan.groups["2"][0] == 5
        assert plan.groups["1"][0] == 2


def test_isomorphic_cuts_sets_of_equal_form_by_the_same_share():
    class Block(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.up, self.down = nn.Linear(8, n), nn.Linear(n, 8)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    net = nn.Sequential(*(Block(20) for _ in range(3)), nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))
    graph = bough.trace(net, torch.randn(1, 8))
    blocks = [g for g in graph.groups if g.name.endswith("up")]
    assert len({form_of(g) for g in blocks}) == 1
    assert all(form_of(g) not in {form_of(b) for b in blocks} for g in graph.groups if g not in blocks)
    scores = bough.score(graph, bough.importance.Random())
    scores["0.up"], scores["3"] = scores["0.up"] * 0.1, scores["3"] * 1e-6  # only ranks among equals matter
    plan = bough.plan(graph, scores, bough.Budget(params="60%"), allocation=Isomorphic(relative=False))
    share = sum(plan.groups[g.name][0] for g in blocks) / 60
    assert share == pytest.approx(plan.groups["3"][0] / 40, abs=0.06)
    assert plan.groups["0.up"][0] < plan.groups["1.up"][0]


def test_uniform_cuts_all_groups_alike():
    plan = planned(traced("branches"), "uniform", bough.Budget(macs="50%"))
    shares = [k / t for k, t in plan.groups.values()]
    assert max(shares) - min(shares) <= 1 / 4
    assert isinstance(ALLOCATORS["uniform"], Uniform)


def test_sensitivity_spares_what_the_curves_call_dear():
    graph = traced("branches")
    cheap, dear = {g.name: [(g.size, 0.0), (1, 0.1)] for g in graph.groups}, {}
    dear["a.1"] = [(4, 0.0), (3, 5.0), (1, 9.0)]
    scores = bough.score(graph, bough.importance.Random())
    for by in (Greedy(), Knapsack(), Milp()):
        plan = bough.plan(graph, scores, bough.Budget(macs="50%"), allocation=Sensitivity({**cheap, **dear}, by))
        assert plan.groups["a.1"] == (4, 4)
        whole = {**cheap, "a.0": [(5, 0.0)]}
        assert bough.plan(graph, scores, bough.Budget(macs="60%"), allocation=Sensitivity(whole, by)).groups["a.0"] == (5, 5)
    with pytest.raises(PlanError, match=r"curves\['a.1'\] must have points"):
        bough.plan(graph, scores, bough.Budget(macs="50%"), allocation=Sensitivity({**cheap, "a.1": [(2, 0.0)]}))


def test_measured_curves_are_plain_data_that_allocation_takes():
    graph = traced("gated_attention")
    scores = bough.score(graph, bough.importance.Random())
    params = graph.cost().params
    found = json.loads(json.dumps(sensitivity(graph, scores, lambda m: 1 - sum(p.numel() for p in m.parameters()) / params)))
    for g in graph.groups:
        assert found[g.name][0] == [g.size, 0.0]
        for kept, loss in found[g.name]:
            assert loss == pytest.approx(1 - bough.plan(graph, scores, keep={g.name: kept}).cost.params / params)
    plan = bough.plan(graph, scores, bough.Budget(params="60%"), allocation=Sensitivity(found))
    assert plan.cost.params <= 0.6 * params
    with pytest.raises(PlanError, match=r"widths=\[1.5\]: give shares"):
        sensitivity(graph, scores, lambda m: 0.0, widths=[1.5])


def test_unknown_names_and_scores():
    graph = traced("chain")
    scores = bough.score(graph, bough.importance.Random())
    with pytest.raises(PlanError, match="allocation='best' is unknown: use one of 'global'"):
        bough.plan(graph, scores, bough.Budget(macs="50%"), allocation="best")
    with pytest.raises(PlanError, match="round_to='tpu' is unknown"):
        bough.plan(graph, scores, bough.Budget(macs="50%"), round_to="tpu")
    with pytest.raises(PlanError, match=r"scores\['0'\] has shape \(3,\)"):
        bough.plan(graph, {**scores, "0": np.ones(3)}, bough.Budget(macs="50%"))
    with pytest.raises(PlanError, match="scores has no '0'"):
        bough.plan(graph, {"2": scores["2"]}, bough.Budget(macs="50%"))


@pytest.mark.parametrize("by", [Greedy(), Knapsack(), Milp()], ids=lambda a: type(a).__name__)
def test_relative_losses_are_of_shares_that_multiply(by):
    """Scales of groups do not matter; and of two alike groups none is worn down to nothing for the other's sake."""
    graph = traced("branches")
    plans = []
    for scale in (1.0, 1e6):
        scores = {g.name: (scale if i else 1.0) * np.ones(g.size) for i, g in enumerate(graph.groups)}
        plans.append(bough.plan(graph, scores, bough.Budget(params="50%"), allocation=by).groups)
    assert plans[0] == plans[1]
    assert all(0.25 <= kept / size <= 0.75 for kept, size in plans[0].values())
    (column,) = columns([graph.groups[:1]], {graph.groups[0].name: np.arange(1.0, 1 + graph.groups[0].size)})
    kept = 1 - np.cumsum(np.arange(1.0, graph.groups[0].size)) / sum(range(1, 1 + graph.groups[0].size))
    assert np.allclose(column.losses(True), -np.diff(np.log([1.0, *kept])))


class Stream(nn.Module):
    """A residual stream that each of some blocks reads and adds to."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.up = nn.ModuleList(nn.Linear(8, 16) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(16, 8) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.last(x)


@pytest.mark.parametrize("blocks", [1, 5])
def test_each_reader_of_a_group_loses_the_share_that_the_group_loses(blocks):
    graph = bough.trace(Stream(blocks), torch.randn(2, 4))
    stream = next(g for g in graph.groups if g.kind == "hidden")
    assert stream.readers == blocks + 1
    assert {g.readers for g in graph.groups if g is not stream} == {1}
    (column,) = columns([[stream]], {stream.name: np.ones(8)})
    assert np.allclose(column.losses(True), (blocks + 1) * np.log([8 / 7, 7 / 6, 6 / 5, 5 / 4, 4 / 3, 3 / 2, 2 / 1]))
    assert np.allclose(column.losses(False), 1.0)


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(3, 70), min_size=2, max_size=5), share=st.integers(20, 95), seed=st.integers(0, 5),
    field=st.sampled_from(["params", "macs", "peak_memory"]),
)  # fmt: skip
def test_uniform_is_one_share_up_to_a_unit(widths, share, seed, field):
    """There is a share of which every group keeps as much up to a unit, and one unit more of each is too much."""
    torch.manual_seed(seed)
    sizes = [4, *widths, 3]
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    graph = bough.trace(model, torch.randn(2, 4))
    scores = bough.score(graph, bough.importance.Random(seed))
    try:
        plan = bough.plan(graph, scores, bough.Budget(**{field: f"{share}%"}), allocation="uniform")
    except BudgetError:
        return
    kept = list(plan.groups.values())
    least, most = max((k - 1) / n for k, n in kept), min((k + 1) / n for k, n in kept)
    assert least <= most + 1e-12, kept
    more = {name: min(k + 1, n) for name, (k, n) in plan.groups.items()}
    assert graph.cost(more).to_dict()[field] > share / 100 * graph.cost().to_dict()[field]


def test_uniform_keeps_shares_together_where_put_back_would_not():
    """A wide layer overshoots the budget by a step; what is left over goes to nobody."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 3))
    graph = bough.trace(model, torch.randn(1, 3, 16, 16))
    scores = bough.score(graph, bough.importance.Magnitude())
    for share, field in product(range(20, 100, 5), ("macs", "size", "peak_memory")):
        plan = bough.plan(graph, scores, bough.Budget(**{field: f"{share}%"}), allocation="uniform")
        (a, m), (b, n) = plan.groups.values()
        assert abs(a / m - b / n) <= 1 / m, (share, field, a, b)
