"""Lottery tickets: masks count what they say, training keeps them, rewinding rewinds, controls keep as much."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import bough
from bough import recovery
from bough.errors import PlanError
from bough.recovery import (
    Sparse,
    Training,
    apply_masks_,
    find_tickets,
    finetune,
    geometric,
    kept_share,
    magnitude_masks,
    masks_of,
    random_masks,
    random_plan,
    rewind_,
    snapshot,
)  # fmt: skip
from tests.test_optimizer import Net

X = torch.randn(6, 2, 7, 7, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return Net()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@given(keep=st.floats(0.05, 1), share=st.floats(0.1, 1), scope=st.sampled_from(["global", "layer"]))
def test_the_largest_weights_stay(keep, share, scope):
    model = small()
    masks = magnitude_masks(model, keep, scope=scope)
    assert masks.keys() == {"0.weight", "2.weight"}  # tied weights have one name, biases none
    scopes = [list(masks)] if scope == "global" else [[n] for n in masks]
    weights = dict(model.named_parameters())
    for names in scopes:
        sizes = torch.cat([weights[n].detach().abs().flatten() for n in names])
        kept = torch.cat([masks[n].flatten() for n in names])
        assert int(kept.sum()) == max(1, int(keep * len(sizes) + 0.5))
        if not kept.all():
            assert sizes[kept].min() >= sizes[~kept].max()
    fewer = magnitude_masks(model, keep * share, scope=scope, within=masks)
    assert all((f <= m).all() for f, m in zip(fewer.values(), masks.values(), strict=True))


def test_masks_errors():
    model = small()
    masks = magnitude_masks(model, 0.3)
    with pytest.raises(PlanError, match="more than the earlier masks leave"):
        magnitude_masks(model, 0.5, within=masks)
    with pytest.raises(PlanError, match="keep above 0"):
        magnitude_masks(model, 0)
    with pytest.raises(PlanError, match="is no parameter"):
        magnitude_masks(model, 0.5, names=["nothing"])
    with pytest.raises(PlanError, match="the model has no such parameter"):
        Sparse(model, {"nothing": torch.ones(2, dtype=torch.bool)})
    before = snapshot(model)
    with pytest.raises(PlanError, match=r"the model has \[3, 6\]"):
        rewind_(model, before, {"0.weight": masks["0.weight"], "2.weight": torch.ones(3, dtype=torch.bool)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_structured_masks_are_the_plan_s():
    model = net()
    graph = bough.trace(model, X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    masks = masks_of(model, plan)
    masked = bough.mask(model, plan)
    for name, p in rewind_(model, snapshot(model), masks).named_parameters():
        assert torch.equal(p, masked.get_parameter(name)), name
    cut = bough.cut(model, plan)
    kept = sum(int(m.sum()) for m in masks.values()) + sum(p.numel() for n, p in model.named_parameters() if n not in masks)
    assert kept == sum(p.numel() for p in cut.parameters())


@given(st.integers(0, 1000))
def test_random_tickets_keep_as_much_in_each_place(seed):
    model = small()
    masks = magnitude_masks(model, 0.4)
    chance = random_masks(masks, seed)
    assert {n: int(m.sum()) for n, m in chance.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert all(torch.equal(m, chance[n]) for n, m in random_masks(masks, seed).items())


def test_random_plans_keep_as_much_in_each_group():
    graph = bough.trace(net(), X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), bough.Budget(params="40%"))
    plans = [random_plan(graph, plan, seed) for seed in range(3)]
    assert all(p.groups == plan.groups for p in plans)
    assert plans[0].kept != plans[1].kept
    assert all(p.cost == plan.cost for p in plans)


def train(model, sparse, seen=None, steps=5):
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    sparse.attach(sgd)
    model.train()  # and it stays so: plans are checked in the mode of the graph all the same
    if seen is not None:
        seen.append(snapshot(model))
    for i in range(steps):
        sgd.zero_grad()
        (model(X * (1 + 0.1 * i)) - 1).square().mean().backward()
        sgd.step()
        for name, mask in sparse.masks.items():
            assert not model.get_parameter(name)[~mask].any()
            momentum = sgd.state[model.get_parameter(name)].get("momentum_buffer")
            assert momentum is None or not momentum[~mask].any()
    return float((model(X) - 1).square().mean().detach())


@pytest.mark.parametrize("structured", [False, True])
def test_rounds_rewind_to_the_start(structured):
    model, seen = net(), []
    start = snapshot(model)
    train(model, Sparse(model, {}), steps=2)
    early = snapshot(model)  # after "epoch k"
    graph = bough.trace(model.eval(), X) if structured else None
    found = find_tickets(
        model, lambda m, s: train(m, s, seen), keep=0.5, rounds=2, rewind_to=early, graph=graph, schedule=geometric
    )  # fmt: skip
    assert len(seen) == 1 + 2 * 2  # whole, then the control and the ticket of each round
    weight = "conv2.weight"
    assert (found[0].kept, found[0].masks, found[0].control) == (1.0, {}, None)
    assert not torch.equal(start[weight], early[weight])
    for ticket, (chance, rewound) in zip(found[1:], (seen[1:3], seen[3:5]), strict=True):
        mask = ticket.masks[weight]
        assert torch.equal(rewound[weight], early[weight] * mask)
        assert not torch.equal(chance[weight], rewound[weight])
        assert (chance[weight] != 0).sum() == mask.sum()
        assert ticket.result != ticket.control
    assert all((b <= a).all() for a, b in zip(found[1].masks.values(), found[2].masks.values(), strict=True))
    if structured:
        assert bough.verify(model, bough.cut(model, found[-1].plan), found[-1].plan, X).equal
        assert torch.allclose(bough.cut(model, found[-1].plan).eval()(X), model.eval()(X), atol=1e-5)
    else:
        assert kept_share(found[-1].masks) == pytest.approx(0.5, abs=0.01)


def test_finetune_keeps_masks(tmp_path):
    pytest.importorskip("accelerate")
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks = magnitude_masks(model, 0.3)
    data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,)))
    finetune(model, data, Training(epochs=2, folder=tmp_path), regularizers=[Sparse(model, masks)])
    assert sum(int(model.get_parameter(n).count_nonzero()) for n in masks) <= sum(int(m.sum()) for m in masks.values())


def test_units_that_can_not_be_zero_stay_whole():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, seen = torch.randn(4, 6), []
    tickets = find_tickets(
        model, lambda m, sparse: seen.append(m(x).detach()), keep=0.5, rounds=1, graph=bough.trace(model, x)
    )  # fmt: skip
    assert tickets[1].plan.groups["2"] == (4, 8)
    assert all(out.isfinite().all() for out in seen)
    with pytest.raises(PlanError, match="units that can be zero"):
        find_tickets(model[:3], lambda m, sparse: None, keep=0.5, graph=bough.trace(model[:3], x))


class Attending(nn.Module):
    """The stream's group has the name of the module `o`, in whose weight the heads are, too."""

    def __init__(self):
        super().__init__()
        self.o, self.q, self.k, self.v, self.e, self.h = (nn.Linear(16, n) for n in (16, 16, 16, 16, 16, 9))
        self.n = nn.LayerNorm(16)

    def forward(self, x):
        x = self.e(x)
        q, k, v = (f(self.n(x)).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.h(self.n(x))


def test_a_group_with_a_module_s_name_holds_no_other():
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(2, 5, 16)
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5, exact_only=True)
    assert plan.groups["o"] == (16, 16)
    assert plan.groups["v/head_dim"] == (2, 4)
    assert random_plan(graph, plan).groups == plan.groups
    apply_masks_(model, masks_of(model, plan))
    assert recovery.zeros(graph).groups["v/head_dim"] == (2, 4)
    fading = recovery.regularize.ProgressiveZeroing(graph, bough.Budget(params="80%"), steps=1, periods=1)
    sgd = torch.optim.SGD(model.parameters(), 0.0)
    fading.attach(sgd)
    sgd.step()
    assert fading.plan.groups["o"] == (16, 16)
    assert fading.plan.cost.params <= 0.8 * fading.plan.original.params
