"""Laws that every criterion of the table obeys, and its definition written out on tiny nets."""

import copy
import functools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import PlanError
from bough.importance import CRITERIA, Combined, criterion, lost_signal
from tests import pages
from tests.traced import traced
from tests.zoo import randomize

NETS = ("mlp", "residual", "gated_attention", "channel_shuffle", "encoder", "weight_norm_hook", "transposed", "einsum")
UNITS = [n for n, e in CRITERIA.items() if e.scores == "units"]
SLOW = {"shapley", "masked_loss", "hrank"}  # by design: a pass a unit, a decomposition a unit
# how scores grow when what makes the units of a ReLU net grows by c, and what reads them shrinks by c
GROWTH = {
    **dict.fromkeys(("l1", "l2", "fpgm", "norm_scale", "activation_mean"), 1),
    "activation_variance": 2, "sensitivity": -1,
    **dict.fromkeys(
        ("lamp", "cosine", "random", "taylor", "taylor_element", "taylor_group", "taylor_square", "gate_taylor",
         "gate_taylor_signed", "fisher", "obd", "masked_loss", "shapley", "apoz", "hrank", "wanda", "flap", "reap",
         "expert_clusters", "thinet",
         "obs"), 0),
}  # fmt: skip


def output(model, batch):
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def loss(model, batch):
    """The mean over samples of something that differs from sample to sample."""
    return output(model, batch).flatten(1).sin().add(0.3).square().sum(1).mean()


built = functools.cache(traced)  # criteria leave the model as it is


def tiny(units=5, seed=0):
    torch.manual_seed(seed)
    model = randomize(nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 3)), seed)
    return model, bough.trace(model, torch.randn(2, 4, dtype=torch.float64)), torch.randn(7, 4, dtype=torch.float64)


def scored(graph, name, batches):
    return bough.score(graph, criterion(name, loss), batches)


@pytest.mark.parametrize("name", UNITS)
def test_one_finite_number_per_unit_and_the_model_untouched(name):
    for net in NETS if name not in SLOW else ("mlp", "weight_norm_hook", "glu"):
        model, graph, data = built(net, batch=2)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        scores = scored(graph, name, [(data, None)])
        assert {g.name for g in graph.groups} <= scores.keys()
        for g in graph.groups:
            assert scores[g.name].shape == (g.size,)
            assert scores[g.name].dtype == np.float64
            assert np.isfinite(scores[g.name]).all()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in UNITS if CRITERIA[n].needs != "weights"])
def test_batches_do_not_matter(name):
    _, graph, data = built("residual", batch=6) if name not in SLOW else tiny()
    whole = scored(graph, name, [data])
    for sizes in ([2, len(data) - 2], [1] * len(data)):
        parts = scored(graph, name, list(data.split(sizes)))
        for group in whole:
            np.testing.assert_allclose(parts[group], whole[group], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(UNITS) - {"random", "shapley"}))
