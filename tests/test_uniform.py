"""Uniform plans of models made from a config: the class made from the config that is told is what the cut leaves."""

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.errors import PlanError
from tests.zoo import randomize

INPUTS = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BASE = {"hidden": 24, "heads": 4, "inner": 48, "layers": 3}


class Config:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Block(nn.Module):
    def __init__(self, config, first=False):
        super().__init__()
        if config.hidden % config.heads:
            raise ValueError("the heads must divide the hidden size")
        if config.inner % getattr(config, "multiple", 1):
            raise ValueError("the inner size must be a multiple")
        self.heads = config.heads
        self.wide = config.hidden // config.heads
        self.norm = nn.LayerNorm(config.hidden)
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.back = nn.Linear(config.hidden, config.hidden)
        self.up = nn.Linear(config.hidden, config.inner)
        self.down = nn.Linear(config.inner, config.hidden)
        if first and getattr(config, "special", False):
            self.extra = nn.Parameter(torch.zeros(config.hidden))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, self.wide).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.back(mixed)
        if hasattr(self, "extra"):
            x = x + self.extra
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """A transformer that is all its config says."""

    block = Block

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.enter = nn.Linear(6, config.hidden)
        self.mask = nn.Parameter(torch.zeros(config.hidden))  # read in training only
        self.layers = nn.ModuleList(self.block(config, first=i == 0) for i in range(config.layers))
        self.leave = nn.Linear(config.hidden, 3)

    def forward(self, x):
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x)
        return self.leave(x)


class ScaledBlock(Block):
    """Its class, not its config, says how many heads there are; the scale is a number that it keeps."""

    def __init__(self, config, first=False):
        super().__init__(Config(**{**vars(config), "heads": 3}), first)
        self.scale = self.wide**-0.5

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, self.wide).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.back(mixed)
        return x + self.down(self.up(x).relu())


