"""Regularizers on typed groups against brute force over coupled members; each ends in a cut equal to the model."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.errors import BudgetError, PlanError
from bough.recovery import zeros
from bough.recovery.regularize import GroupLasso, GrowingPenalty, ProgressiveZeroing, Slimming, SparseLearning
from tests.test_optimizer import Net
from tests.zoo import randomize, small_sequence, to_double

X = torch.randn(2, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model_and_graph(seed=0):
    model = randomize(Net(), seed).eval()
    for p in model.parameters():
        p.requires_grad_(True)
    return model, bough.trace(model, X)


def slices(graph, group, unit):
    """Each member's part of a unit, as (parameter, index): what a mask of that unit alone would set to zero."""
    scores = {g.name: np.ones(g.size) for g in graph.groups}
    scores[group.name][unit] = 0.0
    plan = bough.plan(graph, scores, keep={group.name: group.size - 1})
    for name, dims in plan.kept.items():
        if graph.states[name].parameter:
            tensor = graph.tensor(name)
            for dim, kept in dims.items():
                yield tensor, dim, sorted(set(range(tensor.shape[dim])) - set(kept))


def by_hand(graph):
    """{group: [(norm of each unit, number of its elements)]}, over all members."""
    found = {}
    for group in graph.groups:
        rows = []
        for unit in range(group.size):
            parts = [t.detach().index_select(d, torch.tensor(i)).flatten() for t, d, i in slices(graph, group, unit)]
            rows.append((float(torch.cat(parts).norm()), sum(p.numel() for p in parts)))
        found[group.name] = rows
    return found


@settings(max_examples=3)
@given(st.floats(1e-3, 1.0), st.floats(1e-2, 1.0), st.integers(0, 50))
def test_the_proximal_step_is_that_of_each_unit_over_its_coupled_members(strength, rate, seed):
    model, graph = model_and_graph(seed)
    rows = by_hand(graph)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in graph.groups:
        for unit, (norm, count) in enumerate(rows[group.name]):
            factor = max(0.0, 1 - rate * strength * count**0.5 / norm)
            for tensor, dim, gone in slices(graph, group, unit):
                for index in gone:
                    expected[names[id(tensor)]].select(dim, index).mul_(factor)
    sgd = torch.optim.SGD(model.parameters(), rate)
    GroupLasso(graph, strength).attach(sgd)
    sgd.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, expected[name], rtol=1e-10, atol=1e-14), name


def stepped(make, times=1):
    """The weights after steps of SGD with zero gradients, whatever the regularizer adds to them; and before."""
    model, graph = model_and_graph()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    regularizer = make(graph)
    attached = regularizer.attach(sgd)
    for _ in range(times):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        sgd.step()
    attached.remove()
    return model, graph, before, regularizer


def decays(graph, group, strengths):
    """What strength x weight takes off each parameter, for one group."""
    total = {id(graph.tensor(n)): 0.0 for n in graph.states}
    for unit, strength in enumerate(strengths):
        for tensor, dim, gone in slices(graph, group, unit):
            part = torch.zeros_like(tensor)
            for index in gone:
                part.select(dim, index).add_(tensor.detach().select(dim, index))
            total[id(tensor)] = total[id(tensor)] + strength * part
    return total


@pytest.mark.parametrize(
    ("make", "strength"),
    [
        (lambda g: SparseLearning(g, 0.01, alpha=3.0), lambda gap: 0.01 * 2 ** (3.0 * gap)),
        (lambda g: GrowingPenalty(g, 0.02, every=1), lambda gap: 0.02 * gap),
        (lambda g: GrowingPenalty(g, 0.02, every=1, ceiling=0.01), lambda gap: min(0.02 * gap, 0.01)),
    ],
    ids=["DepGraph", "GReg", "GReg at its ceiling"],
)
def test_penalties_are_their_formulas(make, strength):
    _, graph = model_and_graph()
    rows, total = by_hand(graph), {}
    for group in graph.groups:
        norms = np.array([norm for norm, _ in rows[group.name]])
        gaps = (norms.max() - norms) / (norms.max() - norms.min())
        for tensor, value in decays(graph, group, [strength(g) for g in gaps]).items():
            total[tensor] = total.get(tensor, 0.0) + value
    model, _, before, _ = stepped(make)
    fresh = dict(graph.model.named_parameters())
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] - total[id(fresh[name])], rtol=1e-10, atol=1e-13), name


def test_slimming_pulls_batch_norm_weights_alone():
    model, graph, before, slimming = stepped(lambda g: Slimming(g, 0.01))
    for name, p in model.named_parameters():
        expected = before[name] - 0.01 * before[name].sign() if name == "bn.weight" else before[name]
        assert torch.equal(p, expected), name
    (group,) = [u.name for u in slimming.units]
    assert torch.allclose(torch.from_numpy(slimming.scores()[group]), model.bn.weight.detach().abs())
    assert set(slimming.left_out) == {g.name for g in graph.groups} - {group}
    with pytest.raises(PlanError, match="no batch norm"):
        Slimming(bough.trace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.randn(1, 2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda g, names: GroupLasso(g, 0.5, groups=names),
        lambda g, names: SparseLearning(g, 0.5, groups=names),
        lambda g, names: GrowingPenalty(g, 0.5, every=1, groups=names),
    ],
)
def test_what_is_in_no_chosen_group_stays(make):
    _, graph = model_and_graph()
    chosen = graph.groups[0]
    model, _, before, regularizer = stepped(lambda g: make(g, [g.groups[0].name]), times=2)
    touched = {m.name for m in chosen.members}
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= touched
    assert len(moved) > 2
    assert set(regularizer.left_out) == {g.name for g in graph.groups[1:]}


