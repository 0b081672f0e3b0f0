"""Layers that the model runs without one by one, and not together."""

import pytest
import torch
from torch import nn

import bough
from bough.errors import ConflictError
from tests.supernet.models import Block, inputs


class NeedsABlock(nn.Module):
    """Its Python reads a weight of the second block that is left."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([Block(6) for _ in range(3)])

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.blocks[1].down.bias[:1]


def test_layers_that_are_needed_stay_and_are_listed():
    torch.manual_seed(0)
    net = bough.supernet(NeedsABlock().eval(), inputs(), depth=True)
    assert net.space.depths == (("blocks.2",),)
    assert "does not run without" in net.frozen["blocks.1"]
    for subnet in (net.smallest, net.sample(0), net.sample(1)):
        with net.at(subnet):
            torch.testing.assert_close(net(inputs()), net.extract(subnet).model(inputs()))


def test_layers_that_are_asked_for_and_needed_are_an_error():
    with pytest.raises(ConflictError, match=r"does not run without blocks\.0, blocks\.1, blocks\.2"):
        bough.supernet(NeedsABlock().eval(), inputs(), depth=["blocks.*"])


def test_draws_that_the_models_python_contradicts_are_drawn_anew():
    net = bough.supernet(NeedsABlock().eval(), inputs(), depth=["blocks.2"])
    space = net.space
    plans = []

    def contradicted(subnet):
        plans.append(subnet)
        if len(plans) < 3:
            raise ConflictError("no")

    net.plan = contradicted
    found = net.sample(0)
    assert [p.key for p in plans].index(found.key) <= 2
    assert net.refused == {"no": 2}
    assert space is net.space
    net.plan = lambda subnet: (_ for _ in ()).throw(ConflictError("never"))
    with pytest.raises(ConflictError, match="none of 100 subnets runs: never"):
        net.sample(0)
