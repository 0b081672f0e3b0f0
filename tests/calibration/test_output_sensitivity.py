"""Outputs that count by how much what the model returns depends on them: against derivatives taken by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.calibration import Data, output_sensitivities
from bough.errors import PlanError
from bough.importance import OBS, ThiNet
from tests.zoo import randomize


def net(inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(inplace), nn.Flatten(), nn.Linear(16, 5)
    ).double()


def by_hand(model: nn.Module, layer: int, x: torch.Tensor) -> torch.Tensor:
    """[outputs]: |dz/dy|^2 from the whole Jacobian of what follows the layer."""
    y = model[: layer + 1](x)
    spread = model(x).std(correction=0)
    total = torch.zeros(y.shape[1], dtype=x.dtype)
    for one in y:
        jacobian = torch.autograd.functional.jacobian(model[layer + 1 :], one[None])[0] / spread
        total += jacobian.square().sum(0).flatten(2).sum((0, 2)) if one.dim() > 1 else jacobian.square().sum((0, 1))
    return total / len(y)


@pytest.mark.parametrize("inplace", [False, True])
def test_random_mixtures_come_to_the_squared_jacobian(inplace):
    model, x = net(inplace), torch.randn(6, 3, 6, 6).double()
    graph = bough.trace(model, x[:2])
    layers = [op.index for op in graph.ops if op.name in ("convolution", "linear")]
    found = output_sensitivities(graph, Data([x] * 5), layers, probes=200)
    for index, layer in zip(layers, (0, 2, 5), strict=True):
        wanted = by_hand(net(), layer, x)
        assert torch.allclose(found[index], wanted, rtol=0.1), (found[index], wanted)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("criterion", [OBS, ThiNet])
@pytest.mark.parametrize("relative", [False, True])
def test_outputs_that_nothing_reads_are_free_to_be_wrong(criterion, relative):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    randomize(model, 0)
    with torch.no_grad():
        model[2].bias[0] = -1e3  # never passes its ReLU
        model[2].weight[0] *= 10
        model[2].weight[1:, 4] = 0  # unit 4 feeds it alone
    graph, x = bough.trace(model, torch.randn(2, 4).double()), [torch.randn(64, 4).double()]
    blind, seeing = (bough.score(graph, criterion(relative=relative, probes=n), x)["0"] for n in (0, 2))
    assert seeing.argmin() == 4
    assert seeing[4] < 1e-9 < blind[4]


def test_relative_scores_keep_their_scale():
    model, x = net(), [torch.randn(32, 3, 6, 6).double()]
    graph = bough.trace(model, x[0][:2])
    for name in ("0", "2"):
        last = [bough.score(graph, OBS(ridge=1e-9, sites=999, relative=True, probes=n), x)[name].max() for n in (0, 3)]
        assert np.isclose(*last, rtol=1e-6)


def test_scores_do_not_fall_apart_by_batch_and_leave_the_model_as_it_was():
    model, x = net(), torch.randn(24, 3, 6, 6).double()
    before, graph = copy.deepcopy(model.state_dict()), bough.trace(model, x[:2])
    found = [bough.score(graph, OBS(relative=True, probes=64), list(x.split(n))) for n in (24, 6)]
    for name, score in found[0].items():
        assert np.allclose(score, found[1][name], rtol=0.2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_has_no_gradient_is_told():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    graph, x = bough.trace(Still(), torch.randn(2, 4)), [torch.randn(8, 4)]
    with pytest.raises(PlanError, match="probes=0"):
        bough.score(graph, OBS(probes=1), x)
    with pytest.raises(PlanError, match=r"OBS\(.*probes=-1\)"):
        OBS(probes=-1)


def test_without_linear_layers_nothing_is_weighted():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.w, self.b = nn.Linear(5, 8), nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.addmm(self.b, self.i(x).tanh(), self.w)

    x = torch.randn(16, 5).double()
    graph = bough.trace(Added().double(), x)
    with_probes, without = (bough.score(graph, OBS(probes=n), [x])["w"] for n in (2, 0))
    np.testing.assert_array_equal(with_probes, without)
