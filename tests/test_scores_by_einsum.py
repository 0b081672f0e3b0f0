"""Attention scores by einsum are scaled as those by matmul are: the factor of a cut head dim goes into the same weights."""

import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize

PRODUCTS = {
    "matmul": lambda q, k: q @ k.transpose(-1, -2),
    "einsum": lambda q, k: torch.einsum("bhnd,bhmd->bhnm", q, k),
    "other letters": lambda q, k: torch.einsum("...id, ...jd -> ...ij", q, k),
    "keys first": lambda q, k: torch.einsum("bhmd,bhnd->bhnm", k, q),
}
HALVED = {"q/head": 3, "q/head_dim": 4, "v": 4}


class Attention(nn.Module):
    """`scaled`: whether the scores are scaled, or the queries before."""

    def __init__(self, product, scaled):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 5)
        self.heads, self.width, self.product, self.scaled = 3, 8, product, scaled

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        scale = q.shape[-1] ** -0.5
        scores = self.product(q, k) * scale if self.scaled else self.product(q * scale, k)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("form", PRODUCTS)
def test_head_dims_are_cut_and_the_scale_is_kept(form, scaled):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    model = randomize(Attention(PRODUCTS[form], scaled)).eval()
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep={"q/head_dim": 4, "v": 4})
    assert {name: kept for name, (kept, _) in plan.groups.items()} == HALVED
    assert not plan.frozen
    assert {s.name for s in plan.scales} <= {"q.weight", "q.bias", "k.weight", "k.bias"}
    assert {s.factor for s in plan.scales} == {0.5**0.5}
    small = bough.cut(model, plan)
    assert bough.verify(model, small, plan, x).equal
    with torch.no_grad():  # by hand: masked weights, and the original scale
        for name, dims in plan.removed.items():
            for dim, gone in dims.items():
                model.get_parameter(name).index_fill_(dim, torch.tensor(gone), 0.0)
        torch.testing.assert_close(small(x), model(x))