def test_units_in_another_order_have_the_same_scores(name):
    model, graph, data = tiny()
    order = torch.tensor([3, 0, 4, 2, 1])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    moved = scored(bough.trace(other, data[:2]), name, [data])["0"]
    np.testing.assert_allclose(moved, scored(graph, name, [data])["0"][order.numpy()], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", sorted(GROWTH))
def test_scores_grow_as_told_when_a_unit_is_scaled(name):
    model, graph, data = tiny()
    before = scored(graph, name, [data])["0"]
    with torch.no_grad():
        for p in (model[0].weight, model[0].bias):
            p.mul_(3.0)
        model[2].weight.div_(3.0)
    np.testing.assert_allclose(scored(graph, name, [data])["0"], before * 3.0 ** GROWTH[name], rtol=1e-6)


def test_every_criterion_has_its_growth_but_the_mixed_one():
    assert set(GROWTH) == set(UNITS) - {"group"}


# Definitions, written out with loops on Linear-ReLU-Linear


def parts(model):
    first, _, second = model
    return first.weight.detach(), first.bias.detach(), second.weight.detach()


def made(model):
    w, b, _ = parts(model)
    return torch.cat([w, b[:, None]], 1).numpy()


def hidden(model, data):
    return torch.relu(model[0](data)).detach().numpy()


def per_sample(model, data):
    """[samples] of {parameter: gradient}, and the activations' gradients [samples, units]."""
    result, activations = [], []
    for x in data:
        h = torch.relu(model[0](x[None]))
        h.retain_grad()
        value = model[2](h).flatten(1).sin().add(0.3).square().sum(1).mean()
        grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        (activation,) = torch.autograd.grad(value, h)
        result.append(dict(zip(("w", "b", "v", "c"), (g.numpy() for g in grads), strict=True)))
        activations.append(activation[0].numpy())
    return result, np.array(activations)


def mean_gradient(model, data):
    each, _ = per_sample(model, data)
    return {k: np.mean([g[k] for g in each], 0) for k in each[0]}


def taylor(model, data, term):
    """`term`: [elements, units] -> [units], for each member."""
    (w, b, v), g = (p.numpy() for p in parts(model)), mean_gradient(model, data)
    return term((w * g["w"]).T) + term((b * g["b"])[None]) + term(v * g["v"])


@torch.no_grad()
def without(model, units, data):
    """The loss with some hidden units at zero."""
    h = torch.relu(model[0](data))
    h[:, list(units)] = 0
    return float(model[2](h).sin().add(0.3).square().sum(1).mean())


def masked(model, data):
    return np.array([without(model, [u], data) - without(model, [], data) for u in range(5)])


def shapley(model, data):
    total = np.zeros(5)
    orders = bough.importance.Shapley(loss).orders(5, 0)
    for order in orders:
        for i, u in enumerate(order):
            total[u] += without(model, order[: i + 1], data) - without(model, order[:i], data)
    return total / len(orders)


def thinet(model, data):
    h, v = hidden(model, data), parts(model)[2].numpy()

    def error(gone):
        return np.mean(np.sum((h[:, gone] @ v[:, gone].T) ** 2, 1))

    gone, scores, highest = [], np.zeros(5), 0.0
    while len(gone) < 5:
        unit = min(set(range(5)) - set(gone), key=lambda u: error([*gone, u]))
        gone.append(unit)
        highest = scores[unit] = max(highest, error(gone))
    return scores


def solved(model, data, ridge=0.01):
    """Least squares from scratch for each set that is gone."""
    h, v = hidden(model, data), parts(model)[2].numpy().T
    h = h - h.mean(0)  # the bias makes up for means
    second = h.T @ h / len(h)
    second += ridge * np.diag(second).mean() * np.eye(5)

    def error(gone):
        kept = [u for u in range(5) if u not in gone]
        w = np.zeros_like(v)
        if kept:
            w[kept] = np.linalg.solve(second[np.ix_(kept, kept)], second[kept] @ v)
        return 0.5 * np.trace((w - v).T @ second @ (w - v))

    gone, scores = [], np.zeros(5)
    while len(gone) < 5:
        unit = min(set(range(5)) - set(gone), key=lambda u: error([*gone, u]))
        gone.append(unit)
        scores[unit] = error(gone)
    return scores


def lamp(model, data):
    s = (made(model) ** 2).sum(1)
    return np.array([x / s[s >= x].sum() for x in s])


def gates(model, data):
    return per_sample(model, data)[1] * hidden(model, data)


def obd(model, data):
    each, _ = per_sample(model, data)
    (w, b, v) = (p.numpy() for p in parts(model))
    f = {k: np.mean([g[k] ** 2 for g in each], 0) for k in each[0]}
    return (w**2 * f["w"]).sum(1) + b**2 * f["b"] + (v**2 * f["v"]).sum(0)


def cosines(model, data):
    m = made(model)
    n = m / np.linalg.norm(m, axis=1, keepdims=True)
    return np.array([1 - np.mean([n[u] @ n[v] for v in range(5) if v != u]) for u in range(5)])


ORACLES = {
    "l1": lambda m, d: np.abs(made(m)).sum(1),
    "l2": lambda m, d: np.sqrt((made(m) ** 2).sum(1)),
    "group": lambda m, d: np.sqrt((made(m) ** 2).sum(1) + (parts(m)[2].numpy() ** 2).sum(0)),
    "lamp": lamp,
    "norm_scale": lambda m, d: np.abs(made(m)).sum(1),  # no norm: the criterion for such groups
    "fpgm": lambda m, d: np.array([sum(np.linalg.norm(a - b) for b in made(m)) for a in made(m)]),
    "cosine": cosines,
    "taylor": lambda m, d: taylor(m, d, lambda x: np.abs(x).sum(0)),
    "taylor_group": lambda m, d: taylor(m, d, lambda x: np.abs(x.sum(0))),
    "taylor_element": lambda m, d: taylor(m, d, lambda x: np.abs(x).sum(0)),
    "taylor_square": lambda m, d: taylor(m, d, lambda x: (x**2).sum(0)),
    "gate_taylor": lambda m, d: np.abs(gates(m, d)).mean(0),
    "gate_taylor_signed": lambda m, d: -gates(m, d).mean(0),
    "fisher": lambda m, d: (gates(m, d) ** 2).mean(0) / 2,
    "obd": obd,
    "sensitivity": lambda m, d: np.abs(per_sample(m, d)[1]).mean(0),
    "masked_loss": masked,
    "shapley": shapley,
    "activation_mean": lambda m, d: np.abs(hidden(m, d)).mean(0),
    "activation_variance": lambda m, d: hidden(m, d).var(0),
    "apoz": lambda m, d: 1 - (hidden(m, d) <= 0).mean(0),
    "hrank": lambda m, d: (hidden(m, d) != 0).mean(0),  # maps of one number
    "wanda": lambda m, d: np.abs(parts(m)[2].numpy()).mean(0) * np.sqrt((hidden(m, d) ** 2).mean(0)),
    "flap": lambda m, d: (parts(m)[2].numpy() ** 2).sum(0) * hidden(m, d).var(0),
    "expert_clusters": lambda m, d: np.linalg.norm(parts(m)[2].numpy(), axis=0) * np.abs(hidden(m, d)).mean(0),
    "reap": lambda m, d: np.linalg.norm(parts(m)[2].numpy(), axis=0) * np.abs(hidden(m, d)).mean(0),
    "thinet": thinet,
    "obs": solved,
}


def test_every_criterion_has_an_oracle():
    assert set(ORACLES) == set(UNITS) - {"random"}


@pytest.mark.parametrize("name", sorted(ORACLES))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999))
def test_scores_agree_with_the_definition(name, seed):
    model, graph, data = tiny(seed=seed)
    expected = ORACLES[name](model, data)
    np.testing.assert_allclose(scored(graph, name, [data[:3], data[3:]])["0"], expected, rtol=1e-7, atol=1e-12)


