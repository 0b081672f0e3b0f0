"""Refit equals least squares by hand: batches, memory, rows that are missing and what does not vary change nothing."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bough
from bough.recovery import refit
from bough.recovery.refit import RIDGES, NormalEquations
from tests.recovery.cut_models import Chain, batches, cut_to_half, halved
from tests.zoo import randomize


def test_equals_least_squares_on_materialized_inputs():
    model, ridge = randomize(Chain()).eval(), 0.05
    data = batches((5,))
    small, plan = cut_to_half(model, "a", data[0])
    x = torch.cat(data)
    inputs = F.relu(small.a(x)).detach().numpy()
    target = model.b(F.relu(model.a(x))).detach().numpy()
    w, centred = small.b.weight.detach().numpy(), inputs - inputs.mean(0)
    damping = np.sqrt(ridge * (centred**2).mean(0).mean() * len(x))
    left = np.vstack([centred, damping * np.eye(inputs.shape[1])])
    right = np.vstack([target - target.mean(0), damping * w.T])
    expected = np.linalg.lstsq(left, right, rcond=None)[0]
    refitted = refit(model, small, plan, data, ridge=ridge).model
    np.testing.assert_allclose(refitted.b.weight.detach().numpy(), expected.T, atol=1e-9)
    constant = target.mean(0) - inputs.mean(0) @ expected
    np.testing.assert_allclose(refitted.b.bias.detach().numpy(), constant, atol=1e-9)


@pytest.mark.parametrize("name", ["residual", "encoder", "transposed"])
@pytest.mark.parametrize("memory", [2**31, 0])
def test_batches_do_not_matter_and_neither_does_memory(name, memory):
    model, small, plan, data = halved(name)
    whole = refit(model, small, plan, [torch.cat(data)], ridge=1e-3).model.state_dict()
    parts = refit(model, small, plan, torch.cat(data).split(11), memory=memory, ridge=1e-3).model.state_dict()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-6, atol=1e-7)


def noisy(rows, seed, inputs=12, outputs=5):
    torch.manual_seed(0)
    w, start = (torch.randn(inputs, outputs, dtype=torch.float64) for _ in range(2))
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs, dtype=torch.float64) * torch.logspace(0, -1, inputs, dtype=torch.float64) + 3
    return x, x @ w + torch.randn(rows, outputs, dtype=torch.float64), start[None]


def by_hand(x, y, start, ridge):
    """The weight and the constant."""
    means, centred = (x.mean(0), y.mean(0)), x - x.mean(0)
    second = centred.T @ centred / len(x)
    damped = second + ridge * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    w = start + torch.linalg.solve(damped, centred.T @ (y - means[1] - centred @ start) / len(x))
    return w, means[1] - means[0] @ w


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(8, 200), quarters=st.integers(2, 4), seed=st.integers(1, 99))
def test_the_ridge_is_the_weakest_that_holds_on_rows_held_back(rows, quarters, seed):
    x, y, start = noisy(rows, seed)
    parts, sums = [(x[i::quarters], y[i::quarters]) for i in range(quarters)], NormalEquations()
    for i, (a, b) in enumerate(parts):
        sums.add([a], [b], shift="b", fold=i)
    found = sums.solve(start, {"b": torch.zeros(1, 5, dtype=torch.float64)}, ridge=None)
    errors = []
    for ridge in RIDGES:
        error = 0.0
        for i, (other, wanted) in enumerate(parts):
            a, b = (torch.cat(t) for t in zip(*parts[:i], *parts[i + 1 :], strict=True))
            left = wanted - other @ by_hand(a, b, start[0], ridge)[0]
            error += float((left - left.mean(0)).square().sum() / len(left))
        errors.append(error)
    turn = next(i for i in range(len(errors)) if i + 1 == len(errors) or errors[i + 1] > errors[i])
    assert found.ridge == next(r for r, e in zip(RIDGES, errors, strict=True) if e <= 1.05 * errors[turn])
    w, shift = by_hand(x, y, start[0], found.ridge)
    torch.testing.assert_close(found.weight[0], w)
    torch.testing.assert_close(found.shifts["b"][0], shift)


@pytest.mark.parametrize("shift", ["", "b"])
def test_outputs_are_solved_in_parts_with_one_ridge(shift, monkeypatch):
    x, y, start = noisy(60, 1)
    x, start = x[:, :2], start[:, :2]
    sums, shifts = NormalEquations(), {"b": torch.zeros(1, 5, dtype=torch.float64)} if shift else {}
    sums.add([x], [y], shift=shift, fold=None)
    whole = sums.solve(start, shifts, ridge=None)
    monkeypatch.setattr(sys.modules[NormalEquations.__module__], "_PART", 1)  # parts of 2, 2 and 1 outputs
    found = sums.solve(start, shifts, ridge=None)
    torch.testing.assert_close(found.weight, whole.weight)
    torch.testing.assert_close(found.shifts, whole.shifts)
    assert (found.ridge, found.rows) == (whole.ridge, whole.rows)
    assert (found.before, found.after) == pytest.approx((whole.before, whole.after))


def test_a_ridge_is_found_where_nothing_is_to_be_done():
    x, _, start = noisy(40, 1)
    sums = NormalEquations()
    sums.add([x], [x @ start[0]], shift="b", fold=None)
    found = sums.solve(start, {"b": torch.zeros(1, 5, dtype=torch.float64)}, ridge=None)
    torch.testing.assert_close(found.weight, start)
    assert found.ridge in RIDGES


def test_a_chosen_ridge_holds_where_rows_are_few():
    x, y, start = noisy(16, 1)  # for 12 inputs
    fresh, wanted, _ = noisy(4000, 2)
    errors = {}
    for ridge in (None, 1e-3, 0.0):
        sums = NormalEquations()
        sums.add([x], [y], shift="b", fold=None)
        found = sums.solve(start, {"b": torch.zeros(1, 5, dtype=torch.float64)}, ridge=ridge)
        errors[ridge] = float((fresh @ found.weight[0] + found.shifts["b"] - wanted).square().mean())
    assert errors[None] < errors[1e-3] < errors[0.0]


@pytest.mark.parametrize("name", ["residual", "transposed"])
def test_of_one_batch_a_quarter_of_the_samples_is_held_back(name):
    model, small, plan, data = halved(name)
    x = torch.cat(data)[:40]
    one, four = (refit(model, small, plan, batches) for batches in ([x], x.split(10)))
    assert [layer.ridge for layer in one.layers] == [layer.ridge for layer in four.layers]
    torch.testing.assert_close(one.model.state_dict(), four.model.state_dict(), rtol=1e-6, atol=1e-7)


def test_few_rows_are_told():
    model, small, plan, data = halved("mlp")
    assert all("few" in layer.note for layer in refit(model, small, plan, [data[0][:9]]).layers)
    assert not any(layer.note for layer in refit(model, small, plan, [torch.randn(999, *data[0].shape[1:]).double()]).layers)


def test_memory_of_sums_does_not_grow():
    sums, sizes = NormalEquations(), []
    for _ in range(3):
        sums.add([torch.randn(500, 4)], [torch.randn(500, 3)], fold=None)
        sizes.append(sum(t.numel() for fold in sums._folds for part in fold.values() for t in part))
    assert sizes == [4 * (8 * 5 + 3)] * 3


class Routed(nn.Module):
    """Three experts, the last of which no sample goes to."""

    def __init__(self):
        super().__init__()
        self.inp, self.gate, self.out = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(3))
        with torch.no_grad():
            self.gate.bias[2] = -1000

    def forward(self, x):
        h = F.relu(self.inp(x))
        chosen, y = self.gate(h).argmax(-1), torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(h[chosen == i])
        return self.out(h + y)


def test_a_layer_that_no_row_reaches_is_left_and_named():
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(256, 8)
    result = bough.prune(model, x[:8], bough.Budget(params="60%"))
    done = refit(model, result.model, result.plan, x.split(64))
    assert torch.equal(done.model.experts[2][2].bias, result.model.experts[2][2].bias)
    assert "no row" in done.skipped["experts.2.2.weight"]
    assert all(np.isfinite([layer.before, layer.after]).all() for layer in done.layers)


@pytest.mark.parametrize("free", [True, False])
def test_a_block_without_rows_stays(free):
    torch.manual_seed(0)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    sums = NormalEquations()
    sums.add([x, x[:0]], [y, y[:0]], shift="b" * free)
    start, shift = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    found = sums.solve(start, {"b": shift}, ridge=1e-3)
    assert torch.equal(found.weight[1], start[1])
    assert not free or torch.equal(found.shifts["b"][1], shift[1])


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_what_does_not_vary_has_no_say(ridge):
    torch.manual_seed(0)
    x = torch.rand(96, 4, dtype=torch.float64) * 0 + torch.tensor([1.1, 0.7, 3.0, 0.0], dtype=torch.float64)
    y = torch.randn(96, 2, dtype=torch.float64)
    sums = NormalEquations()
    sums.add([x], [y], shift="b")
    start = torch.randn(1, 4, 2, dtype=torch.float64)
    found = sums.solve(start, {"b": torch.zeros(1, 2, dtype=torch.float64)}, ridge=ridge)
    assert torch.allclose(found.weight, start, atol=1e-2)
    assert torch.allclose(x @ found.weight[0] + found.shifts["b"][0], y.mean(0).expand(96, 2))


class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.u, self.d, self.h = (nn.Linear(a, b, bias=False) for a, b in ((16, 16), (16, 64), (64, 16), (16, 5)))

    def forward(self, x):
        x = self.e(x)
        return self.h(x + self.d(F.relu(self.u(x))))


def test_padding_does_not_switch_the_fit_off():
    torch.manual_seed(0)
    model, x = Stream(), torch.randn(512, 16) @ torch.randn(16, 16) / 4
    graph = bough.trace(model, x[:2])
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep={"u": 32})
    padded = x.clone()
    padded[0] = 0
    errors = []
    for data in (x, padded):
        done = refit(model, bough.cut(model, plan), plan, data.split(64))
        errors.append(float((done.model(x) - model(x)).square().mean().detach()))
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
