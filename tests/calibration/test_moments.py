"""A contraction as a matrix product is the contraction; moments are those of its rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bough
from bough.calibration import Data, Moments, Tap, collect_moments, consumer_inputs, tapped, unfold
from tests.zoo import randomize


def contraction(model, data):
    """(x w, as the op gives it) of the last layer of Sequential(first, ReLU, last), bias apart."""
    graph = bough.trace(model, data[:2])
    group = next(g for g in graph.groups if any(m.name == "0.weight" for m in g.members))
    (reading,) = [r for r in consumer_inputs(graph)[group.name] if graph.ops[r.op].module == "2"]
    seen = []
    tap = Tap(reading.op, lambda op, tensors: seen.append(unfold(reading, op, tensors, 10**6)))
    with torch.no_grad(), tapped(graph, [tap]):
        model(data)
        x = torch.relu(model[0](data))
    (unfolded,) = seen
    return graph, group, reading, unfolded, x


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_convolution_is_a_product_of_its_patches(draw):
    pick = lambda *values: draw.draw(st.sampled_from(values))  # noqa: E731 - a word for a long one
    dims, groups, transposed = pick(1, 2), pick(1, 2, 3), pick(False, True)
    options = {"stride": pick(1, 2), "padding": pick(0, 1), "dilation": pick(1, 2), "groups": groups, "bias": False}
    kinds = {(1, False): nn.Conv1d, (2, False): nn.Conv2d, (1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d}
    first = (nn.Conv1d if dims == 1 else nn.Conv2d)(3, 6, 1)
    torch.manual_seed(draw.draw(st.integers(0, 99)))
    model = randomize(nn.Sequential(first, nn.ReLU(), kinds[dims, transposed](6, 6, 3, **options)))
    data = torch.randn(3, 3, *(7, 6)[:dims], dtype=torch.float64)
    *_, unfolded, x = contraction(model, data)
    expected = model[2](x).detach()
    product = torch.stack([a @ b for a, b in zip(unfolded.x, unfolded.w, strict=True)])  # [groups, samples x sites, outputs]
    sites = expected[0, 0].numel()
    actual = product.reshape(groups, 3, sites, -1).permute(1, 0, 3, 2).reshape(expected.shape)
    torch.testing.assert_close(actual, expected)
    assert unfolded.spread == 3**dims


def test_columns_are_those_of_each_channel():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)))
    data = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    graph, group, reading, _, x = contraction(model, data)
    found = collect_moments(graph, Data([data[:1], data[1:]]), [reading], sites=10**6)[reading]
    assert isinstance(found, Moments)
    assert found.biased
    patches = F.unfold(x, 3)  # [samples, 6 x 9, sites]
    columns = found.columns(group.atom)
    assert columns.shape[0] == 2
    for block in range(2):
        for unit in range(group.size):
            channel = block * 3 + unit
            rows = patches[:, channel * 9 : (channel + 1) * 9].permute(0, 2, 1).reshape(-1, 9)
            second = found.second[block][columns[block, unit]][:, columns[block, unit]]
            torch.testing.assert_close(second, rows.mT @ rows / len(rows))
            torch.testing.assert_close(found.mean[block][columns[block, unit]], rows.mean(0))


@pytest.mark.parametrize("equation", ["bnd,df->bnf", "bnd,dkf->bnkf", "nbd,bdf->bnf"])
def test_an_einsum_is_a_product(equation):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 5)
            self.w = nn.Parameter(
                torch.randn({"bnd,df->bnf": (5, 3), "bnd,dkf->bnkf": (5, 2, 3), "nbd,bdf->bnf": (6, 5, 3)}[equation])
            )

        def forward(self, x):
            return torch.einsum(equation, torch.relu(self.a(x)), self.w)

    torch.manual_seed(0)
    model, data = randomize(Mixed()), torch.randn(3, 6, 4, dtype=torch.float64)
    graph = bough.trace(model, data[:2])
    (reading,) = consumer_inputs(graph)[graph.groups[0].name]
    seen = []
    with torch.no_grad(), tapped(graph, [Tap(reading.op, lambda op, tensors: seen.append(unfold(reading, op, tensors, 9)))]):
        result = model(data)
    product = torch.stack([a @ b for a, b in zip(seen[0].x, seen[0].w, strict=True)])
    np.testing.assert_allclose(np.sort(product.flatten()), np.sort(result.flatten()))


def test_convolutions_are_looked_at_in_as_many_places_as_told():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    data = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    graph, _, reading, _, _ = contraction(model, data)
    taken = []
    with torch.no_grad(), tapped(graph, [Tap(reading.op, lambda op, tensors: taken.append(unfold(reading, op, tensors, 5)))]):
        model(data)
        model(data[2:])
    assert taken[0].x.shape == (1, 5 * 4, 54)
    torch.testing.assert_close(taken[0].x.reshape(4, 5, 54)[2:], taken[1].x.reshape(2, 5, 54))