class FreeBlock(Block):
    """As wide heads as the config says, where it says so."""

    def __init__(self, config, first=False):
        super().__init__(config, first)
        self.wide = getattr(config, "wide", config.hidden // config.heads)
        self.qkv = nn.Linear(config.hidden, 3 * config.heads * self.wide)
        self.back = nn.Linear(config.heads * self.wide, config.hidden)


class TableNet(Net):
    """Adds a table that its constructor computes from the width, and that no checkpoint holds."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.linspace(0, 1, config.hidden), persistent=False)

    def forward(self, x):
        x = self.enter(x) + self.table
        for layer in self.layers:
            x = layer(x)
        return self.leave(x)


def of_blocks(block):
    return type(f"{block.__name__}Net", (Net,), {"block": block})


def planned(net, keep=0.5, **options):
    graph = bough.trace(net, INPUTS)
    scores = bough.score(graph, bough.importance.Magnitude())
    budget = {} if keep is None else {"keep": keep}
    return graph, bough.plan(graph, scores, **budget, uniform=True, **options)


def made_again(small):
    """The stock class, made from the cut model's config, with its weights."""
    again = type(small)(copy.deepcopy(small.config)).double()
    again.load_state_dict(small.state_dict())
    return again


def equals_itself(net, plan):
    small = bough.cut(net, plan)
    assert bough.verify(net, small, plan, INPUTS).equal
    torch.testing.assert_close(made_again(small)(INPUTS), small(INPUTS), rtol=0, atol=1e-12)
    return small


def build(cls=Net, **fields):
    torch.manual_seed(0)
    return randomize(cls(Config(**{**BASE, **fields}))).eval()


@pytest.mark.parametrize("cls", [Net, of_blocks(ScaledBlock), of_blocks(FreeBlock)])
@settings(max_examples=8, deadline=None)
@given(keep=st.floats(0.1, 0.95))
def test_the_class_makes_what_the_cut_leaves(cls, keep):
    net = build(cls)
    _, plan = planned(net, keep)
    equals_itself(net, plan)


def test_a_budget_is_met_with_equal_widths_in_all_layers():
    net = build()
    graph, plan = planned(net, None, budget=bough.Budget(params="60%"))
    small = equals_itself(net, plan)
    assert sum(p.numel() for p in small.parameters()) <= 0.6 * sum(p.numel() for p in net.parameters())
    for kind in ("head", "neuron"):
        assert len({plan.groups[g.name][0] for g in graph.groups if g.kind == kind}) == 1


@settings(max_examples=8, deadline=None)
@given(keep=st.floats(0.2, 0.95), multiple=st.sampled_from([4, 8, 12, 16]))
def test_a_rule_of_the_class_is_a_constraint_of_the_plan(keep, multiple):
    net = build(multiple=multiple)
    graph, plan = planned(net, keep)
    small = equals_itself(net, plan)
    inner = small.config.inner
    assert inner % multiple == 0
    assert 48 * keep - 1e-6 <= inner < 48 * keep + multiple
    assert not any(g.kind == "neuron" and g.name in plan.frozen for g in graph.groups)


def test_hidden_and_heads_go_together_and_what_a_head_sees_stays():
    net = build()
    graph, plan = planned(net)
    small = bough.cut(net, plan)
    assert (small.config.hidden, small.config.heads, small.config.inner) == (12, 2, 24)
    frozen = {g.kind for g in graph.groups if g.name in plan.frozen}
    assert frozen == {"head_dim"}
    assert all("hidden and heads" in why for why in plan.frozen.values())


def test_a_field_that_the_class_asks_for_in_vain_sets_the_hidden_size_free():
    net = build(of_blocks(FreeBlock))
    graph, plan = planned(net, {"enter": 20})
    small = equals_itself(net, plan)
    assert (small.config.hidden, small.config.heads, small.config.wide) == (20, 4, 6)
    assert {Fraction(*plan.groups[g.name]) for g in graph.groups if g.kind == "head"} == {Fraction(1)}


def test_a_number_that_the_class_derives_is_made_up_for_in_the_weights():
    net = build(of_blocks(ScaledBlock))
    _, plan = planned(net)
    small = equals_itself(net, plan)
    assert small.layers[0].wide == 4
    assert small.layers[0].scale == 4**-0.5
    assert plan.scales
    assert bough.Plan.from_json(plan.to_json()) == plan


def test_what_a_computed_table_ties_is_held():
    graph, plan = planned(build(TableNet))
    assert {g.kind for g in graph.groups if plan.groups[g.name][0] < g.size} == {"neuron"}
    assert "enter" in plan.frozen


def test_a_tensor_that_the_run_does_not_read_follows():
    net = build()
    _, plan = planned(net)
    small = bough.cut(net, plan)
    assert torch.equal(small.mask, net.mask[plan.kept["enter.weight"][0]])
    assert plan.cost.params == sum(p.numel() for p in small.parameters())
    assert plan.cost.size == sum(t.nbytes for t in small.state_dict().values())


def test_layers_left_out_are_told():
    net = build()
    _, plan = planned(net, drop=["layers.1"])
    small = equals_itself(net, plan)
    assert small.config.layers == 2


def test_layers_that_no_config_can_tell_are_an_error():
    with pytest.raises(PlanError, match=r"no config found can say that layers\.0 is left out"):
        planned(build(special=True), drop=["layers.0"])
    planned(build(special=True), drop=["layers.2"])


def test_a_config_that_is_not_the_whole_truth_is_an_error():
    net = build()
    net.leave = nn.Linear(24, 5).double()
    with pytest.raises(PlanError, match="made again from its config alone is not this model"):
        planned(net)


def test_a_config_that_tells_no_width_is_an_error():
    class Fixed(nn.Sequential):
        def __init__(self, config):
            super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
            self.config = config

    with pytest.raises(PlanError, match="no integer of Fixed's config can tell a smaller width"):
        planned(randomize(Fixed(Config(classes=2))).eval())


def test_without_a_config_the_same_places_keep_as_many():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in (16, 16, 16, 8)]
    net = randomize(nn.Sequential(*blocks)).eval()
    graph = bough.trace(net, INPUTS)
    scores = bough.score(graph, bough.importance.Magnitude())
    scores["0.0"] = scores["0.0"] * torch.linspace(0.01, 1, 16).numpy()
    counts = {n: bough.plan(graph, scores, bough.Budget(params="50%"), uniform=n).groups for n in (False, True)}
    assert len({counts[True][f"{i}.0"] for i in range(3)}) == 1
    assert len({counts[False][f"{i}.0"] for i in range(3)}) > 1
