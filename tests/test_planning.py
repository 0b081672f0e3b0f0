"""Budgets are met and not undershot; bad requests give one clear error."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bough
from bough.errors import BudgetError, ConflictError, PlanError, TraceError
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
        if kept < total and allocation != "uniform":  # which keeps the shares together instead
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
    with pytest.raises(PlanError, match=r"did you mean 'stem[.]weight' or"):
        bough.trace(model, inputs, ignore=["stem.weight_"])
    with pytest.raises(PlanError, match="'nothing' names no"):
        bough.plan(graph, scores, keep=0.5, ignore=["nothing"])
    assert bough.plan(graph, scores, keep=0.5, ignore=["a"]).groups["a"] == (12, 12)


def test_a_minimum_of_each_group_its_own(graph, scores):
    """The last name or pattern that fits a group counts; tied groups keep what each asks for."""
    names = [g.name for g in graph.groups]
    size = {g.name: g.size for g in graph.groups}
    smallest = bough.plan(graph, scores, keep=1e-9).groups
    asked = {"*": 1, names[0]: 0.5, names[-1]: size[names[-1]]}
    for plan in (bough.plan(graph, scores, keep=1e-9, minimum=asked), reached(graph, scores, asked)):
        for name, (kept, _) in plan.groups.items():
            assert kept >= (asked.get(name, 1) if asked.get(name, 1) >= 1 else asked[name] * size[name])
            assert kept >= smallest[name][0]
        assert plan.groups[names[-1]][0] == size[names[-1]]
    again = bough.plan(graph, scores, keep=1e-9, minimum={**asked, "*": 1, "[!x]*": 1})
    assert {n: kept for n, (kept, _) in again.groups.items()} == {n: kept for n, (kept, _) in smallest.items()}


def reached(graph, scores, minimum):
    """The plan of the smallest budget of parameters that can be met."""
    least = bough.plan(graph, scores, keep=1e-9, minimum=minimum).cost.params
    return bough.plan(graph, scores, bough.Budget(params=least), minimum=minimum)


def test_names_that_mean_nothing_are_told_with_those_near():
    graph = bough.trace(
        nn.Sequential(OrderedDict(first=nn.Linear(3, 4), second=nn.Linear(4, 5), last=nn.Linear(5, 2))), torch.ones(1, 3)
    )
    scores = bough.score(graph, bough.importance.Magnitude())
    budget = bough.Budget(params="60%")
    for ask in ({"minimum": {"first_": 2}}, {"ignore": ["first_"]}):
        with pytest.raises(PlanError, match=r"'first_'.*did you mean 'first'"):
            bough.plan(graph, scores, budget, **ask)
    with pytest.raises(PlanError, match="keep names 'first_', which is no group; did you mean 'first'"):
        bough.plan(graph, scores, keep={"first_": 2})
    with pytest.raises(PlanError, match=r"minimum names 'x\.\*', which is no group; there are: first, second"):
        bough.plan(graph, scores, budget, minimum={"x.*": 2})
    for wrong in (0, -1, {"first": 0}, {"first": float("nan")}):
        with pytest.raises(PlanError, match="must be positive"):
            bough.plan(graph, scores, budget, minimum=wrong)
    with pytest.raises(PlanError, match="keep"):
        bough.plan(graph, scores, keep={"first": 1.5})


def test_inputs_that_do_not_fit():
    with pytest.raises(TraceError, match=r"\[1, 7\]"):
        bough.trace(nn.Sequential(nn.Linear(3, 4)), torch.randn(1, 7))


class TakesOneDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, batch, scale=1.0):
        return self.b(self.a(batch["x"]).relu()) * scale


def test_a_forward_that_takes_one_dict_is_told_how_to_give_it():
    model, inputs = TakesOneDict(), {"x": torch.randn(1, 3)}
    with pytest.raises(TraceError, match=r"give a tuple with it: example_inputs=\(inputs,\)$"):
        bough.trace(model, inputs)
    assert [g.size for g in bough.trace(model, (inputs,)).groups] == [8]
    assert bough.prune(model, (inputs,), bough.Budget(params="60%")).report.equal
    for other in ({"batch": {"y": torch.randn(1, 3)}}, {"batch": inputs, "scale": "wide"}):  # forward does take these keywords
        with pytest.raises(TraceError, match=r"Check that model\(\*\*example_inputs\) works\.$"):
            bough.trace(model, other)


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


def test_a_plan_does_not_depend_on_the_mode_the_model_is_in_by_then():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 2)).eval()
    graph = bough.trace(model, torch.randn(2, 3))
    ones = bough.score(graph, bough.importance.Magnitude())
    before = bough.plan(graph, ones, keep=0.5)
    model.train()
    assert bough.plan(graph, ones, keep=0.5) == before
    assert all(m.training for m in model.modules())


def test_what_only_the_other_mode_reads_is_cut_along():
    class Auxiliary(nn.Module):
        """A head that is read in training only, as Inception has."""

        def __init__(self):
            super().__init__()
            self.body, self.extra, self.head = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x):
            x = torch.relu(self.body(x))
            return (self.head(x), self.extra(x)) if self.training else self.head(x)

    model, x = Auxiliary().eval(), torch.randn(2, 3)
    graph = bough.trace(model, x)
    assert graph.cost().macs == 2 * (3 * 8 + 8 * 2)
    small = bough.cut(model, bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5))
    assert small.extra.in_features == 4
    assert [tuple(y.shape) for y in small.train()(x)] == [(2, 2), (2, 2)]
    assert not model.training


def test_a_scale_is_not_folded_into_what_both_sides_come_from():
    """Queries and keys are halves of one batch: a factor on the queries alone would be one on the keys, too."""

    class Correlation(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.out = nn.Linear(5, 8), nn.Linear(6, 3)

        def forward(self, x):
            a, b = self.features(torch.cat([x, x * 2])).chunk(2)
            return self.out(a @ b.mT / a.shape[-1] ** 0.5)

    torch.manual_seed(0)
    model, x = Correlation().double().eval(), torch.randn(2, 6, 5).double()
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep=0.5)
    assert bough.verify(model, bough.cut(model, plan), plan, x).max_error < 1e-12
    assert "can not be kept" in plan.frozen["features/head_dim"]


def test_nan_is_no_score_and_no_budget():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = bough.trace(model, torch.randn(1, 4))
    for allocation in ("global", "uniform", "greedy", "knapsack", "milp"):
        with pytest.raises(PlanError, match="NaN"):
            bough.plan(graph, {"0": np.full(8, np.nan)}, bough.Budget(params="50%"), allocation=allocation)
    with pytest.raises(BudgetError, match="params"):
        bough.Budget(params=float("nan"))
    with pytest.raises(PlanError, match="NaN"):
        bough.sensitivity(graph, bough.score(graph, "l2"), lambda model: float("nan"))


def test_a_layer_norm_keeps_two_units():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    graph = bough.trace(model, torch.randn(2, 6))
    plan = bough.plan(graph, bough.score(graph, "l2"), bough.Budget(params=31))
    assert plan.groups["0"] == (2, 8)


def test_sensitivity_evaluates_models_of_its_own():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = bough.trace(model, torch.randn(1, 4))
    before = [p.clone() for p in model.parameters()]

    def ruin(small):
        with torch.no_grad():
            for p in small.parameters():
                p.zero_()
        return 0.0

    bough.sensitivity(graph, bough.score(graph, "l2"), ruin)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_model_that_runs_another_path_than_traced_is_told():
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.cached = nn.Linear(4, 8), nn.Linear(8, 3), False

        def forward(self, x):
            x = self.a(x)
            return self.b(x.exp() if self.cached else x.tanh())

    model = Switched()
    graph = bough.trace(model, torch.randn(2, 4))
    model.cached = True
    with pytest.raises(ConflictError, match="does not run as it was traced"):
        bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
