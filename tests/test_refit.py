"""Refit restores what is a combination of what was kept, never makes a layer worse, and equals least squares by hand."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import PlanError
from bough.recovery import merge, recalibrate, refit, refit_
from bough.recovery.least_squares import Sums
from tests.zoo import randomize
from tests.zoo.small import ZOO

SKIPPED = {"weight_norm_hook", "weight_norm_parametrization"}


class Heads(nn.Module):
    """Attention with 4 query heads on `kv` key-value heads."""

    def __init__(self, kv):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 3 * kv), nn.Linear(6, 3 * kv)
        self.o, self.head = nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x):
        b, n, _ = x.shape
        q, k = (f(x).view(b, n, -1, 3).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(b, n, k.shape[1], -1).transpose(1, 2)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.o(y.transpose(1, 2).reshape(b, n, -1)))


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Convs(nn.Module):
    """Strided, depthwise, pointwise, grouped; a batch norm takes the constant of one without bias."""

    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.p, self.norm = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.g, self.t = nn.Conv2d(6, 4, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x):
        x = F.relu(self.norm(self.p(F.relu(self.d(F.relu(self.a(x)))))))
        return self.t(F.relu(self.g(x)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(14, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.d(F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], -1))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x)


def twice(model, *made):
    """Makes the second half of what each named layer makes the same as the first."""
    with torch.no_grad():
        for name in made:
            for p in model.get_submodule(name).parameters():
                half = p.shape[0] // 2
                p[half:] = p[:half]
    return model


CASES = {  # name: (model, layers with twins, group to halve, shape of a sample)
    "chain": (Chain, ("a",), "a", (5,)),
    "convolutions": (Convs, ("a", "d"), "a", (3, 12, 12)),
    "concatenation": (Concatenated, ("a",), "a", (5,)),
    "feed-forward": (Residual, ("up",), "up", (5,)),
    "heads": (lambda: Heads(4), ("q", "k", "v"), "q/head", (7, 6)),
    "grouped queries": (lambda: Heads(2), ("q", "k", "v"), None, (7, 6)),
}


def cut_to_half(model, group, example):
    graph = bough.trace(model, example)
    group = group or next(g.name for g in graph.groups if g.kind == "head" and g.size == 2)
    found = graph.group(group)
    scores = {g.name: np.arange(g.size, 0, -1.0) for g in graph.groups}
    plan = bough.plan(graph, scores, keep={group: found.size // 2})
    return bough.cut(model, plan), plan


def batches(shape, n=4, size=24):
    torch.manual_seed(1)
    return [torch.randn(size, *shape, dtype=torch.float64) for _ in range(n)]


@pytest.mark.parametrize("case", CASES)
def test_twins_of_what_is_kept_are_made_up_for_exactly(case):
    build, made, group, shape = CASES[case]
    model = twice(randomize(build()).eval(), *made)
    data = batches(shape)
    small, plan = cut_to_half(model, group, data[0])
    assert not torch.allclose(small(data[0]), model(data[0]), atol=1e-3)
    result = refit(model, small, plan, data, ridge=0)
    fresh = torch.randn(9, *shape, dtype=torch.float64)
    torch.testing.assert_close(result.model(fresh), model(fresh), rtol=0, atol=1e-8)
    assert not result.skipped


@pytest.mark.parametrize("case", CASES)
def test_twins_are_merged_exactly_without_data(case):
    build, made, group, shape = CASES[case]
    model = twice(randomize(build()).eval(), *made)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (x,) = batches(shape, n=1)
    _, plan = cut_to_half(model, group, x)
    merged = merge(bough.trace(model, x), plan)
    torch.testing.assert_close(merged.model(x), model(x), rtol=0, atol=1e-12)
    assert not merged.skipped
    assert all(distance < 1e-6 for distance in merged.groups.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_merged_is_the_most_alike_by_hand():
    model = randomize(Chain()).eval()
    (x,) = batches((5,), n=1)
    small, plan = cut_to_half(model, "a", x)
    vectors = torch.cat([model.a.weight, model.a.bias[:, None]], 1).detach()
    expected = small.b.weight.detach().clone()
    for unit in range(4, 8):
        cosines = F.cosine_similarity(vectors[:4], vectors[unit][None])
        heir = int(cosines.argmax())
        share = max(float(cosines[heir]), 0) * vectors[unit].norm() / vectors[heir].norm()
        expected[:, heir] += share * model.b.weight.detach()[:, unit]
    torch.testing.assert_close(merge(bough.trace(model, x), plan).model.b.weight.detach(), expected)


def test_multiples_before_a_relu_are_merged_exactly():
    model = twice(randomize(Chain()).eval(), "a")
    with torch.no_grad():
        for p in model.a.parameters():
            p[4:] *= 3
    (x,) = batches((5,), n=1)
    _, plan = cut_to_half(model, "a", x)
    torch.testing.assert_close(merge(bough.trace(model, x), plan).model(x), model(x), rtol=0, atol=1e-12)


def test_residual_stream_that_is_cut():
    model = twice(randomize(Residual()).eval(), "stem", "down")
    data = batches((5,))
    small, plan = cut_to_half(model, "stem", data[0])
    result = refit(model, small, plan, data, ridge=0)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=0, atol=1e-8)


def test_head_dims_of_each_heads_own():
    model = randomize(Heads(4)).eval()
    with torch.no_grad():
        for p in model.v.parameters():
            dims = p.view(4, 3, -1)
            for head in range(4):
                dims[head, head % 3] = dims[head, (head + 1) % 3]
    data = batches((7, 6))
    graph = bough.trace(model, data[0])
    scores = bough.score(graph, bough.importance.Magnitude())
    scores["v/head_dim/each"] = np.stack([np.arange(3) != head % 3 for head in range(4)]).astype(float)
    plan = bough.plan(graph, scores, keep={"v/head_dim": 2}, ragged=True)
    assert plan.ragged == {"v/head_dim": "q/head"}
    result = refit(model, bough.cut(model, plan), plan, data, ridge=0)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=0, atol=1e-8)


def test_layers_left_out_are_made_up_for_by_those_that_stay():
    torch.manual_seed(0)
    model, inputs = ZOO["encoder"]()
    model = randomize(model.eval())
    data = batches(inputs.shape[1:])
    graph = bough.trace(model, data[0])
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, keep=0.9, drop=["1.layers.0"])
    small = bough.cut(model, plan)
    result = refit(model, small, plan, data)
    assert any("linear2" in layer.name for layer in result.layers)
    error = [sum(float((model(x) - m(x)).detach().square().mean()) for x in data) for m in (small, result.model)]
    assert error[1] < error[0]


def halved(name, n=3):
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    shape = (16, *inputs.shape[1:])
    floats = inputs.is_floating_point()
    data = [torch.randn(shape, dtype=torch.float64) if floats else torch.randint(0, 20, shape) for _ in range(n)]
    model = randomize(model.eval())
    graph = bough.trace(model, data[0])
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    return model, bough.cut(model, plan), plan, data


@pytest.mark.parametrize("name", [n for n in ZOO if n != "chunk_and_slice"])
def test_no_layer_gets_worse_and_nothing_else_changes(name):
    model, small, plan, data = halved(name)
    small.train()
    before = {
        k: v.clone() for k, v in (*model.state_dict().items(), *(("small." + k, v) for k, v in small.state_dict().items()))
    }
    result = refit(model, small, plan, data)
    assert result.layers
    assert all(layer.after <= layer.before * (1 + 1e-9) + 1e-12 for layer in result.layers)
    assert bool(result.skipped) == (name in SKIPPED)
    after = {**model.state_dict(), **{"small." + k: v for k, v in small.state_dict().items()}}
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(m.training for m in result.model.modules())
    fitted = {layer.name for layer in result.layers}
    for key, value in small.state_dict().items():
        if not key.endswith(("bias", "running_mean")) and key not in fitted:
            assert torch.equal(value, result.model.state_dict()[key]), key
    error = [sum(float((model(x) - m.eval()(x)).detach().square().mean()) for x in data) for m in (small, result.model)]
    assert error[1] < error[0]


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


class Again(nn.Module):
    """`a` runs three times: on what no cut changes, and on what one does."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.down, self.head = nn.Linear(5, 5), nn.Linear(5, 16), nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        same = self.a(x)
        return torch.cat([same, self.head(torch.tanh(self.a(torch.tanh(self.a(self.down(torch.tanh(self.up(x))))))))], -1)


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
        self.i, self.w, self.kind = nn.Linear(5, 8), nn.Parameter(torch.zeros(3, 8, 4)), kind
        self.pair = nn.Bilinear(8, 8, 4)

    def forward(self, x):
        h = torch.tanh(self.i(x))
        return torch.einsum("bi,eio->bo", h, self.w) if self.kind == "einsum" else self.pair(h, h.cos())


