"""Models that keep what they make of a parameter for later calls, as attention biases of LeViT are kept in eval mode."""

import pytest
import torch
from torch import nn

import bough
from bough.errors import PlanError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Caching(nn.Module):
    """In eval mode, keeps a bias that it gathers from a parameter, until it is trained again."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.bias = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8, 2))
        self.kept = {}

    def train(self, mode=True):
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def gathered(self):
        return self.bias[:, torch.tensor([1, 0])][:, 0]

    def forward(self, x):
        if not self.training and "bias" not in self.kept:
            self.kept["bias"] = self.gathered()
        return self.leave((self.enter(x) + (self.gathered() if self.training else self.kept["bias"])).relu())


def build():
    torch.manual_seed(0)
    return Caching().eval()


def test_subnets_follow_the_weights_whatever_was_called_before():
    net = bough.supernet(build(), X[:1])
    group = net.graph.groups[0].name
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(3):
        for n in (8, 4, 5 + step % 2):  # the whole model is evaluated, then trained, between plans for new widths
            with net.at({group: n}) as module:
                module.eval()
                seen = net(X)
                expected = net.extract({group: n}).model.eval()(X)
                assert torch.allclose(seen, expected, atol=1e-6)
                net.train()
                net(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        net.eval()
    fresh = build()
    fresh.load_state_dict(net.model.state_dict())
    assert torch.allclose(net(X), fresh(X), atol=1e-6)
    assert net.model.kept == {}


def test_a_cache_that_a_call_has_filled_is_refused():
    model = build()
    model(X)
    with pytest.raises(PlanError, match=r"holds kept\[bias\], a tensor over units of bias .* that was not called before"):
        bough.supernet(model, X[:1])
    model.train().eval()
    assert torch.allclose(bough.supernet(model, X[:1])(X), model(X), atol=1e-6)
