"""Models that draw whether a layer is run are traced in the same way whatever was drawn before, and draw on as they would."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize

DRAWS = {  # whether a layer is skipped
    "layer drop": lambda: bool(torch.rand([]) < 0.5),
    "of one element": lambda: torch.rand(1).item() < 0.5,
    "survival": lambda: not bool(torch.rand([]) < 0.5),
    "event": lambda: bool(torch.bernoulli(torch.tensor(0.5))),
    "event of survival": lambda: torch.equal(torch.bernoulli(torch.tensor([0.5])), torch.zeros(1)),
    "in place": lambda: bool(torch.empty(1).uniform_(-1, 1) < 0),
    "Python": lambda: random.random() < 0.5,
    "numpy": lambda: np.random.uniform() < 0.5,
}
BY_TORCH = [n for n in DRAWS if n not in ("Python", "numpy")]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Dropping(nn.Module):
    """In training some layers are skipped, and a parameter is read that evaluation does not."""

    def __init__(self, skips):
        super().__init__()
        self.layers, self.mask = nn.ModuleList(Layer() for _ in range(6)), nn.Parameter(torch.randn(6))
        self.enter, self.leave, self.skips = nn.Linear(4, 6), nn.Linear(6, 3), skips

    def forward(self, x):
        x = self.enter(x)
        if self.training:
            x = x * self.mask
        for layer in self.layers:
            if not (self.training and self.skips()):
                x = layer(x)
        return self.leave(x)


def seed(n):
    torch.manual_seed(n)
    random.seed(n)
    np.random.seed(n)


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_a_graph_does_not_depend_on_chance(name, training):
    net, x = randomize(Dropping(DRAWS[name])).train(training), torch.randn(5, 4, dtype=torch.float64)
    found = set()
    for n in range(4):
        seed(n)
        before = states()
        graph = bough.trace(net, x)
        assert states() == before
        seed(n + 10)  # what is drawn between does not matter
        plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        assert bough.verify(net, bough.cut(net, plan), plan, x).equal
        found.add((str(graph), str(sorted(plan.groups.items()))))
    assert len(found) == 1
    if name in BY_TORCH:
        assert [f"layers.{i}.up" in plan.groups for i in range(6)] == [True] * 6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BY_TORCH)
def test_layers_that_may_be_skipped_can_be_left_out(name, training):
    net, x = randomize(Dropping(DRAWS[name])).train(training), torch.randn(5, 4, dtype=torch.float64)
    graph = bough.trace(net, x)
    assert [layer.name for layer in graph.layers] == [f"layers.{i}" for i in range(6)]
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, keep=0.5, drop=["layers.1", "layers.4"])
    assert bough.verify(net, bough.cut(net, plan), plan, x).equal
