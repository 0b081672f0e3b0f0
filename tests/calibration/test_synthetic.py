"""`synthesize`: inputs on which batch norms see the statistics that they keep."""

import pytest
import torch
from torch import nn

import bough
from bough.errors import PlanError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        self.p, self.q = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.q(self.b(self.p(self.a(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def trained():
    """A net whose batch norms keep the statistics of data with a mean and a deviation of its own."""
    torch.manual_seed(0)
    net, data = Net(), 2.0 + 3.0 * torch.randn(256, 3, 8, 8)
    for norm in (net.p, net.q):
        norm.momentum = None
    with torch.no_grad():
        net.train()(data)
    return net.eval(), data


def distances(net, batch):
    """For each batch norm, how far the batch's mean is from the running one, in deviations."""
    found = []
    handles = [
        norm.register_forward_pre_hook(
            lambda m, args: found.append(float(((args[0].mean((0, 2, 3)) - m.running_mean) / m.running_var.sqrt()).abs().max()))
        )
        for norm in (net.p, net.q)
    ]
    with torch.no_grad():
        net(batch)
    for handle in handles:
        handle.remove()
    return found


def test_statistics_come_near_those_of_the_training_data():
    net, _ = trained()
    graph = bough.trace(net, torch.randn(2, 3, 8, 8))
    (batch,) = bough.synthesize(graph, samples=32, batch_size=32, steps=200)
    before, after = distances(net, torch.randn(32, 3, 8, 8)), distances(net, batch)
    assert all(a < 0.25 * b for a, b in zip(after, before, strict=True))


def test_the_model_and_the_random_state_stay_as_they_are():
    net, _ = trained()
    net.train()
    net.a.weight.requires_grad_(False)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    graph = bough.trace(net, torch.randn(2, 3, 8, 8))
    random = torch.get_rng_state()
    first = bough.synthesize(graph, samples=4, batch_size=2, steps=2)
    assert torch.equal(random, torch.get_rng_state())
    assert net.training
    assert not net.a.weight.requires_grad
    assert net.b.weight.requires_grad
    assert net.b.weight.grad is None
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    again = bough.synthesize(graph, samples=4, batch_size=2, steps=2)
    assert [tuple(b.shape) for b in first] == [(2, 3, 8, 8)] * 2
    assert not first[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_inputs_by_keyword_and_integers_keep_their_place():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.out = nn.Embedding(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, ids, x):
            return self.out(self.norm(self.embed(ids) + x).relu())

    graph = bough.trace(Two().eval(), {"ids": torch.tensor([1, 3]), "x": torch.randn(2, 6)})
    (batch,) = bough.synthesize(graph, samples=5, batch_size=5, steps=2)
    assert batch["ids"].tolist() == [1, 3, 1, 3, 1]
    assert batch["x"].shape == (5, 6)


def test_what_cannot_be_synthesized_is_said():
    graph = bough.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 4))
    with pytest.raises(PlanError, match="no batch norm with running statistics"):
        bough.synthesize(graph)
    net, _ = trained()
    with pytest.raises(PlanError, match="samples"):
        bough.synthesize(bough.trace(net, torch.randn(2, 3, 8, 8)), samples=0)
