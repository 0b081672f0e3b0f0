"""Typing rules against an independent oracle: the masked original, written out from `plan.kept` alone, in float64."""

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from bough.ops import probe
from tests.ops import CASES
from tests.oracle import LAYOUTS, Around, check, outputs, ready

pytestmark = pytest.mark.filterwarnings("ignore:.*in beta.*", "ignore:.*lazily.*", "ignore::UserWarning")
CONSUMERS = ("layer", "square", "sum")
_QUICK = settings(deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
ONCE, OFTEN = settings(_QUICK, max_examples=1), settings(_QUICK, max_examples=60)


@dataclass(frozen=True)
class Options:
    """What an op is made for."""

    units: int


def around(name, consumer, units, seed=0):
    """(the op of that name between two others, its inputs)"""
    layout, _, make = CASES[name]
    torch.manual_seed(seed)
    return ready(Around(make(Options(units)), layout, units, consumer), torch.randn(LAYOUTS[layout]), seed)


def state(graph, plan):
    """What became of the units of the first layer."""
    groups = [g for g in graph.groups if any((m.name, m.dim) == ("a.weight", 0) for m in g.members)]
    if not groups:
        return "frozen"
    if 0 not in plan.kept.get("a.weight", {}):
        return "held"
    return "exact" if all(g.exact for g in groups) else "renormalizes"


@pytest.mark.parametrize("name", CASES)
@example(consumer="sum", units=8, seed=1)
@given(st.sampled_from(CONSUMERS), st.sampled_from((8, 12)), st.integers(0, 99))
@ONCE
def test_an_op(name, consumer, units, seed):
    """Cut equals masked, no op is unknown, and the units that can go do go."""
    graph, plan = check(*around(name, consumer, units, seed), seed)
    assert not graph.unknown_ops
    expected, found = CASES[name][1], state(graph, plan)
    if expected == "cut" or (consumer != "sum" and expected in ("exact", "renormalizes")):
        assert found in ("exact", "renormalizes"), f"{graph}\n{plan and plan.frozen}"
    else:
        assert found == expected, f"{graph}\n{plan and plan.frozen}"


class Chain(nn.Module):
    def __init__(self, ops):
        super().__init__()
        self.ops = nn.ModuleList(op if isinstance(op, nn.Module) else Plain(op) for op in ops)

    def forward(self, x):
        for op in self.ops:
            x = op(x)
        return x


class Plain(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x)


def shape_kept(name):
    layout, _, make = CASES[name]
    if layout != "tokens":
        return False
    with torch.no_grad():
        x = torch.randn(2, 6, 8, dtype=torch.float64)
        op = make(Options(8))
        y = (op.double().eval() if isinstance(op, nn.Module) else op)(x)
    return y.shape == x.shape and y.dtype == x.dtype


with warnings.catch_warnings(action="ignore"):
    LINKS = [n for n in CASES if shape_kept(n)]


@given(st.lists(st.sampled_from(LINKS), min_size=2, max_size=4), st.sampled_from(CONSUMERS), st.integers(0, 99))
@OFTEN
def test_chains(names, consumer, seed):
    torch.manual_seed(seed)
    model = Around(Chain([CASES[n][2](Options(8)) for n in names]), "tokens", 8, consumer)
    model, x = ready(model, torch.randn(LAYOUTS["tokens"]), seed)
    try:
        y = outputs(model, x)[0]
    except RuntimeError:  # a link asks for strides that the one before does not give
        assume(False)
    assume(bool(torch.isfinite(y).all()) and float(y.abs().max()) < 1e6)
    check(model, x, seed)


def test_verdicts_about_numbers_are_not_remembered_for_ever(monkeypatch):
    monkeypatch.setattr(probe, "_known", {})
    monkeypatch.setattr(probe, "_KEPT", 8)
    for numbers in ((1.5, 0.0), tuple(1 + k / 64 for k in range(20)), (1.5, 0.0)):
        for number in numbers:
            x = torch.tensor([0.0, 1.0])
            call = SimpleNamespace(name="add", func=torch.add, args=(x, number), kwargs={})
            assert probe.at_zero(call, [x], [True]) == ("zero" if number == 0 else "other")
    assert len(probe._known) == 8
