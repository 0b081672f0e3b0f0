"""Ragged cuts: every head its own head dims, every convolution group its own channels; and where that must not be."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import PlanError
from bough.graph import Ragged
from bough.planning.budget import LeastOfTied
from tests.zoo import randomize
from tests.zoo.small_sequence import EinsumAttention

FEW = settings(max_examples=6, deadline=None)


class Attention(nn.Module):
    """Attention between two linear layers; `kv` heads serve `kv * repeat` queries' heads. The flags are what may be odd."""

    def __init__(self, kv: int = 3, repeat: int = 1, dim: int = 6, fused: bool = False, flash: bool = True, odd: str = ""):
        super().__init__()
        self.kv, self.heads, self.dim, self.fused, self.flash, self.odd = kv, kv * repeat, dim, fused, flash, odd
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        if fused:
            self.qkv = nn.Linear(8, (self.heads + 2 * kv) * dim)
        else:
            self.q, self.k, self.v = nn.Linear(8, self.heads * dim), nn.Linear(8, kv * dim), nn.Linear(8, kv * dim)
        self.out = nn.Linear(self.heads * dim, 8)
        if odd == "norm":
            self.norm = nn.RMSNorm(dim)
        if odd == "scale":
            self.scale = nn.Parameter(torch.randn(dim))
        if odd == "scale of each head":
            self.scale = nn.Parameter(torch.randn(self.heads * dim))
        if odd == "rotary":
            self.register_buffer("angles", torch.randn(7, dim // 2))
        if odd in ("talking", "talking values", "softmax of heads"):
            self.mix = nn.Parameter(torch.randn(self.heads, self.heads))

    def forward(self, x):
        x = self.embed(x)
        sizes = (self.heads * self.dim, self.kv * self.dim, self.kv * self.dim)
        q, k, v = self.qkv(x).split(sizes, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (t.view(len(x), x.shape[1], -1, self.dim).transpose(1, 2) for t in (q, k, v))
        if self.odd == "norm":
            q = self.norm(q)
        elif self.odd == "scale":
            q = q * self.scale
        elif self.odd == "scale of each head":
            q = q * self.scale.view(self.heads, 1, self.dim)
        elif self.odd == "rotary":
            q, k = (self._rotated(t) for t in (q, k))
        elif self.odd == "unit length":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        elif self.odd == "mean head":
            q = q - q.mean(1, keepdim=True)
        elif self.odd == "running head":
            v = v.cumsum(1)
        k, v = (t[:, :, None].expand(-1, -1, self.heads // self.kv, -1, -1).reshape(q.shape) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v) if self.flash else self._plainly(q, k, v)
        if self.odd == "talking values":
            y = torch.einsum("bhnd,hg->bgnd", y, self.mix)
        elif self.odd == "softmax of heads":
            y = y * y.softmax(1)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))

    def _plainly(self, q, k, v):
        weights = q @ k.transpose(-2, -1) * (1.0 if self.odd == "unit length" else self.dim**-0.5)
        if self.odd == "talking":
            weights = torch.einsum("bhnm,hg->bgnm", weights, self.mix)
        return weights.softmax(-1) @ v

    def _rotated(self, t):
        cos, sin = torch.cat([self.angles, self.angles], -1).cos(), torch.cat([self.angles, self.angles], -1).sin()
        return t * cos + torch.cat([-t[..., self.dim // 2 :], t[..., : self.dim // 2]], -1) * sin


class AcrossHeads(nn.Module):
    """Every head's queries meet every head's keys."""

    def __init__(self):
        super().__init__()
        self.dim, self.embed, self.q, self.k, self.head = (
            6,
            nn.Linear(5, 8),
            nn.Linear(8, 18),
            nn.Linear(8, 18),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.embed(x)
        q, k = (t.unflatten(-1, (-1, self.dim)) for t in (self.q(x), self.k(x)))
        pairs = torch.einsum("bnhd,bngd->bnhg", q, k)
        return self.head(x + (pairs + pairs.transpose(2, 3)).relu().sum((2, 3))[..., None])


class Swapped(nn.Module):
    """Each head's dims are two halves that are turned against each other by angles of each head's own."""

    def __init__(self, heads: int = 3, half: int = 4):
        super().__init__()
        self.heads, self.embed, self.head = heads, nn.Linear(5, 2 * heads * half), nn.Linear(2 * heads * half, 3)
        self.angle = nn.Parameter(torch.randn(heads * half))

    def forward(self, x):
        x = self.embed(x).unflatten(-1, (self.heads, -1))
        a, b = x.chunk(2, -1)
        angle = self.angle.view(self.heads, -1)
        return self.head(torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(2))


class Grouped(nn.Module):
    """Channels per group between a grouped convolution and a dense one."""

    def __init__(self, groups: int = 3, each: int = 4, again: bool = False, shuffle: bool = False):
        super().__init__()
        self.shuffle = groups if shuffle else 0
        self.stem, self.conv = nn.Conv2d(3, 2 * groups, 1), nn.Conv2d(2 * groups, groups * each, 3, groups=groups)
        self.norm = nn.BatchNorm2d(groups * each)
        self.deep = nn.Conv2d(groups * each, groups * each, 3, padding=1, groups=groups * each)
        self.last = nn.Conv2d(groups * each, 2 * groups, 1, groups=groups if again else 1)
        self.head = nn.Linear(2 * groups, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(self.stem(x))))
        if self.shuffle:
            x = x.unflatten(1, (self.shuffle, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(self.last(F.relu(self.deep(x))).mean((2, 3)))


TOKENS, IMAGE = torch.randn(2, 7, 5).double(), torch.randn(2, 3, 6, 6).double()


def built(model):
    return randomize(model).eval(), IMAGE if isinstance(model, Grouped) else TOKENS


def traced(model):
    model, inputs = built(model)
    return bough.trace(model, inputs), inputs


def free(graph):
    return {r.group: r.over for r in graph.ragged if r.reason is None}


def masked(model, plan):
    """Zeros written out here, from nothing but plan.kept; layers left out (residual ones) are all zero."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        for layer in plan.left_out:
            for tensor in out.get_submodule(layer).parameters():
                tensor.zero_()
        for name, tensor in out.named_parameters():
            for dim, kept in plan.kept.get(name, {}).items():
                gone = sorted(set(range(tensor.shape[dim])) - set(kept))
                tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
    return out


def check(graph, inputs, plan):
    """Cut == masked; by hand where no statistic runs, and always by `verify`."""
    model = graph.model
    small = bough.cut(model, plan)
    if not plan.renormalizing:
        torch.testing.assert_close(small(inputs), masked(model, plan)(inputs), rtol=0, atol=1e-9)
    report = bough.verify(model, small, plan, inputs)
    assert report.max_error < 1e-9
    assert report.scale > 1e-3
    again = bough.trace(small, inputs).cost()
    assert (again.params, again.macs) == (plan.cost.params, plan.cost.macs)
    assert bough.Plan.from_json(plan.to_json()) == plan
    return small


@st.composite
def attentions(draw):
    fused, flash = draw(st.booleans()), draw(st.booleans())
    return Attention(draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(2, 6)), fused, flash)


@FEW
@given(attentions(), st.integers(0, 99), st.data())
def test_each_head_keeps_dims_of_its_own(model, seed, data):
    graph, inputs = traced(model)
    assert sum(graph.group(n).size == model.dim for n in free(graph)) >= 2  # of queries with keys, and of values
    counts = LeastOfTied({g.name: data.draw(st.integers(1, g.size), g.name) for g in graph.groups})
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(seed)), keep=counts, ragged=True)
    assert plan.ragged == {n: over for n, over in free(graph).items() if plan.groups[n][0] < plan.groups[n][1]}
    check(graph, inputs, plan)


@FEW
@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 99), st.data())
def test_each_convolution_group_keeps_channels_of_its_own(groups, each, seed, data):
    graph, inputs = traced(Grouped(groups, each))
    (name,) = free(graph)
    counts = {g.name: data.draw(st.integers(1, g.size), g.name) for g in graph.groups}
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(seed)), keep=counts, ragged=True)
    assert (name in plan.ragged) == (counts[name] < each)
    check(graph, inputs, plan)


@FEW
@given(st.integers(2, 4), st.integers(2, 5), st.integers(0, 99))
def test_each_head_keeps_pairs_of_its_own(heads, half, seed):
    graph, inputs = traced(Swapped(heads, half))
    ((name, over),) = free(graph).items()
    assert (graph.group(name).size, graph.group(over).size) == (half, heads)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(seed)), keep=0.5, ragged=True)
    check(graph, inputs, plan)


def test_several_query_heads_of_a_key_head_share_its_dims():
    graph, inputs = traced(Attention(2, 3))
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep={"q/head_dim": 2}, ragged=True)
    rows = np.array(plan.kept["q.weight"][0]).reshape(2, 3, 2) % 6
    keys = np.array(plan.kept["k.weight"][0]).reshape(2, 2) % 6
    assert (rows == keys[:, None]).all()
    assert (keys[0] != keys[1]).any()
    check(graph, inputs, plan)


@pytest.mark.parametrize("odd", ["scale of each head", "unit length", "talking"])
def test_what_works_on_each_head_alone_is_no_obstacle(odd):
    graph, inputs = traced(Attention(odd=odd, flash=odd == "scale of each head"))
    dims = [n for n in free(graph) if graph.group(n).size == 6]
    assert len(dims) == 2
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(3)), keep=0.5, ragged=True)
    assert plan.ragged.keys() >= {*dims}
    check(graph, inputs, plan)


def peculiar(odd):
    return AcrossHeads() if odd == "across heads" else Attention(odd=odd)


SHARED = {
    "norm": ("q/head_dim", "a statistic runs over it"),
    "scale": ("scale/head_dim", "scale has it without q/head"),
    "rotary": ("q/head_dim", "angles has it without q/head"),
    "mean head": ("q/head_dim", "it is used without the other (mean"),
    "running head": ("v/head_dim", "several units of the other are put together (cumsum"),
    "softmax of heads": ("v/head_dim", "several units of the other are put together (_softmax"),
    "across heads": ("q/head_dim", "it is added up across units of the other (einsum"),
    "talking values": ("v/head_dim", "out.weight has it without mix/head"),
}


@pytest.mark.parametrize("odd", SHARED)
def test_what_the_heads_share_keeps_the_same_dims_for_all(odd):
    graph, inputs = traced(peculiar(odd))
    name, why = SHARED[odd]
    assert name not in free(graph)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep=0.5, ragged=True)
    assert plan.alike[name].startswith(why)
    assert f"not ragged: {name}: {why}" in str(plan)
    assert plan.groups[name][0] < plan.groups[name][1]
    check(graph, inputs, plan)


def test_a_weight_that_is_undefined_where_masked_keeps_the_same_dims_for_all():
    model = Attention()
    nn.utils.parametrizations.weight_norm(model.q)
    graph, inputs = traced(model)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep={"v/head_dim": 3}, ragged=True)
    (why,) = {r.reason for r in graph.ragged if r.reason}
    assert why.startswith("where it is masked nothing is defined (_weight_norm_interface")
    report = bough.verify(graph.model, bough.cut(graph.model, plan), plan, inputs)
    assert report.max_error < 1e-9


@pytest.mark.parametrize("odd", ["mean head", "running head", "softmax of heads", "across heads"])
def test_what_is_refused_would_not_equal_the_masked_model(odd):
    graph, inputs = traced(peculiar(odd))
    name = SHARED[odd][0]
    (over,) = {r.over for r in graph.ragged if r.group == name}
    scores = {**bough.score(graph, bough.importance.Random(0)), f"{name}/each": np.random.default_rng(0).random((3, 6))}
    graph = dataclasses.replace(graph, ragged=(Ragged(name, over, None),))
    plan = bough.plan(graph, scores, keep={name: 3}, ragged=True)
    assert plan.ragged == {name: over}
    apart = bough.cut(graph.model, plan)(inputs) - masked(graph.model, plan)(inputs)
    assert apart.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Grouped(again=True), "last.weight has it not behind stem on one axis"),
        (Grouped(shuffle=True), "deep.weight has it not behind stem on one axis"),
        (EinsumAttention(), "q has it not behind o/head on one axis"),
    ],
)
def test_axes_that_can_not_tell(model, why):
    graph, inputs = traced(model)
    assert any(why in (r.reason or "") for r in graph.ragged)
    check(graph, inputs, bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep=0.5, ragged=True))


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("criterion", [bough.importance.Magnitude, bough.importance.GroupNorm])
def test_scores_for_each_add_up_to_the_scores(criterion, p):
    graph, _ = traced(Attention(3, 2, fused=True))
    scores = bough.score(graph, criterion(p))
    for r in graph.ragged:
        if r.reason is None:
            assert scores[r.scores].shape == (graph.group(r.over).size, graph.group(r.group).size)
            np.testing.assert_allclose((scores[r.scores] ** p).sum(0), scores[r.group] ** p)


def test_scores_for_each_are_those_of_the_rows_of_a_head():
    graph, _ = traced(Attention(3))
    rows = torch.cat([graph.tensor("q.weight"), graph.tensor("q.bias")[:, None]], 1)
    keys = torch.cat([graph.tensor("k.weight"), graph.tensor("k.bias")[:, None]], 1)
    expected = (rows.square().sum(1) + keys.square().sum(1)).sqrt().view(3, 6)
    np.testing.assert_allclose(bough.score(graph, bough.importance.Magnitude())["q/head_dim/each"], expected.detach())


def test_the_lowest_of_each_head_go():
    graph, inputs = traced(Attention(3))
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, keep={"q/head_dim": 2, "q/head": 2}, ragged=True)
    heads = sorted(np.argsort(-scores["q/head"])[:2])
    best = [sorted(np.argsort(-scores["q/head_dim/each"][h])[:2]) for h in heads]
    assert plan.kept["q.weight"][0] == [6 * h + d for h, own in zip(heads, best, strict=True) for d in own]
    check(graph, inputs, plan)


def test_equal_scores_for_each_give_the_plain_plan():
    graph, _ = traced(Attention(3, 2))
    scores = bough.score(graph, bough.importance.Magnitude())
    scores |= {r.scores: np.tile(scores[r.group], (graph.group(r.over).size, 1)) for r in graph.ragged if r.reason is None}
    budget = bough.Budget(params="50%")
    plain, ragged = (bough.plan(graph, scores, budget, ragged=wanted) for wanted in (False, True))
    assert (plain.kept, plain.groups) == (ragged.kept, ragged.groups)
    assert not plain.ragged


def test_without_scores_for_each_the_plan_says_so():
    graph, _ = traced(Attention())
    scores = {g.name: np.arange(g.size, dtype=float) for g in graph.groups}
    plan = bough.plan(graph, scores, keep=0.5, ragged=True)
    assert not plan.ragged
    assert plan.alike["v/head_dim"] == "there are no scores 'v/head_dim/each' for each of q/head"
    assert plan.kept == bough.plan(graph, scores, keep=0.5).kept
    with pytest.raises(PlanError, match=r"scores\['v/head_dim/each'\] has shape \(6,\), and must have \(3, 6\)"):
        bough.plan(graph, {**scores, "v/head_dim/each": np.ones(6)}, keep=0.5, ragged=True)


class Stack(nn.Module):
    """Residual layers of attention, without statistics."""

    def __init__(self, linear=nn.Linear):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.layers = nn.ModuleList(Layer(linear) for _ in range(3))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Layer(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.heads, self.dim, self.qkv, self.out = 3, 6, linear(12, 54), linear(18, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Addmm(nn.Module):
    """A linear layer as GPT-2 has it: the weight the other way round."""

    def __init__(self, inner, outer):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inner, outer)), nn.Parameter(torch.randn(outer))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.weight.shape[1])


def test_weights_the_other_way_round():
    graph, inputs = traced(Stack(Addmm))
    plan = bough.plan(graph, bough.score(graph, bough.importance.GroupNorm()), bough.Budget(macs="40%"), ragged=True)
    assert plan.ragged
    check(graph, inputs, plan)


def test_with_layers_left_out_a_budget_and_uniform_counts():
    graph, inputs = traced(Stack())
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, bough.Budget(params="15%"), drop=["layers.1"], uniform=True, ragged=True)
    assert plan.left_out
    assert plan.ragged == {f"layers.{i}.qkv/head_dim": f"layers.{i}.qkv/head" for i in (0, 2)}
    assert any(plan.groups[f"layers.{i}.qkv/head"][0] < 3 for i in (0, 2))
    assert plan.groups["layers.0.qkv/head_dim"] == plan.groups["layers.2.qkv/head_dim"]
    check(graph, inputs, plan)


def test_the_graph_tells():
    graph, _ = traced(Attention())
    assert "  v/head_dim: for each of q/head" in str(graph).splitlines()
    assert {"group": "v/head_dim", "over": "q/head", "reason": None} in graph.to_dict()["ragged"]
