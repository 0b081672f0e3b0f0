"""Units told by number, as a router picks experts, are cut where the numbers are passed on, and stay where they are used."""

import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize


class Routed(nn.Module):
    """A table with a row per expert, of which each token takes the best two; what is done with their numbers is `use`."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use, self.experts = use, 6
        self.gate, self.table, self.out = nn.Linear(5, 6), nn.Parameter(torch.randn(6, 7)), nn.Linear(7, 3)

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        rows = (weights.unsqueeze(-1) * self.table[chosen]).sum(-2)
        return self.out(rows) * self.use(self, chosen)


def by_loop(net, chosen):
    """The sentinel after the last expert is told by an attribute."""
    mask = torch.nn.functional.one_hot(chosen, net.experts + 1)
    hit = mask.sum((0, 1)).nonzero()
    return 1 + sum((row[0] == net.experts).double() for row in hit)


PASSED_ON = {
    "unused": lambda net, chosen: 1.0,
    "compared": lambda net, chosen: 1 + (chosen[:, :1] == chosen[:, 1:]).double(),
    "ordered": lambda net, chosen: 1 + (chosen[:, :1] < chosen[:, 1:]).double(),
    "sorted": lambda net, chosen: 1 + net.table[chosen.sort(-1).values].sum((-1, -2), keepdim=True)[..., 0] * 0,
    "clamped": lambda net, chosen: net.table[chosen.clamp(0, net.experts - 1)].sum((-1, -2)).unsqueeze(-1),
    "joined": lambda net, chosen: net.table[torch.cat([chosen, chosen], -1)].sum((-1, -2)).unsqueeze(-1),
    "sentinel": by_loop,
}
COMPUTED_WITH = {
    "one of them": lambda net, chosen: 1 + (chosen[:, :1] == 3).double(),
    "below": lambda net, chosen: 1 + (chosen[:, :1] < 2).double(),
    "halved": lambda net, chosen: 1 + (chosen[:, :1] // 2).double(),
    "as floats": lambda net, chosen: 1 + chosen[:, :1].double().sin(),
    "read": lambda net, chosen: 1.0 + int(chosen[0, 0]),
    "listed": lambda net, chosen: 1.0 + sum(chosen[0].tolist()),
    "clamped lower": lambda net, chosen: net.table[chosen.clamp(0, 2)].sum((-1, -2)).unsqueeze(-1),
    "joined with others": lambda net, chosen: torch.cat([chosen, chosen.new_full(chosen.shape, 2)], -1).double().mean(-1, True),
}


def cut(use):
    torch.manual_seed(0)
    net, x = randomize(Routed(use).eval()), torch.randn(4, 5).double()
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(1)), keep=0.5)
    return plan, bough.verify(net, bough.cut(net, plan), plan, x)


@pytest.mark.parametrize("name", PASSED_ON)
def test_experts_are_cut_where_their_numbers_are_passed_on(name):
    plan, report = cut(PASSED_ON[name])
    assert plan.groups["table/expert"] == (3, 6)
    assert report.max_error < 1e-9


@pytest.mark.parametrize("name", COMPUTED_WITH)
def test_experts_stay_where_their_numbers_are_computed_with(name):
    plan, report = cut(COMPUTED_WITH[name])
    assert "table/expert" not in plan.groups
    assert report.max_error < 1e-9
