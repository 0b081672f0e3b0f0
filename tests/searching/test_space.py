"""The space of a search: its candidates are plans, its costs those of the cut models, its moves stay within the budget."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.cost.prices import Prices
from bough.errors import BudgetError, PlanError
from bough.planning import Options
from bough.searching import CutMaker, search_space
from bough.searching.mutation import exchanged, mutated
from bough.searching.pareto import pareto
from bough.searching.space import SearchSpace
from bough.searching.start_points import start_points
from tests.test_layers import Stack
from tests.zoo.small import ZOO

STACK = ["blocks.*", "extra"]


def made(model, inputs, budget=None, layers=(), **options):
    graph = bough.trace(model, inputs)
    scores = bough.score(graph, "l2")
    planning = Options(**options)
    prices = Prices(table=None)
    return (
        graph,
        CutMaker(graph, scores, planning),
        search_space(graph, scores, planning, budget=budget, prices=prices, layers=layers)[0],
    )


def stack():
    torch.manual_seed(0)
    return Stack().eval(), torch.randn(2, 5)


GRAPH, MAKER, SPACE = made(*stack(), layers=STACK)
HALF = SPACE.within({"macs": 0.5 * SPACE.pricing.original.macs, "peak_memory": 0.8 * SPACE.pricing.original.peak_memory})
SEEDS = st.integers(0, 10**6).map(np.random.default_rng)


@pytest.mark.parametrize("name", ["residual", "channel_shuffle", "encoder", "gated_attention", "stack"])
def test_costs_are_those_of_the_cut_model(name):
    """The oracle traces what was cut."""
    model, inputs = stack() if name == "stack" else ZOO[name]()
    graph, maker, space = made(model.eval(), inputs, layers=STACK if name == "stack" else ())
    rng = np.random.default_rng(0)
    choices = np.stack([space.draw(rng) for _ in range(4)] + [space.highest, space.whole])
    priced = space.price(choices, ("params", "macs", "size"))
    for i, choice in enumerate(choices):
        candidate = space.candidate(choice)
        small = maker(candidate.counts, candidate.left_out)
        cost = bough.trace(small, inputs).cost()
        assert [priced[n][i] for n in ("params", "macs", "size")] == [cost.params, cost.macs, cost.size]
        assert space.cost(choice) == maker.plan(candidate.counts, candidate.left_out).cost
    assert graph.cost() == space.cost(space.whole)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_moves_meet_the_budget(rng):
    drawn = HALF.draw(rng)
    assert ((drawn >= 0) & (drawn <= HALF.highest)).all()
    shrunk = HALF.shrunk(drawn)
    assert HALF.feasible(shrunk)[0]
    if HALF.feasible(drawn)[0]:
        assert (shrunk == drawn).all()
    grown = HALF.grown(shrunk, rng)
    assert HALF.feasible(grown)[0]
    assert (grown <= shrunk).all()
    for i in np.flatnonzero(grown[: len(HALF.columns)]):  # nothing more can be put back
        more = grown.copy()
        more[i] -= 1
        assert not HALF.feasible(more)[0]
    costs = {"macs": float(HALF.cost(grown).macs)}
    child = exchanged(HALF, grown, rng, costs)
    assert HALF.within(costs).feasible(child)[0]
    assert (mutated(HALF, grown, rng) != grown).any()


def test_feasible_is_what_the_costs_say():
    rng = np.random.default_rng(1)
    choices = np.stack([HALF.draw(rng) for _ in range(300)])
    costs = HALF.price(choices)
    expected = (costs["macs"] <= HALF.limits["macs"]) & (costs["peak_memory"] <= HALF.limits["peak_memory"])
    assert (HALF.feasible(choices) == expected).all()
    assert 0 < expected.sum() < len(expected)


def test_equal_candidates_have_one_key():
    """Widths within a layer that is left out do not tell candidates apart."""
    choice, other = SPACE.whole, SPACE.whole
    out = SPACE.names.index("without blocks.1")
    inner = next(i for i, n in enumerate(SPACE.names) if n.startswith("blocks.1."))
    other[inner] = 1
    assert SPACE.candidate(choice).key != SPACE.candidate(other).key
    choice[out] = other[out] = 1
    assert SPACE.candidate(choice).key == SPACE.candidate(other).key


def test_widths_are_those_that_plans_have():
    model, inputs = stack()
    _, _, space = made(model, inputs, round_to=4, minimum={"blocks.0.*": 0.5}, ignore=["head"])
    widths = {n: set(c.counts[:, 0]) for n, c in zip(space.names, space.columns, strict=True)}
    assert all(k % 4 == 0 for counts in widths.values() for k in counts)
    assert all(min(k) >= 12 for n, k in widths.items() if n.startswith("blocks.0."))
    with pytest.raises(PlanError, match="layers: 'nothing' is no layer that can be left out"):
        made(model, inputs, layers=["nothing"])
    with pytest.raises(PlanError, match=r"nothing to search: .*ignored"):
        made(model, inputs, ignore=["*"])


def test_what_the_model_contradicts_is_not_searched():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)).reshape(-1, 8))))

    graph = bough.trace(Fixed().eval(), torch.randn(3, 4))
    scores = bough.score(graph, "l2")
    space, frozen = search_space(graph, scores, Options())
    assert space.names == ["b"]
    assert "a" in frozen or "a" in {f.name for f in graph.frozen}


def test_budgets_that_no_candidate_meets():
    with pytest.raises(
        BudgetError, match=r"no candidate meets the budget. macs: at most 1 is asked, the smallest candidate has"
    ):
        made(*stack(), bough.Budget(macs=1), STACK)


def test_start_points_are_the_plans_of_the_allocators():
    model, inputs = stack()
    budget = bough.Budget(macs="50%")
    graph, maker, space = made(model, inputs, budget)
    found = dict(start_points(space, ["uniform", "global", "greedy"], [])[0])
    for name, choice in found.items():
        way = name.removeprefix("start: ")
        alone = bough.plan(graph, maker.scores, budget, allocation=way)
        assert {n: k for n, (k, _) in alone.groups.items()} == space.candidate(choice).counts
    assert found
    fronts, notes = start_points(space, ["uniform", "knapsack"], ["peak_memory"])
    assert 1 <= len(fronts) <= 4
    assert notes == [
        "no start point by 'knapsack': Knapsack takes costs that are sums, and peak_memory is a maximum: use Greedy or Milp"
    ]
    assert start_points(SPACE, ["uniform"], ["macs"])[0][0][0] == "start: dense"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_pareto(points):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [
        i for i, p in enumerate(points) if not any(dominates(q, p) for q in points) and p not in points[:i]
    ]  # fmt: skip
    assert pareto(points) == expected


def test_layers_are_left_out_where_widths_alone_are_not_enough():
    smallest = SPACE.highest.copy()
    smallest[len(SPACE.columns) :] = 0
    limit = SPACE.cost(smallest).macs - 1
    tight = SPACE.within({"macs": limit})
    shrunk = tight.shrunk(SPACE.whole)
    assert tight.cost(shrunk).macs <= limit
    assert tight.candidate(shrunk).left_out
    assert isinstance(tight, SearchSpace)
