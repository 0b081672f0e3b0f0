"""What a model remembers of its runs neither enters a recorded or replayed run nor outlives it."""

import functools

import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize


class Table(nn.Module):
    """Adds positions that a memoized static method makes."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 3)

    @staticmethod
    @functools.lru_cache
    def positions(n):
        return torch.arange(n, dtype=torch.float64)[:, None]

    def forward(self, x):
        return self.leave(self.enter(x).relu() + self.positions(x.shape[1]))


@pytest.mark.parametrize("called_before", [False, True])
def test_a_memoized_tensor_is_made_anew_in_each_run(called_before):
    Table.positions.cache_clear()
    net, x = randomize(Table()).eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    expected = x.new_tensor(net(x).tolist()) if called_before else None
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert plan.groups["enter"] == (4, 8)
    assert bough.verify(net, bough.cut(net, plan), plan, x).equal
    assert net(x).device.type == "cpu"
    if called_before:
        assert torch.equal(net(x), expected)


class Keeping(nn.Module):
    """Keeps what it makes of a parameter for the next run, and notes what it has seen."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.bias = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(8, 2))
        self.kept, self.seen, self.by_size, self.log = {}, [], {0: 0}, {"runs": []}

    def forward(self, x):
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias[:, torch.tensor([1])][:, 0]
        self.seen.append(x)
        self.by_size[len(x)] = x
        self.log["runs"].append(1)
        return self.leave((self.enter(x) + self.kept["bias"]).relu())


class Making(Keeping):
    """The same, and keeps nothing."""

    def forward(self, x):
        return self.leave((self.enter(x) + self.bias[:, torch.tensor([1])][:, 0]).relu())


def noted(net):
    return len(net.kept), len(net.seen), len(net.by_size), len(net.log["runs"])


@pytest.mark.parametrize("called_before_data", [False, True])
def test_runs_on_data_find_nothing_of_those_before(called_before_data):
    kept, made = (randomize(net()).eval() for net in (Keeping, Making))
    torch.manual_seed(0)
    data = [torch.randn(16, 4, dtype=torch.float64) for _ in range(5)]
    found = []
    for net in (kept, made):
        graph = bough.trace(net, data[0])
        assert noted(net) == (0, 0, 1, 0)
        plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        small = bough.cut(net, plan)
        if called_before_data:
            net(data[0])
        before = noted(net)
        scores = bough.score(graph, bough.importance.OBS(), data)
        refitted = bough.refit(net, small, plan, data).model
        assert noted(net) == before
        found.append((scores["bias"], refitted.state_dict()))
    torch.testing.assert_close(*found)
