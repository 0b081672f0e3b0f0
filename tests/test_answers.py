"""What allocators and criteria of one's own return is checked in one place each, before a plan is made of it."""

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.allocation import Allocation, Allowed, Greedy, columns
from bough.errors import PlanError
from bough.planning.allocation import allocated
from bough.planning.constraints.equations import ties

X = torch.randn(4, 8)


class Tied(nn.Module):
    """The Python gives one branch the width of the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.last = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu()
        return self.last(self.c(a.view(len(x), b.shape[1]) * 2) + b.sum(1, keepdim=True))


torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
GRAPH = bough.trace(MODEL, X)
SCORES = bough.score(GRAPH, bough.importance.Magnitude())
HALF = bough.Budget(params="50%")
GOOD = bough.plan(GRAPH, SCORES, HALF, allocation="greedy")


def planned(answer, graph=GRAPH, **options):
    scores = bough.score(graph, bough.importance.Magnitude())
    return bough.plan(graph, scores, HALF, allocation=lambda form, columns, limits: answer, **options)


def test_a_good_answer_is_taken():
    counts = {n: np.int64(k) for n, (k, _) in GOOD.groups.items()}
    assert planned(Allocation(counts, np.bool_(True), "mine")).groups == GOOD.groups
    assert planned(Allocation(counts, True, "mine")).notes == ("mine",)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, r"the allocator <lambda> returned None: it must return bough\.allocation\.Allocation"),
        ({}, "must return bough"),
        ({"0": 4, "2": 4}, "must return bough"),
        (Allocation(None, True), "counts of type NoneType"),
        (Allocation({"0": 4, "2": 4}, None), "met=None"),
        (Allocation({"0": 4}, True), "no count for the group '2'"),
        (Allocation({"0": 4, "2": 4, "3": 4}, True), "'3', which is no group"),
        (Allocation({"0": 64, "2": 4}, True), "64 units of '0': a whole number from 1 to 32"),
        (Allocation({"0": -1, "2": 4}, True), "-1 units of '0'"),
        (Allocation({"0": 0, "2": 4}, True), "0 units of '0'"),
        (Allocation({"0": 4.0, "2": 4}, True), "4.0 units of '0'"),
        (Allocation({"0": True, "2": 4}, True), "True units of '0'"),
        (Allocation({"0": "4", "2": 4}, True), "'4' units of '0'"),
        (Allocation({"0": 32, "2": 16}, True), r"met=True, and params is 884 where at most 442 is asked"),
        (Allocation({"0": 4, "2": 4}, False), "met=False, and its counts meet all limits"),
    ],
)
def test_wrong_answers_are_told(answer, said):
    with pytest.raises(PlanError, match=f"the allocator <lambda> returned .*{said}" if "returned" not in said else said):
        planned(answer)


def test_only_allowed_widths_are_taken():
    with pytest.raises(PlanError, match=r"5 units of '0': it must be a row of Column\.counts"):
        planned(Allocation({"0": 5, "2": 4}, True), round_to=4)
    with pytest.raises(PlanError, match="4 units of '0', which has to keep its 32: it is in none"):
        planned(Allocation({"0": 4, "2": 4}, True), ignore="0")
    with pytest.raises(PlanError, match="4 units of '0': it must be a row"):
        planned(Allocation({"0": 4, "2": 4}, True), minimum={"0": 8})


def test_tied_groups_stay_in_proportion():
    graph = bough.trace(Tied().eval(), X)
    (pair,) = [c for c in ties(graph, {}).classes if len(c) > 1]
    sizes = {g.name: g.size for g in graph.groups}
    counts = dict.fromkeys(sizes, 2)
    assert planned(Allocation(counts, True), graph).groups[pair[0]] == (2, 12)
    with pytest.raises(PlanError, match=r"3 units of '[ab]', 2 units of '[ab]': it must be a row"):
        planned(Allocation({**counts, pair[0]: 3}, True), graph)


def test_bough_s_own_allocators_answer_well():
    tied = ties(GRAPH, {})
    by_name = {g.name: g for g in GRAPH.groups}
    made = columns([[by_name[n] for n in names] for names in tied.classes], SCORES, Allowed())
    from bough.cost import closed_form

    assert allocated(Greedy(), closed_form(GRAPH), made, {"params": 442.0}).met


class Mine:
    """A criterion that returns what it is made with."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, graph):
        return self.answer