# Beyond neurons: heads, key-value groups, channels, consumers of a residual stream


@pytest.mark.parametrize(("net", "consumer"), [("gated_attention", "o"), ("gated_attention", "down"), ("residual", "b")])
def test_obs_is_exact_for_every_kind_of_unit(net, consumer):
    """The error told for each width is that of least squares from scratch, on the consumer's own input and output."""
    model, graph, data = built(net, batch=4)
    name = next(
        g.name
        for g in graph.groups
        if any(m.name == f"{consumer}.weight" and m.dim == 1 for m in g.members) and g.kind in ("head", "neuron", "channel")
    )
    layer = model.get_submodule(consumer)
    inputs = []
    handle = layer.register_forward_hook(lambda module, args, result: inputs.append(args[0].detach()))
    model(data)
    handle.remove()
    if isinstance(layer, nn.Conv2d):
        x = F.unfold(inputs[0], layer.kernel_size, padding=layer.padding).mT.reshape(-1, layer.weight[0].numel())
    else:
        x = inputs[0].reshape(-1, layer.in_features)
    w, x = layer.weight.detach().flatten(1).mT.numpy(), x.numpy()
    size = graph.group(name).size
    each = len(w) // size
    x = x - x.mean(0)
    second = x.T @ x / len(x)
    second += 0.01 * np.diag(second).mean() * np.eye(len(w))
    scores = scored(graph, "obs", [data])[name]
    order = np.argsort(scores)
    for gone in range(1, size):
        kept = np.sort(np.concatenate([np.arange(u * each, (u + 1) * each) for u in order[gone:]]))
        again = np.zeros_like(w)
        again[kept] = np.linalg.solve(second[np.ix_(kept, kept)], second[kept] @ w)
        error = 0.5 * np.trace((again - w).T @ second @ (again - w))
        np.testing.assert_allclose(scores[order[gone - 1]], error, rtol=1e-6)


