"""What a model's methods remember neither enters a recorded run nor outlives it."""

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
