"""Ordering units by importance changes nothing that a model computes."""

import numpy as np
import pytest
import torch

import bough
from bough.errors import PlanError
from bough.supernet.ordering import importance_order, order_units
from tests.supernet.models import inputs, residual
from tests.zoo import randomize
from tests.zoo.small_sequence import ZOO

ROUTED = ZOO["routed_experts"]


def test_units_are_sorted_by_their_scores():
    model = residual()
    graph = bough.trace(model, inputs())
    scores = bough.score(graph, bough.importance.Random(3))
    ordered = order_units(model, graph, importance_order(graph, scores))
    for g in graph.groups:
        order = np.argsort(-scores[g.name])
        assert (np.diff(scores[g.name][order]) <= 0).all()
        for m in g.members:
            before, after = graph.tensor(m.name), bough.graph.model_tensor(ordered, m.name)
            assert after.shape == before.shape
    up, order = model.blocks[1].up, np.argsort(-scores["blocks.1.up"])
    stream = np.argsort(-scores["stem"])
    torch.testing.assert_close(ordered.blocks[1].up.weight, up.weight[order][:, stream], rtol=0, atol=0)
    torch.testing.assert_close(ordered.blocks[1].norm.running_mean, model.blocks[1].norm.running_mean[order], rtol=0, atol=0)


def test_experts_that_the_python_numbers_keep_their_places():
    model, x = ROUTED()
    model, x = randomize(model.eval()), x.double()
    net = bough.supernet(model, x, importance=bough.importance.Random(1))
    assert "literal index" in net.frozen["gate/expert"]
    torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(net.model.gate.bias, model.gate.bias)


def test_the_first_model_stays_as_it_was():
    model, x = residual(), inputs()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    bough.supernet(model, x)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6]])
def test_an_order_that_is_no_permutation(order):
    model = residual()
    with pytest.raises(PlanError, match=r"order\['stem'\] must be a permutation of the group's 6 units"):
        order_units(model, bough.trace(model, inputs()), {"stem": np.array(order)})
