"""Renormalizing groups against references written out by hand: statistics over the kept units alone.

The references share no code with `verify`: each is a formula over the indices that `plan.kept` names.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import bough
from bough.cutting.verify import expected_outputs
from tests.zoo import randomize

EPS = 1e-5


class Normalized(nn.Module):
    """A layer, a statistic over its units, and a layer that reads them. Channels are dim 1 of [batch, channels, positions]."""

    def __init__(self, units: int, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, units, 1), norm, nn.Conv1d(units, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


class Last(nn.Module):
    """A norm over the last dim, of channels that are dim 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class HandRMS(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS) * self.weight[:, None]


class Response(nn.Module):
    """Global response normalization (ConvNeXt V2)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(units)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=2, keepdim=True)
        return x + self.gamma[:, None] * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta[:, None]


class By(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def attention(x: Tensor) -> Tensor:
    return x * x.mean(1, keepdim=True).sigmoid()


def standardized(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + EPS)


# The same by numpy, over the rows that are kept: y [batch, kept channels, positions], K: their indices.


def layer_norm(y, norm, kept):
    weight, bias = (p.detach().numpy()[kept, None] for p in (norm.norm.weight, norm.norm.bias))
    centered = y - y.sum(1, keepdims=True) / y.shape[1]
    return centered / np.sqrt((centered**2).sum(1, keepdims=True) / y.shape[1] + EPS) * weight + bias


def rms_norm(y, norm, kept):
    weight = getattr(norm, "norm", norm).weight.detach().numpy()[kept, None]
    return y / np.sqrt((y**2).sum(1, keepdims=True) / y.shape[1] + EPS) * weight


def group_norm(y, norm, kept):
    """Groups are those of the original: what is left of each."""
    each, out = norm.num_channels // norm.num_groups, np.empty_like(y)
    for group in range(norm.num_groups):
        rows = np.flatnonzero(kept // each == group)
        if len(rows):
            part = y[:, rows]
            centered = part - part.mean((1, 2), keepdims=True)
            out[:, rows] = centered / np.sqrt((centered**2).mean((1, 2), keepdims=True) + EPS)
    return out * norm.weight.detach().numpy()[kept, None] + norm.bias.detach().numpy()[kept, None]


def softmax(y, norm, kept):
    powers = np.exp(y - y.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def gate(y, norm, kept):
    return y / (1 + np.exp(-y.sum(1, keepdims=True) / y.shape[1]))


def response(y, norm, kept):
    gamma, beta = (p.detach().numpy()[kept, None] for p in (norm.gamma, norm.beta))
    size = np.sqrt((y**2).sum(2, keepdims=True))
    return y + gamma * (y * (size / (size.sum(1, keepdims=True) / y.shape[1] + 1e-6))) + beta


def standard(y, norm, kept):
    centered = y - y.sum(1, keepdims=True) / y.shape[1]
    return centered / (np.sqrt((centered**2).sum(1, keepdims=True) / (y.shape[1] - 1)) + EPS)


def largest(y, norm, kept):
    return y / (1 + np.abs(y).max(1, keepdims=True))


def log_sum(y, norm, kept):
    return y - np.log(np.exp(y).sum(1, keepdims=True))


def running(y, norm, kept):
    """Products of the units up to each."""
    return np.cumprod(y, 1)


CASES = {
    "layer norm": (lambda n: Last(nn.LayerNorm(n)), layer_norm),
    "rms norm": (lambda n: Last(nn.RMSNorm(n, eps=EPS)), rms_norm),
    "rms norm by hand": (HandRMS, rms_norm),
    "group norm": (lambda n: nn.GroupNorm(2, n), group_norm),
    "softmax": (lambda n: By(lambda x: x.softmax(1)), softmax),
    "log softmax": (lambda n: By(lambda x: F.log_softmax(x, 1)), log_sum),
    "log of a sum": (lambda n: By(lambda x: x - x.logsumexp(1, keepdim=True)), log_sum),
    "mean": (lambda n: By(attention), gate),
    "deviation": (lambda n: By(standardized), standard),
    "largest": (lambda n: By(lambda x: x / (1 + x.abs().amax(1, keepdim=True))), largest),
    "response": (Response, response),
    "running product": (lambda n: By(lambda x: x.cumprod(1)), running),
}


@pytest.mark.parametrize("name", CASES)
@given(
    half=st.integers(3, 9),
    batch=st.integers(1, 3),
    positions=st.integers(2, 5),
    keep=st.floats(0.4, 0.9),
    seed=st.integers(0, 99),
)
@settings(max_examples=10)
def test_reference_and_cut_model_are_what_the_formula_gives(name, half, batch, positions, keep, seed):
    make, formula = CASES[name]
    units = 2 * half
    torch.manual_seed(seed)
    model = randomize(Normalized(units, make(units)).eval(), seed)
    x = torch.randn(batch, 3, positions, dtype=torch.float64)
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(seed)), keep=keep)
    small = bough.cut(model, plan)
    kept = np.array(plan.kept.get("a.weight", {}).get(0, range(units)))
    assert plan.renormalizing or len(kept) == units

    a, b = (layer.weight.detach().numpy()[..., 0] for layer in (model.a, model.b))
    y = np.einsum("oi,bip->bop", a[kept], x.numpy()) + model.a.bias.detach().numpy()[kept, None]
    wanted = np.einsum("oi,bip->bop", b[:, kept], formula(y, model.norm, kept)) + model.b.bias.detach().numpy()[:, None]

    with torch.no_grad():
        cut = small(x).numpy()
    np.testing.assert_allclose(cut, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())
    (reference,) = expected_outputs(model, plan, x).values()
    np.testing.assert_allclose(reference.numpy(), wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())
    assert bough.verify(model, small, plan, x).equal


class Centered(nn.Module):
    """Units divided by a deviation, or a variance, of all of them."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(4, 8), nn.Linear(8, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b((y - y.mean(-1, keepdim=True)) / (self.scale(y) + EPS))


@pytest.mark.parametrize(
    ("scale", "least"),
    [
        (lambda y: y.std(-1, keepdim=True), 2),
        (lambda y: y.std(-1, True, True), 2),
        (lambda y: y.var(dim=-1, keepdim=True).sqrt(), 2),
        (lambda y: torch.std_mean(y, -1, keepdim=True)[0], 2),
        (lambda y: torch.var_mean(y, dim=-1, correction=2, keepdim=True)[0].sqrt(), 3),
        (lambda y: y.var(-1, unbiased=False, keepdim=True).sqrt(), 1),
        (lambda y: y.std(-1, False, True), 1),
        (lambda y: y.std(-1, correction=0, keepdim=True), 1),
        (lambda y: y.reshape(len(y), 1, -1).std((1, 2))[:, None], 2),
        (lambda y: y.std(), 1),  # over the batch, too
    ],
)
def test_a_variance_keeps_more_units_than_its_correction(scale, least):
    model, x = Centered(scale), torch.randn(2, 4)
    graph = bough.trace(model, x)
    (group,) = graph.groups
    assert group.least == least
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=1e-9)
    assert plan.groups[group.name] == (least, 8)
    small = bough.cut(model, plan)
    assert small(x).isfinite().all()
    assert bough.verify(model, small, plan, x).equal