def trained(model, regularizer, steps):
    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    regularizer.attach(sgd)
    for i in range(steps):
        sgd.zero_grad()
        (model(X * (1 + 0.1 * i)) - 1).square().mean().backward()
        sgd.step()


def assert_cut_equals(model, plan, x=X):
    """Not only the masked model: the model itself."""
    small = bough.cut(model, plan)
    assert bough.verify(model, small, plan, x).equal
    assert (model.eval()(x) - small.eval()(x)).abs().max() < 1e-9


def test_group_lasso_ends_in_exact_zeros():
    model, graph = model_and_graph()
    trained(model, GroupLasso(graph, 0.3), 25)
    plan = zeros(graph)
    counts = {u: (k, n) for u, (k, n) in plan.groups.items() if k < n}
    assert counts
    assert_cut_equals(model, plan)
    with pytest.raises(PlanError, match="no unit is zero"):
        zeros(model_and_graph()[1])


@pytest.mark.parametrize("build", [None, *small_sequence.ZOO.values()])
def test_progressive_zeroing_ends_in_exact_zeros_and_meets_its_budget(build):
    model, x = (Net(), X) if build is None else build()
    model, x = randomize(model).eval(), to_double(x)
    graph = bough.trace(model, x)
    try:
        fading = ProgressiveZeroing(graph, bough.Budget(params="80%"), steps=3, periods=3)
    except (BudgetError, PlanError):
        pytest.skip("too little of it can be zero")
    sgd = torch.optim.SGD(model.parameters(), 0.01)
    fading.attach(sgd)
    model.train()
    removed = []
    for _ in range(9):
        sgd.zero_grad()
        for p in model.parameters():
            p.grad = torch.randn_like(p) * 0.1
        sgd.step()
        removed.append({n: size - kept for n, (kept, size) in fading.plan.groups.items()})
    assert fading.done
    assert all(m.training for m in model.modules())
    model.eval()
    assert all(a[n] <= b[n] for a, b in itertools.pairwise(removed) for n in a)
    assert removed[0] != removed[-1] or build is not None
    small = bough.cut(model, fading.plan)
    assert sum(p.numel() for p in small.parameters()) <= 0.8 * sum(p.numel() for p in model.parameters())
    assert all(not p[~m].any() for n, m in fading._masks.items() for p in [dict(model.named_parameters())[n]])
    if not fading.plan.renormalizing:
        assert bough.verify(model, small, fading.plan, x).equal


def test_zeroing_falls_in_a_straight_line():
    model, graph = model_and_graph()
    fading = ProgressiveZeroing(graph, bough.Budget(params="50%"), steps=4, periods=1)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    fading.attach(sgd)
    start, seen = model.head.weight.detach().clone(), []
    for _ in range(5):
        sgd.step()  # no gradients: the weights move by the fading alone
        seen.append(model.head.weight.detach().clone())
    gone = ~fading._masks["head.weight"]
    assert gone.any()
    for t, weight in enumerate(seen, 1):
        assert torch.allclose(weight[gone], start[gone] * max(0, 4 - t) / 4, atol=1e-15)
        assert torch.equal(weight[~gone], start[~gone])


MAKE = [
    lambda g: GroupLasso(g, 0.05), lambda g: SparseLearning(g, 0.05, every=3), lambda g: GrowingPenalty(g, 0.05, every=2),
    lambda g: Slimming(g, 0.01), lambda g: ProgressiveZeroing(g, bough.Budget(params="60%"), steps=3, periods=2),
]  # fmt: skip


@pytest.mark.parametrize("make", MAKE, ids=["lasso", "sparse", "growing", "slimming", "zeroing"])
def test_a_saved_regularizer_goes_on_and_a_plan_to_a_budget_follows(make):
    model, graph = model_and_graph()
    regularizer = make(graph)
    sgd = torch.optim.SGD(model.parameters(), 0.05)

    def step(model, optimizer):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()

    regularizer.attach(sgd)
    for _ in range(4):
        step(model, sgd)
    other = copy.deepcopy(model)
    resumed = make(bough.trace(other, X))
    resumed.load_state_dict(copy.deepcopy(regularizer.state_dict()))
    second = torch.optim.SGD(other.parameters(), 0.05)
    resumed.attach(second)
    for _ in range(4):
        step(model, sgd)
        step(other, second)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    if hasattr(regularizer, "scores"):
        plan = bough.plan(graph, regularizer.scores(), bough.Budget(params="50%"))
        assert bough.verify(model, bough.cut(model, plan), plan, X).equal


def test_groups_that_can_not_be_zero_are_left_with_the_reason():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7),
        nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2),
    ).double()  # fmt: skip
    model[6].bias.requires_grad_(False)
    graph = bough.trace(model, torch.randn(1, 4).double())
    lasso = GroupLasso(graph, 0.1)
    assert [u.size for u in lasso.units] == [5, 7]
    assert sorted(why.partition(" ")[0] for why in lasso.left_out.values()) == ["6.bias", "an"]
    frozen = next(n for n, why in lasso.left_out.items() if "6.bias" in why)
    with pytest.raises(PlanError, match=r"6\.bias is not trained"):
        GroupLasso(graph, 0.1, groups=[frozen])
    with pytest.raises(PlanError, match="which is no group"):
        GroupLasso(graph, 0.1, groups=["nothing"])
    with pytest.raises(PlanError, match="must be positive"):
        GroupLasso(graph, 0)
    with pytest.raises(BudgetError):
        ProgressiveZeroing(graph, bough.Budget(params=3), steps=2)