def test_thinet_measures_what_attention_scores_lose():
    """Dims of queries and keys have no weight that reads them: what counts is the products they add to."""

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(4, 5), nn.Linear(4, 5)

        def forward(self, x):
            return self.q(x) @ self.k(x).mT

    torch.manual_seed(0)
    model, data = randomize(Scores()), torch.randn(3, 6, 4, dtype=torch.float64)
    graph = bough.trace(model, data[:2])
    scores = scored(graph, "thinet", [data[:1], data[1:]])[graph.groups[0].name]
    q, k = model.q(data).detach(), model.k(data).detach()
    order = np.argsort(scores, kind="stable")
    for n in range(1, 6):
        gone = order[:n].tolist()
        error = float((q[..., gone] @ k[..., gone].mT).square().sum((-2, -1)).sum() / (3 * 6))
        assert scores[order[n - 1]] >= error - 1e-9
    assert scores[order[0]] == pytest.approx(
        min(float((q[..., u] ** 2).sum(1) @ (k[..., u] ** 2).sum(1)) / 18 for u in range(5))
    )


def test_consumers_of_a_residual_stream():
    """A statistic is averaged over consumers, what a consumer's output loses is added."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

        def forward(self, x):
            x = self.a(x)
            return self.b(torch.relu(x)), self.c(x)

    torch.manual_seed(0)
    model, data = randomize(Two()), torch.randn(9, 4, dtype=torch.float64)
    graph = bough.trace(model, data[:2])
    x = model.a(data).detach().numpy()
    inputs = {"b": np.maximum(x, 0), "c": x}
    rms = {n: np.sqrt((v**2).mean(0)) for n, v in inputs.items()}
    weights = {n: np.abs(model.get_submodule(n).weight.detach().numpy()).mean(0) for n in inputs}
    np.testing.assert_allclose(
        scored(graph, "activation_mean", [data])["a"], sum(np.abs(v).mean(0) for v in inputs.values()) / 2
    )
    np.testing.assert_allclose(scored(graph, "wanda", [data])["a"], sum(rms[n] * weights[n] for n in inputs))


def test_what_makes_a_unit_is_told_by_use_and_not_by_dim():
    """Weights stored as [in, out], transposed convolutions and embeddings make units along other dims than the first."""

    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.up, self.down = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 3))

        def forward(self, ids):
            return torch.relu(self.embed(ids) @ self.up) @ self.down

    torch.manual_seed(0)
    model = randomize(Stored())
    graph = bough.trace(model, torch.randint(0, 7, (2, 4)))
    scores = {g.size: bough.score(graph, bough.importance.Magnitude())[g.name] for g in graph.groups}
    np.testing.assert_allclose(scores[5], model.embed.weight.detach().norm(dim=0).numpy())
    np.testing.assert_allclose(scores[6], model.up.detach().norm(dim=0).numpy())


def test_norm_scale_reads_the_norms():
    model, graph, _ = built("residual", batch=6)
    scores = bough.score(graph, bough.importance.NormScale())
    np.testing.assert_allclose(scores["a"], model.bn1.weight.detach().abs().numpy())
    np.testing.assert_allclose(scores["stem"], (model.bn0.weight.abs() + model.bn2.weight.abs()).detach().numpy())
    _, bare, _ = tiny()
    with pytest.raises(PlanError, match="no norm scales the group '0'"):
        bough.score(bare, bough.importance.NormScale(otherwise=None))


def test_combined_criteria():
    _, graph, data = tiny()
    l1, fpgm = (scored(graph, n, None)["0"] for n in ("l1", "fpgm"))
    both = Combined([criterion("l1"), (criterion("fpgm"), -0.5)])
    np.testing.assert_allclose(bough.score(graph, both)["0"], l1 / l1.mean() - 0.5 * fpgm / fpgm.mean())
    mixed = Combined([criterion("l1"), criterion("apoz")], normalize="rank")
    apoz = scored(graph, "apoz", [data])["0"]
    ranks = [np.argsort(np.argsort(s, kind="stable")) / 4 for s in (l1, apoz)]
    np.testing.assert_allclose(bough.score(graph, mixed, [data])["0"], sum(ranks))
    for normalize, measure in {"max": np.max, "sum": np.sum, "l2": np.linalg.norm}.items():
        assert measure(bough.score(graph, Combined([criterion("l2")], normalize))["0"]) == pytest.approx(1)
    standard = bough.score(graph, Combined([criterion("l2")], "standard"))["0"]
    assert (standard.mean(), standard.std()) == pytest.approx((0, 1))
    with pytest.raises(PlanError, match="'median' is unknown"):
        Combined([criterion("l1")], normalize="median")
    with pytest.raises(PlanError, match="Combined needs data"):
        bough.score(graph, mixed)


def test_flap_standardized_compares_consumers():
    _, graph, data = tiny()
    plain, standard = (bough.score(graph, bough.importance.FLAP(s), [data])["0"] for s in (False, True))
    np.testing.assert_allclose(standard, (plain - plain.mean()) / plain.std())


def test_layers():
    class Block(nn.Module):
        def __init__(self, strength):
            super().__init__()
            self.up, self.down, self.strength = nn.Linear(6, 8), nn.Linear(8, 6), strength

        def forward(self, x):
            return x + self.strength * self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.Sequential(*(Block(s) for s in (2.0, 0.1, 1.0))), nn.Linear(6, 2)))
    data = torch.randn(3, 5, 4, dtype=torch.float64)
    graph = bough.trace(model, data[:2])
    scores = bough.score(graph, bough.importance.BlockInfluence(), [data[:1], data[1:]])
    x, expected = model[0](data), []
    for block in model[1]:
        y = block(x)
        expected.append(1 - F.cosine_similarity(x, y, dim=-1).mean().item())
        x = y
    np.testing.assert_allclose(scores["1"], expected)
    plan = bough.plan(graph, {**bough.score(graph, criterion("l2")), **scores}, keep={"1": 2})
    assert list(plan.left_out) == ["1.1"]
    _, without_layers, _ = tiny()
    for by in (bough.importance.BlockInfluence(), bough.importance.LayerLoss(square)):
        with pytest.raises(PlanError, match="no layers that can be left out"):
            bough.score(without_layers, by, [data])
    check_greedy(model, graph, data)


def square(model, batch):
    return (model(batch) - batch.sum(-1, keepdim=True)).square().mean()


def check_greedy(model, graph, data):
    """Against networks that are built without the layers."""
    scores = bough.score(graph, bough.importance.LayerLoss(square), [data[:1], data[1:]])["1"]
    left, highest = [0, 1, 2], float("-inf")
    while left:
        losses = {}
        for i in left:
            blocks = [model[1][j] for j in left if j != i]
            losses[i] = square(nn.Sequential(model[0], *blocks, model[2]), data).item()
        first = min(losses, key=losses.get)
        highest = max(highest, losses[first])
        np.testing.assert_allclose(scores[first], highest)
        left.remove(first)
    assert square(model, data).item() == pytest.approx(square(nn.Sequential(*model), data).item())  # nothing is bypassed now


def test_the_documented_table_is_the_table():
    text = pages.text_of("criteria.md")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)\(.*?\)` \|.*\| (weights|inputs|loss) \|", text, re.MULTILINE)
    assert {name: needs for name, _, needs in rows} == {name: e.needs for name, e in CRITERIA.items()}
    assert {name: kind for name, kind, _ in rows} == {n: type(criterion(n, loss)).__name__ for n in CRITERIA}


def test_names_take_options():
    assert criterion("obs(relative=True, probes=2)") == bough.importance.OBS(relative=True, probes=2)
    assert criterion("l1(p=3)") == bough.importance.Magnitude(p=3)
    assert criterion('taylor(form="square")', loss) == criterion("taylor_square", loss)
    for name, message in [
        ("obs(", "options are"), ("obs(True)", "options are"), ("obs(sites=x)", "options are"), ("obs(sizes=1)", "sites, step"),
        ("hrankk(rank=1)", "no criterion 'hrankk'"), ("fisher(step=1)", "needs a loss"), ("apoz(a=1)", "it has none"),
        ("random(seed=-1)", "not negative"), ("obs(step=1.5)", "whole number"), ("obs(sites=0)", "at least 1"),
    ]:  # fmt: skip
        with pytest.raises(PlanError, match=re.escape(message)):
            criterion(name)


def test_a_name_stands_for_its_criterion():
    model, graph, data = tiny()
    by_name, made = bough.score(graph, "wanda(p=1)", [data]), bough.score(graph, bough.importance.Wanda(p=1), [data])
    assert all(np.array_equal(by_name[n], made[n]) for n in made)
    budget = bough.Budget(params="60%")
    options = {"data": [data], "allocation": "error"}
    plans = [bough.prune(model, data[:2], budget, importance=c, **options).plan for c in ("obs", bough.importance.OBS())]
    assert plans[0].kept == plans[1].kept
    with pytest.raises(PlanError, match="'taylor' needs a loss"):
        bough.score(graph, "taylor", [data])
    with pytest.raises(PlanError, match="GroupNorm does not say"):
        bough.prune(model, data[:2], budget, importance="group", **options)


def test_prune_scores_on_data():
    model, graph, data = tiny()
    result = bough.prune(model, data[:2], bough.Budget(params="60%"), importance=criterion("wanda"), data=[data])
    kept = result.plan.kept["0.weight"][0]
    assert sorted(kept) == sorted(np.argsort(-scored(graph, "wanda", [data])["0"])[: len(kept)])


@pytest.mark.parametrize("kind", [bough.importance.OBS, bough.importance.ThiNet])
def test_units_may_leave_several_at_a_time(kind):
    """Whatever the steps, all units together cost the same, and the first step takes the cheapest ones."""
    _, graph, data = tiny(6)
    one, two, all_at_once = (bough.score(graph, kind(step=n), [data])["0"] for n in (1, 2, 6))
    if kind is bough.importance.OBS:
        assert one.max() == pytest.approx(two.max()) == pytest.approx(all_at_once.max())
    first = np.argsort(all_at_once)
    assert np.argmin(one) == first[0]
    assert set(np.argsort(two)[:2]) == set(first[:2])


def test_relative_errors_are_shares_of_the_variance_of_outputs():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
    )
    net, data = net.double(), [torch.randn(40, 4).double() for _ in range(2)]
    graph = bough.trace(net, data[0])
    plain, relative = (bough.score(graph, bough.importance.OBS(relative=r), data)["0"] for r in (False, True))
    variance = float(net[:3](torch.cat(data)).detach().var(0, unbiased=False).sum())
    shares = 2 * plain / variance  # a score of OBS is half of the squared error
    below = shares < 0.99
    assert below.sum() >= 4
    np.testing.assert_allclose(relative[below], -np.log1p(-shares[below]), rtol=1e-9)
    np.testing.assert_array_equal(np.argsort(relative), np.argsort(shares))


def test_consumers_of_one_group_lose_less_than_their_sum_and_more_than_their_mean():
    errors = np.array([0.1, 0.2, 0.3, 0.4])
    alone = [lost_signal(errors[i : i + 1]) for i in range(4)]
    assert np.mean(alone) < lost_signal(errors) < np.sum(alone)
    assert lost_signal(errors) == pytest.approx(np.sqrt(np.mean(alone) * np.sum(alone)))
    rising = [lost_signal(np.array([e])) for e in (0.0, 0.5, 0.98, 0.99, 0.995, 1.0, 2.0)]
    assert rising == sorted(rising)
    assert rising[0] == 0


def test_products_of_activations_count_as_shares_whatever_their_scale():
    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Linear(4, 6) for _ in range(3))

        def forward(self, x):
            return (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)

    torch.manual_seed(0)
    net, data = Scores().double().eval(), torch.randn(8, 5, 4).double()
    (scores,) = bough.score(bough.trace(net, data), bough.importance.OBS(relative=True), [data]).values()
    with torch.no_grad():
        for part in (net.q.weight, net.q.bias, net.k.weight, net.k.bias):
            part.mul_(7.0)
    (larger,) = bough.score(bough.trace(net, data), bough.importance.OBS(relative=True), [data]).values()
    np.testing.assert_allclose(larger, scores, rtol=1e-9)
