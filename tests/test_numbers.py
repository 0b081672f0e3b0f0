"""Units told by number, as a router picks experts, are cut where the numbers are passed on, and stay where they are used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

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
    kept, total = plan.groups.get("table/expert", (6, 6))
    assert kept == total
    assert report.max_error < 1e-9


class Head(nn.Module):
    """A classifier of CLASSES, of whose scores [B, CLASSES] something is returned."""

    def __init__(self, answer):
        super().__init__()
        self.enter, self.classes, self.answer = nn.Linear(8, 16), nn.Linear(16, CLASSES), answer
        self.names = nn.Buffer(torch.arange(CLASSES) + 100)

    def forward(self, x):
        return self.answer(self, self.classes(self.enter(x).relu()))


CLASSES = 6
NUMBERING = {
    "argmax": lambda m, y: y.argmax(-1),
    "argmin": lambda m, y: y.argmin(-1, keepdim=True),
    "beside the scores' sum": lambda m, y: {"sum": y.sum(-1), "best": y.argmax(-1)},
    "topk": lambda m, y: y.topk(2),
    "sort": lambda m, y: y.sort(-1)[1],
    "argsort": lambda m, y: y.argsort(-1),
    "max": lambda m, y: y.max(-1)[1],
    "min": lambda m, y: torch.min(y, dim=1).indices,
    "median": lambda m, y: y.median(-1)[1],
    "mode": lambda m, y: y.round().mode(-1)[1],
    "kthvalue": lambda m, y: y.kthvalue(2)[1],
    "nonzero": lambda m, y: (y > 0).nonzero(),
    "nonzero of one row": lambda m, y: (y[0] > 0).nonzero(),
    "where": lambda m, y: torch.where(y[0] > 0),
    "multinomial": lambda m, y: y.softmax(-1).multinomial(1),
    "count to the last": lambda m, y: (y > 0).cumsum(-1).argmax(-1),
    "arithmetic": lambda m, y: y.argmax(-1) * 2 + 1,
    "division": lambda m, y: y.topk(2).indices // 3,
    "as a float": lambda m, y: y.argmax(-1).to(y.dtype),
    "as another integer": lambda m, y: y.argmax(-1).int(),
    "of all elements": lambda m, y: y.flatten().topk(3)[1],
    "together": lambda m, y: torch.stack([y.argmax(-1), y.argmin(-1)]),
    "one of two": lambda m, y: torch.where(y.amax(-1) > 0, y.argmax(-1), -1),
    "one-hot": lambda m, y: F.one_hot(y.argmax(-1), CLASSES),
    "one-hot by a scatter": lambda m, y: torch.zeros_like(y).scatter(-1, y.argmax(-1, keepdim=True), 1.0),
    "scattered": lambda m, y: torch.zeros(4, dtype=torch.long).scatter(0, torch.arange(4), y.argmax(-1)),
    "put": lambda m, y: torch.zeros(4, dtype=torch.long).index_put((torch.arange(4),), y.argmax(-1)),
    "counted": lambda m, y: y.argmax(-1).bincount(minlength=CLASSES),
    "their names": lambda m, y: m.names[y.argmax(-1)],
    "their names, gathered": lambda m, y: m.names.expand(4, CLASSES).gather(1, y.topk(2).indices),
    "read by Python": lambda m, y: torch.tensor(y.argmax(-1).tolist()),
}  # fmt: skip
VALUES = {
    "maximum": lambda m, y: y.max(-1)[0],
    "best scores": lambda m, y: y.topk(2).values,
    "gathered scores": lambda m, y: y.gather(-1, y.topk(2).indices),
    "how many are positive": lambda m, y: (y > 0).sum(-1),
}


def shortened(answer):
    torch.manual_seed(0)
    net, x = Head(answer).double().eval(), torch.randn(4, 8, dtype=torch.float64)
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    small = bough.cut(net, plan)
    assert bough.verify(net, small, plan, x).equal
    assert small.enter.out_features == 8
    return small.classes.out_features


@pytest.mark.parametrize("name", NUMBERING)
def test_units_whose_numbers_leave_the_model_stay(name):
    assert shortened(NUMBERING[name]) == CLASSES


@pytest.mark.parametrize("name", VALUES)
def test_units_of_which_only_values_leave_go(name):
    assert shortened(VALUES[name]) == CLASSES // 2