def scores(**changed):
    return {**{g.name: np.ones(g.size) for g in GRAPH.groups}, **{k[1:]: v for k, v in changed.items()}}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "returned None: it must return"),
        ([1.0], r"returned \[1\.0\]: it must return"),
        ({}, "gives no scores for the group '0'"),
        ({"0": np.ones(32)}, "gives no scores for the group '2': it must score every group"),
        (scores(_3=np.ones(3)), "scores '3', which is no group"),
        (scores(_0=None), "gives None for '0'"),
        (scores(_0="high"), "gives 'high' for '0'"),
        (scores(_0=["high"] * 32), r"gives an array of <U4 for '0'"),
        (scores(_0=np.ones(32) * 1j), "gives an array of complex128 for '0'"),
        (scores(_0=[[1.0], [1.0, 2.0]]), "gives a list for '0'"),
        (scores(_0=np.full(32, np.inf)), "gives an infinite score for '0'"),
        (scores(_0=np.full(32, -np.inf)), "gives an infinite score for '0'"),
        (scores(_2=np.full(16, np.nan)), "gives NaN for '2'"),
        (scores(_0=np.ones(16)), r"gives an array \[16\] for '0': an array \[32\] of finite numbers"),
        (scores(_0=np.ones((32, 1))), r"gives an array \[32, 1\] for '0'"),
        (scores(_0=1.0), r"gives an array \[\] for '0'"),
    ],
)  # fmt: skip
def test_wrong_scores_are_told(answer, said):
    with pytest.raises(PlanError, match=f"the criterion Mine {said}"):
        bough.score(GRAPH, Mine(answer))
    with pytest.raises(PlanError, match=f"the criterion Mine {said}"):
        bough.prune(MODEL, X, HALF, importance=Mine(answer))


def test_tensors_and_lists_are_scores_too():
    found = bough.score(GRAPH, Mine({"0": torch.arange(32, dtype=torch.float32).requires_grad_(), "2": list(range(16))}))
    assert all(v.dtype == np.float64 for v in found.values())
    assert found["0"].tolist() == list(range(32))


def test_scores_that_plan_is_given_are_numbers():
    for wrong, said in (
        (np.full(32, np.inf), "holds an infinite score"), ("high", "holds no real numbers"), (None, "holds no real numbers"),
        (np.ones(32) * 1j, "holds no real numbers"),
    ):  # fmt: skip
        with pytest.raises(PlanError, match=rf"scores\['0'\] {said}"):
            bough.plan(GRAPH, {**SCORES, "0": wrong}, HALF)


def test_keep_of_tied_groups_is_told_where_it_contradicts():
    graph = bough.trace(Tied().eval(), X)
    found = bough.score(graph, bough.importance.Magnitude())
    one, other = next(c for c in ties(graph, {}).classes if len(c) > 1)
    with pytest.raises(
        PlanError, match=rf"0\.5 of '{one}' .* and 0\.667 of '{other}' .*computes its size from another .*test_answers"
    ):
        bough.plan(graph, found, keep={one: 6, other: 8})
    for keep in ({one: 6}, {other: 6}, {one: 6, other: 6}, {one: 0.5, other: 6}, {"[ab]": 0.5}):
        plan = bough.plan(graph, found, keep=keep)
        assert plan.groups[one] == plan.groups[other] == (6, 12)
    assert bough.plan(graph, found, keep={one: 5, other: 6}, round_to=6).groups[one] == (6, 12)  # one width for both


def test_keep_takes_shares_and_patterns():
    kept = bough.plan(GRAPH, SCORES, keep={"*": 0.5, "2": 0.25}).groups
    assert kept == {"0": (16, 32), "2": (4, 16)}
    assert bough.plan(GRAPH, SCORES, keep={"0": 1.0, "2": 1}).groups == {"0": (32, 32), "2": (1, 16)}
    for wrong in (0, 33, 1.5, 0.0, -0.5, float("nan"), True):
        with pytest.raises(PlanError, match=r"keep\['0'\]=.*whole number from 1 to 32, or a share"):
            bough.plan(GRAPH, SCORES, keep={"0": wrong})
