"""Budgets are met and not undershot; bad requests give one clear error."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bough
from bough.errors import BudgetError, PlanError, TraceError
from tests.zoo.small import ZOO


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    model, inputs = ZOO["residual"]()
    return bough.trace(model.eval(), inputs)


@pytest.fixture(scope="module")
def scores(graph):
    return bough.score(graph, bough.importance.Magnitude())


BUDGETS = [
    {"macs": "50%"}, {"params": 700}, {"size": "3 KiB"}, {"peak_memory": "80%"},
    {"macs": "60%", "params": "70%", "size": "4 kB"},
]  # fmt: skip


@pytest.mark.parametrize("bounds", BUDGETS, ids=str)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("round_to", [1, 2])
def test_budget_is_met_and_no_step_can_be_put_back(graph, scores, bounds, allocation, round_to):
    budget = bough.Budget(**bounds)
    plan = bough.plan(graph, scores, budget, allocation=allocation, round_to=round_to)
    limits = budget.limits(graph.cost())
    cost = plan.cost.to_dict()
    assert all(cost[k] <= limit for k, limit in limits.items())
    counts = {n: k for n, (k, _) in plan.groups.items()}
    for name, (kept, total) in plan.groups.items():
        assert kept == total or kept % round_to == 0
        if kept < total:
            more = graph.cost({**counts, name: min(kept + round_to, total)}).to_dict()
            assert any(more[k] > limit for k, limit in limits.items())


def test_macs_agree_with_torchs_counter(graph):
    with FlopCounterMode(display=False) as counter:
        graph.model(*graph.args)
    assert counter.get_total_flops() == 2 * graph.cost().macs


def test_peak_memory_agrees_with_a_simulation_of_liveness(graph):
    """Walks the ops, one tensor at a time: made where born, dropped after its last reader."""
    size = {i: s.itemsize * torch.Size([a.size for a in s.axes]).numel() for i, s in enumerate(graph.storages)}
    peak = 0
    for step in range(len(graph.ops) + 1):
        alive = [i for i, s in enumerate(graph.storages) if max(s.born, 0) <= step <= s.dies]
        peak = max(peak, sum(size[i] for i in alive))
    assert graph.cost().peak_memory == peak


def test_params_and_size_agree_with_the_state_dict(graph):
    state = graph.model.state_dict()
    assert graph.cost().size == sum(t.numel() * t.element_size() for t in state.values())
    assert graph.cost().params == sum(p.numel() for p in graph.model.parameters())


def test_a_plan_is_data(graph, scores):
    plan = bough.plan(graph, scores, keep=0.5)
    again = bough.Plan.from_json(plan.to_json())
    assert again == plan
    assert all(isinstance(i, int) for dims in again.kept.values() for kept in dims.values() for i in kept)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "bough-plan", "version": 99}', '{"format": "bough-plan", "version": 1}']
)
def test_damaged_plans_are_refused(text):
    with pytest.raises(PlanError):
        bough.Plan.from_json(text)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [({"macs": "150%"}, "above 100%"), ({"macs": "3 ms"}, "unknown unit"), ({"size": "3 parsec"}, "unknown unit"),
     ({"params": "many"}, "no budget"), ({"params": 0}, "leaves nothing"), ({}, "bounds nothing")],
)  # fmt: skip
def test_budgets_that_can_not_be_read(bounds, words):
    with pytest.raises(BudgetError, match=words):
        bough.Budget(**bounds)


def test_an_unreachable_budget_names_what_is_frozen_and_the_best(graph, scores):
    with pytest.raises(BudgetError, match=r"best reachable is .*frozen: .*output of the model"):
        bough.plan(graph, scores, bough.Budget(params="1%"))


def test_no_prunable_group():
    graph = bough.trace(nn.Linear(3, 4), torch.randn(1, 3))
    with pytest.raises(PlanError, match="no group of Linear can be cut"):
        bough.plan(graph, {}, bough.Budget(params="50%"))


def test_ignore(graph, scores):
    model, inputs = graph.model, graph.args
    assert "stem" not in {g.name for g in bough.trace(model, inputs, ignore=["stem"]).groups}
    with pytest.raises(PlanError, match="'nothing' names no"):
        bough.trace(model, inputs, ignore=["nothing"])
    with pytest.raises(PlanError, match="'nothing' names no"):
        bough.plan(graph, scores, keep=0.5, ignore=["nothing"])
    assert bough.plan(graph, scores, keep=0.5, ignore=["a"]).groups["a"] == (12, 12)


def test_inputs_that_do_not_fit():
    with pytest.raises(TraceError, match=r"\[1, 7\]"):
        bough.trace(nn.Sequential(nn.Linear(3, 4)), torch.randn(1, 7))


def test_a_plan_for_another_model(graph, scores):
    plan = bough.plan(graph, scores, keep=0.5)
    other = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(PlanError, match="made for another model"):
        bough.cut(other, plan)


def test_stale_integers_freeze_with_module_and_line():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)).view(-1, 8))))

    model = Literal()
    graph = bough.trace(model, torch.randn(2, 3))
    ones = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, ones, keep=0.5)
    assert plan.groups == {"a": (8, 8), "b": (3, 6)}
    assert "test_planning.py" in plan.frozen["a"]
    with pytest.raises(bough.errors.ConflictError, match=r"test_planning\.py"):
        bough.plan(graph, ones, keep=0.5, on_conflict="raise")


def test_only_the_stale_axis_is_frozen_where_another_follows():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w = nn.Linear(5, 12), nn.Parameter(torch.randn(2, 3, 4))

        def forward(self, x):
            return torch.einsum("bhd,ohd->bo", self.a(x).view(len(x), 3, -1), self.w)

    graph = bough.trace(Literal(), torch.randn(2, 5))
    names = {g.size: g.name for g in graph.groups}
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep={names[3]: 2, names[4]: 3})
    assert plan.groups == {names[3]: (3, 3), names[4]: (3, 4)}
    assert list(plan.frozen) == [names[3]]
