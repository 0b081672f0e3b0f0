"""Names of modules and keys of attributes may have every character that torch allows."""

import pytest
import torch
from torch import nn

import bough
from bough.tracing.capture.provenance import key_of, path_of
from tests.zoo import randomize

NAMES = ["a:b", ":", "100%", "%3A:x", "a/b", "a#2", "ü b"]


class Heads(nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key, self.sizes = key, {key: 4}
        self.q, self.k, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        q, k = (f(x).unflatten(-1, (self.sizes[self.key], -1)).transpose(1, 2) for f in (self.q, self.k))
        return self.o(((q @ k.transpose(-2, -1)).softmax(-1) @ k).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_such_names(name, tmp_path):
    def build():
        net = nn.Sequential()
        net.add_module("enter", nn.Linear(5, 16))
        net.add_module(name, Heads(name))
        net.add_module("leave", nn.Linear(16, 3))
        return randomize(net).eval()

    net, x = build(), torch.randn(2, 7, 5, dtype=torch.float64)
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert sum(kept == total // 2 for kept, total in plan.groups.values()) >= 3
    assert [v for k, v in plan.attributes.items()] == [2]
    plan = bough.Plan.from_json(plan.to_json())
    small = bough.cut(net, plan)
    assert small.get_submodule(name).sizes == {name: 2}
    assert bough.verify(net, small, plan, x).equal
    result = bough.prune(net, x, bough.Budget(params="50%"))
    bough.save(result, tmp_path / "small")
    assert torch.equal(bough.load(tmp_path / "small", build)(x), result.model(x))


@pytest.mark.parametrize("name", NAMES)
def test_keys_give_their_paths_back(name):
    for path in ((name, "heads"), ("", "sizes", name), (name, name, name)):
        assert path_of(key_of(path)) == path
    assert key_of(("blocks.0", "attn", "heads")) == "blocks.0:attn:heads"


class Residual(nn.Linear):
    def forward(self, x, kind):
        return x + getattr(torch, kind)(super().forward(x))


class Stack(nn.Module):
    """Layers with a list that has one item for each."""

    def __init__(self):
        super().__init__()
        self.layer_kinds = ["relu", "tanh", "relu"]
        self.layers = nn.ModuleList(Residual(8, 8) for _ in self.layer_kinds)

    def forward(self, x):
        for kind, layer in zip(self.layer_kinds, self.layers, strict=True):
            x = layer(x, kind)
        return x


@pytest.mark.parametrize("name", NAMES)
def test_lists_with_an_item_for_each_layer(name):
    net = nn.Sequential()
    net.add_module("enter", nn.Linear(5, 8))
    net.add_module(name, Stack())
    net, x = randomize(net).eval(), torch.randn(2, 5, dtype=torch.float64)
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=1.0, drop=[f"{name}.layers.1"])
    assert bough.cut(net, plan).get_submodule(name).layer_kinds == ["relu", "relu"]
    assert bough.verify(net, bough.cut(net, plan), plan, x).equal