@pytest.mark.parametrize(("kind", "told"), [("einsum", "dim of the weight alone"), ("bilinear", "No product of an activation")])
def test_what_least_squares_can_not_solve_is_told(kind, told):
    model, (x,) = randomize(Read(kind)).eval(), batches((5,), n=1)
    small, plan = cut_to_half(model, "i", x)
    with pytest.raises(PlanError, match=told):
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


@pytest.mark.parametrize("name", ["residual", "encoder", "transposed"])
@pytest.mark.parametrize("memory", [2**31, 0])
def test_batches_do_not_matter_and_neither_does_memory(name, memory):
    model, small, plan, data = halved(name)
    whole = refit(model, small, plan, [torch.cat(data)]).model.state_dict()
    parts = refit(model, small, plan, torch.cat(data).split(11), memory=memory).model.state_dict()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-6, atol=1e-7)


def stream_of(model, x):
    """What the head of a residual net reads."""
    read = []
    hook = model.head.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    model.eval()(x)
    hook.remove()
    return read[0]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.ModuleList(nn.Conv1d(a, b, 1, bias=False) for _ in range(3)) for a, b in ((6, 12), (12, 6)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for up, down, norm in zip(self.up, self.down, self.norms, strict=True):
            x = x + norm(down(F.relu(up(x))))
        return self.head(x.mean(2))


def test_skips_are_made_up_for():
    model = randomize(Blocks()).eval()
    data = batches((6, 4))
    graph = bough.trace(model, data[0])
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    small = bough.cut(model, plan)
    expected = stream_of(model, data[0])
    plain, corrected = (refit(model, small, plan, data, skips=skips, ridge=0).model for skips in (False, True))
    errors = [float((stream_of(m, data[0]) - expected).square().mean()) for m in (plain, corrected)]
    assert errors[1] < 0.95 * errors[0]


class Experts(nn.Module):
    """Each row goes through one of three experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(8, 3), nn.Linear(8, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 16)), nn.Parameter(torch.randn(3, 16, 8))

    def forward(self, x):
        expert = self.gate(x).topk(1, dim=-1)[1][:, 0]
        order, n = expert.argsort(), self.gate.out_features
        ends = torch.histc(expert.float(), bins=n, min=0, max=n - 1).cumsum(0).to(torch.int32)
        y = torch._grouped_mm(F.relu(torch._grouped_mm(x[order], self.up, ends)), self.down, ends)
        return self.head(y[order.argsort()])


@pytest.mark.parametrize("dropped", [False, True])
def test_experts_are_fitted_on_the_rows_routed_to_them(dropped):
    torch.manual_seed(0)
    model = Experts().eval()  # in float32: grouped products have no float64
    with torch.no_grad():
        model.up[..., 8:] = model.up[..., :8]
        model.gate.bias[2] = -1e3 * dropped  # nothing goes to an expert that is dropped
    data = [torch.randn(200, 8) for _ in range(3)]
    graph = bough.trace(model, data[0])
    scores = {g.name: np.arange(g.size, 0, -1.0) for g in graph.groups}
    plan = bough.plan(graph, scores, keep={"up#2": 8, **({"up/expert": 2} if dropped else {})})
    small = bough.cut(model, plan)
    if dropped:
        assert tuple(small.down.shape) == (2, 8, 8)
    result = refit(model, small, plan, data, ridge=0)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=1e-3, atol=1e-3)
    assert "depends on data" in {layer.name: layer.note for layer in result.layers}["down"]


def test_few_rows_are_told():
    model, small, plan, data = halved("mlp")
    assert all("few" in layer.note for layer in refit(model, small, plan, [data[0][:9]]).layers)
    assert not any(layer.note for layer in refit(model, small, plan, [torch.randn(999, *data[0].shape[1:]).double()]).layers)


def test_memory_of_sums_does_not_grow():
    sums, sizes = Sums(), []
    for _ in range(3):
        sums.add([torch.randn(500, 4)], [torch.randn(500, 3)])
        sizes.append(sum(t.numel() for part in sums._parts.values() for t in part))
    assert sizes == [8 * 5 + 3] * 3


def test_a_failure_leaves_the_model_as_it_was():
    model, small, plan, data = halved("residual")
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(PlanError, match="not finite"):
        refit_(model, small, plan, [data[0], data[1] * float("nan")])
    with pytest.raises(PlanError, match="can not run on a batch"):
        refit_(model, small, plan, [data[0], data[1][:, :2]])
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in before.items())
    with pytest.raises(PlanError, match="once only"):
        refit_(model, small, plan, iter(data))
    with pytest.raises(PlanError, match="are one"):
        refit_(model, model, plan, data)
    with pytest.raises(PlanError, match="not cut by this plan"):
        refit_(model, copy.deepcopy(model), plan, data)
    with pytest.raises(PlanError, match="another model"):
        refit_(copy.deepcopy(small), small, plan, data)
    with pytest.raises(PlanError, match="another model"):
        merge(bough.trace(small, data[0]), plan)


def test_a_model_that_changes_its_input_changes_no_data():
    class Changing(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(2))

    layers = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)
    model, plain = (randomize(made).eval() for made in (Changing(*layers), nn.Sequential(nn.Linear(5, 5), *layers)))
    with torch.no_grad():
        plain[0].weight.copy_(2 * torch.eye(5))
        plain[0].bias.zero_()
    data = batches((5,))
    before = copy.deepcopy(data)
    small, plan = cut_to_half(model, "0", data[0].clone())
    found = refit(model, small, plan, data)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
    small, plan = cut_to_half(plain, "1", data[0])
    torch.testing.assert_close(found.model[2].weight, refit(plain, small, plan, data).model[3].weight)


def test_prune_refits():
    model, _, _, data = halved("mlp")
    result = bough.prune(model, data[0], bough.Budget(macs="60%"), refit=True, data=data)
    assert result.report.equal
    assert result.refit is not None
    assert result.refit.model is result.model
    assert "refitted" in str(result)
    with pytest.raises(PlanError, match="needs data"):
        bough.prune(model, data[0], bough.Budget(macs="60%"), refit=True)


class ByName(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.conv, self.norm = layers[0], layers[1]

    def forward(self, x):
        return self.norm(input=self.conv(x))


def test_recalibrate_is_the_mean_and_variance_of_what_norms_read():
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))).eval()
    data = batches((3, 6, 6), n=3) + batches((3, 6, 6), n=1, size=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert recalibrate(model, data) is model
    seen = model[0](torch.cat(data)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, seen.mean(1))
    torch.testing.assert_close(model[1].running_var, seen.var(1))
    assert not any(m.training for m in model.modules())
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["1.running_mean", "1.running_var"]
    by_name = ByName(model)
    seen = recalibrate(by_name, [torch.cat(data)]).norm.running_mean
    torch.testing.assert_close(seen, by_name.conv(torch.cat(data)).mean((0, 2, 3)))
    with pytest.raises(PlanError, match="gives 1 one value of each channel"):
        recalibrate(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.randn(5, 3).split(4))
    with pytest.raises(PlanError, match="no batch norm"):
        recalibrate(nn.Linear(2, 2), [torch.randn(3, 2)])
    with pytest.raises(PlanError, match="nothing"):
        recalibrate(model, [])


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
    sums = Sums()
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
    sums = Sums()
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


def test_data_that_can_not_be_gone_through_again_is_refused_at_once():
    torch.manual_seed(0)
    model, x = Chain(), torch.randn(64, 5)
    for data in ([], (b for b in x.split(16))):
        with pytest.raises(PlanError, match="the data"):
            bough.prune(model, x[:1], bough.Budget(params="60%"), data=data, refit=True)
