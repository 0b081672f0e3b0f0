"""Weights that are read more than once, constants of each use, and what is told not to be solvable."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import PlanError
from bough.recovery import refit
from tests.recovery.cut_models import batches, cut_to_half, halved
from tests.zoo import randomize


class Again(nn.Module):
    """`a` runs three times: on what no cut changes, and on what one does."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.down, self.head = nn.Linear(5, 5), nn.Linear(5, 16), nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        same = self.a(x)
        return torch.cat([same, self.head(torch.tanh(self.a(torch.tanh(self.a(self.down(torch.tanh(self.up(x))))))))], -1)


class Shifted(nn.Module):
    """`shift` may be left out, so nothing but the plan tells it from labels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x, shift=None):
        return self.b(torch.tanh(self.a(x if shift is None else x + shift)))


@pytest.mark.parametrize("named", [False, True])
def test_a_batch_has_the_parts_that_the_plan_was_traced_with(named):
    model, data = randomize(Shifted()).eval(), [(x, 5 * x.flip(0), x.argmax(1)) for x in batches((5,))]
    example = data[0][:2]
    graph = bough.trace(model, dict(zip(("x", "shift"), example, strict=True)) if named else example)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep={"a": 8})
    plan = bough.Plan.from_json(plan.to_json())
    small = bough.cut(model, plan)
    summed = [(x + shift, label) for x, shift, label in data]
    plain = dataclasses.replace(plan, inputs=1)
    found, wanted = refit(model, small, plan, data).model, refit(model, small, plain, summed).model
    torch.testing.assert_close(found.state_dict(), wanted.state_dict())


@pytest.mark.parametrize("memory", [2**31, 0])
def test_a_layer_that_runs_again_is_fitted_to_all_it_reads(memory):
    model = randomize(Again()).eval()
    data = batches((5,), n=8)
    small, plan = cut_to_half(model, "up", data[0])
    found = refit(model, small, plan, data, memory=memory, ridge=0).model
    x = torch.cat(data)

    def read(net, first):
        """What the three runs of `first` and the head read; `first` gives way to another layer after the solution."""
        one = net.down(torch.tanh(net.up(x)))
        two = torch.tanh(first(one))
        return x, one, two, torch.tanh(first(two))

    def solved(inputs, targets):
        rows = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
        return torch.linalg.lstsq(rows, targets).solution.detach()

    theirs, before = read(model, model.a), read(found, small.a)
    wanted = solved(torch.cat(before[:3]), model.a(torch.cat(theirs[:3])))
    torch.testing.assert_close(torch.cat([found.a.weight.T, found.a.bias[None]]).detach(), wanted)
    wanted = solved(read(found, found.a)[3], model.head(theirs[3]))
    torch.testing.assert_close(torch.cat([found.head.weight.T, found.head.bias[None]]).detach(), wanted)


def test_an_output_that_is_changed_in_place_is_fitted_as_it_was():
    class Gated(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.i, self.gate, self.up, self.o = nn.Linear(5, 16), nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 3)
            self.inplace = inplace

        def forward(self, x):
            x = torch.tanh(self.i(x))
            return self.o(F.silu(self.gate(x), inplace=self.inplace) * self.up(x))

    data, found = batches((5,)), []
    for inplace in (False, True):
        model = randomize(Gated(inplace)).eval()
        small, plan = cut_to_half(model, "i", data[0])
        found.append(refit(model, small, plan, data, skips=False).model.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)


class Levels(nn.Module):
    """One layer for two levels, each with a norm, bias or nothing of its own."""

    def __init__(self, kind):
        super().__init__()
        self.i, self.j, self.kind = nn.Linear(5, 16), nn.Linear(5, 16), kind
        self.w, self.b, self.c = nn.Parameter(torch.zeros(4, 16)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.n1, self.n2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        low, high = torch.tanh(self.i(x)), torch.tanh(self.j(x) + 1)
        high = high + 0 * low  # one group
        if self.kind == "norms":
            return self.n1(F.linear(low, self.w)), self.n2(F.linear(high, self.w))
        return F.linear(low, self.w, self.b), F.linear(high, self.w, self.c if self.kind == "biases" else None)


@pytest.mark.parametrize("kind", ["norms", "biases", "one bias"])
def test_a_weight_of_several_constants(kind):
    model = randomize(Levels(kind)).eval()
    data = batches((5,), n=8)
    small, plan = cut_to_half(model, "i", data[0])
    found = refit(model, small, plan, data, ridge=0).model
    x = torch.cat(data)
    rows = [torch.tanh(f) for f in (small.i(x), small.j(x) + 1)]
    theirs = [torch.tanh(f) @ model.w.T for f in (model.i(x), model.j(x) + 1)]
    own = [0, 1] if kind != "one bias" else [0, None]  # which rows have which constant
    columns = [torch.stack([torch.full((len(x),), float(o == k)) for k in (0, 1)[: 1 + (kind != "one bias")]], 1) for o in own]
    joined = torch.cat([torch.cat(pair, 1) for pair in zip(rows, columns, strict=True)])
    wanted = torch.linalg.lstsq(joined.double(), torch.cat(theirs)).solution.detach()
    torch.testing.assert_close(found.w.T.detach(), wanted[:8])
    if kind == "norms":
        moved = [(n.running_mean - m.running_mean) for n, m in ((found.n1, model.n1), (found.n2, model.n2))]
        torch.testing.assert_close(torch.stack(moved), -wanted[8:])
    else:
        biases = torch.stack([found.b - model.b, found.c - model.c])[: 1 + (kind == "biases")].detach()
        torch.testing.assert_close(biases, wanted[8:])


def test_branches_that_are_added_make_up_for_each_other():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.a, self.b = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(8, 8, 1, bias=False),
                nn.Conv2d(8, 8, 3, padding=1, bias=False),
            )
            self.n1, self.n2, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = torch.relu(self.i(x))
            return self.head(torch.relu(self.n1(self.a(x)) + self.n2(self.b(x))))

    model = randomize(Branches()).eval()
    data = batches((3, 6, 6))
    small, plan = cut_to_half(model, "i", data[0])
    sums = []
    for skips in (False, True):
        seen = []
        for net in (model, refit(model, small, plan, data, skips=skips).model):
            x = torch.relu(net.i(torch.cat(data)))
            seen.append(net.n1(net.a(x)) + net.n2(net.b(x)))
        sums.append((seen[0] - seen[1]).square().sum().item())
    assert sums[1] < sums[0]


@pytest.mark.parametrize(
    ("added", "scale"), [("bias", {"alpha": 2.0}), ("residual", {}), ("number", {}), ("bias", {"beta": 0.5})]
)
def test_what_is_no_bias_is_told(added, scale):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.r, self.w, self.head = (
                nn.Linear(5, 8),
                nn.Linear(5, 4),
                nn.Parameter(torch.zeros(8, 4)),
                nn.Linear(8, 2),
            )
            self.bias, self.number = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            h = torch.tanh(self.i(x))
            one = self.r(x) if added == "residual" else getattr(self, added)
            return torch.addmm(one, h, self.w, **scale), self.head(h)

    model = randomize(Joined()).eval()
    data = batches((5,))
    small, plan = cut_to_half(model, "w", data[0])
    result = refit(model, small, plan, data)
    assert "something else than a bias" in result.skipped["w"]
    assert [layer.name for layer in result.layers] == ["head.weight"]


class Read(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.i, self.kind = nn.Linear(5, 8), kind
        if kind == "einsum":
            self.w = nn.Parameter(torch.zeros(3, 8, 4))
        else:
            self.pair = nn.Bilinear(8, 8, 4)

    def forward(self, x):
        h = torch.tanh(self.i(x))
        return torch.einsum("bi,eio->bo", h, self.w) if self.kind == "einsum" else self.pair(h, h.cos())


@pytest.mark.parametrize(
    ("kind", "message"), [("einsum", "dim of the weight alone"), ("bilinear", "No product of an activation")]
)
def test_what_least_squares_can_not_solve_is_told(kind, message):
    model, (x,) = randomize(Read(kind)).eval(), batches((5,), n=1)
    small, plan = cut_to_half(model, "i", x)
    with pytest.raises(PlanError, match=message):
        refit(model, small, plan, [x])


def test_a_rebuilt_model_is_told():
    model, small, plan, data = halved("mlp")
    with pytest.raises(PlanError, match="rebuild"):
        refit(model, small, dataclasses.replace(plan, rebuild=True), data)


def test_a_bias_that_is_a_buffer_stays():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.w = nn.Linear(5, 8), nn.Parameter(torch.zeros(4, 8))
            self.register_buffer("b", torch.randn(4))

        def forward(self, x):
            return F.linear(torch.tanh(self.i(x)), self.w, self.b)

    model = randomize(Held()).eval()
    data = batches((5,))
    small, plan = cut_to_half(model, "i", data[0])
    found, x = refit(model, small, plan, data, ridge=0).model, torch.cat(data)
    wanted = torch.linalg.lstsq(torch.tanh(small.i(x)), model(x) - model.b).solution.detach()
    torch.testing.assert_close(found.w.T.detach(), wanted)
    assert torch.equal(found.b, model.b)
