"""A budget is refused only if no counts meet it, and within a budget no step can be given back: held against all counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.errors import BudgetError, ConflictError

INPUTS, OUTPUTS = 5, 3
MAXIMAL = ["global", "greedy", "isomorphic", "knapsack"]


class Chain(nn.Module):
    """Two hidden layers, of which the first works at all widths but those in `broken`."""

    def __init__(self, first: int, second: int, broken: frozenset[int]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(INPUTS, first), nn.Linear(first, second), nn.Linear(second, OUTPUTS)
        self.works = lambda width: int(width) not in broken

    def forward(self, x):
        y = self.a(x).relu()
        return self.c(self.b(y if self.works(y.shape[-1]) else y.flatten()).relu())


def costs(a: int, b: int) -> dict[str, int]:
    return {
        "params": (INPUTS + 1) * a + (a + 1) * b + (b + 1) * OUTPUTS,
        "macs": 2 * (INPUTS * a + a * b + b * OUTPUTS),
    }


def steps(size: int, broken: frozenset[int], round_to: int, least: int) -> list[int]:
    return [n for n in range(1, size + 1) if n == size or (n % round_to == 0 and n >= least and n not in broken)]


@pytest.mark.parametrize("allocation", MAXIMAL)
@settings(max_examples=10, deadline=None)
@given(
    sizes=st.tuples(st.integers(4, 14), st.integers(4, 14)), start=st.integers(1, 9), length=st.integers(0, 3),
    share=st.floats(0.05, 0.9), both=st.booleans(), round_to=st.sampled_from([1, 1, 2, 3]), least=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_refused_only_if_nothing_reaches_it_and_maximal(allocation, sizes, start, length, share, both, round_to, least, seed):
    first, second = sizes
    broken = frozenset(range(start, start + length)) - {first}
    torch.manual_seed(seed)
    model, x = Chain(first, second, broken).eval(), torch.randn(2, INPUTS)
    whole = costs(first, second)
    limits = {"params": share * whole["params"], **({"macs": 0.9 * share * whole["macs"]} if both else {})}
    widths = steps(first, broken, round_to, least), steps(second, frozenset(), round_to, least)

    def meets(a: int, b: int) -> bool:
        return all(costs(a, b)[name] <= limit * (1 + 1e-12) for name, limit in limits.items())

    feasible = any(meets(a, b) for a in widths[0] for b in widths[1])
    graph = bough.trace(model, x)
    scores = bough.score(graph, bough.importance.Magnitude())
    try:
        budget = bough.Budget(**limits)
        plan = bough.plan(graph, scores, budget, allocation=allocation, round_to=round_to, minimum=least)
    except BudgetError:
        assert not feasible
        return
    small = bough.cut(model, plan)
    small(x)
    a, b = small.a.out_features, small.b.out_features
    assert a in widths[0]
    assert b in widths[1]
    assert meets(a, b)
    more = [(n, b) for n in widths[0] if n > a][:1] + [(a, n) for n in widths[1] if n > b][:1]
    assert not any(meets(*counts) for counts in more)


class Squeezed(nn.Module):
    """Attention at batch 1 whose scores are squeezed, which works with two heads and more."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(6, 96), nn.Linear(32, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).view(1, x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-1, -2)).softmax(-1).squeeze()
        return self.out(torch.einsum("hnm,hmd->nhd", scores, v[0]).reshape(1, x.shape[1], -1))


@pytest.mark.parametrize("allocation", [*MAXIMAL, "uniform"])
def test_a_conflict_at_one_head_leaves_the_other_counts_of_heads(allocation):
    torch.manual_seed(0)
    model, x = Squeezed().eval(), torch.randn(1, 5, 6)
    graph = bough.trace(model, x)
    ranked = {**bough.score(graph, bough.importance.Magnitude()), "qkv/head": [1e-3, 1e-3, 1e-3, 1.0]}
    plan = bough.plan(graph, ranked, bough.Budget(params="12%"), allocation=allocation)
    assert plan.groups["qkv/head"][0] in (2, 3)
    assert not plan.frozen.get("qkv/head")
    assert bough.verify(model, bough.cut(model, plan), plan, x).equal
    kept = bough.plan(graph, ranked, keep={"qkv/head": 1})
    assert kept.groups["qkv/head"] == (2, 4)
    assert any("qkv/head can not have a count of 1" in note for note in kept.notes)
    with pytest.raises(ConflictError):
        bough.plan(graph, ranked, keep={"qkv/head": 1}, on_conflict="raise")


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_default_comes_close_to_the_budget_where_a_stream_has_few_widths(share):
    torch.manual_seed(0)
    inner = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)  # whose hidden size goes by heads

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.inner, self.leave = nn.Linear(6, 32), inner, nn.Linear(32, 3)

        def forward(self, x, y):
            return self.leave(self.inner(self.enter(x), self.enter(y)))

    model, inputs = Net().eval(), (torch.randn(1, 7, 6), torch.randn(1, 5, 6))
    graph = bough.trace(model, inputs)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), bough.Budget(params=share * graph.cost().params))
    assert 0.98 * share < plan.cost.params / plan.original.params <= share
