"""What a model remembers of its runs neither enters a recorded or replayed run nor outlives it."""

import functools
import types
from collections import OrderedDict, deque
from typing import ClassVar

import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize


class Table(nn.Module):
    """Adds positions that a memoized static method makes."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 3)

    @staticmethod
    @functools.lru_cache
    def positions(n):
        return torch.arange(n, dtype=torch.float64)[:, None]

    def forward(self, x):
        return self.leave(self.enter(x).relu() + self.positions(x.shape[1]))


@pytest.mark.parametrize("called_before", [False, True])
def test_a_memoized_tensor_is_made_anew_in_each_run(called_before):
    Table.positions.cache_clear()
    net, x = randomize(Table()).eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    expected = x.new_tensor(net(x).tolist()) if called_before else None
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert plan.groups["enter"] == (4, 8)
    assert bough.verify(net, bough.cut(net, plan), plan, x).equal
    assert net(x).device.type == "cpu"
    if called_before:
        assert torch.equal(net(x), expected)


class Keeping(nn.Module):
    """Keeps what it makes of a parameter for the next run, and notes what it has seen."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.bias = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(8, 2))
        self.kept, self.seen, self.by_size, self.log = {}, [], {0: 0}, {"runs": []}

    def forward(self, x):
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias[:, torch.tensor([1])][:, 0]
        self.seen.append(x)
        self.by_size[len(x)] = x
        self.log["runs"].append(1)
        return self.leave((self.enter(x) + self.kept["bias"]).relu())


class Making(Keeping):
    """The same, and keeps nothing."""

    def forward(self, x):
        return self.leave((self.enter(x) + self.bias[:, torch.tensor([1])][:, 0]).relu())


def noted(net):
    return len(net.kept), len(net.seen), len(net.by_size), len(net.log["runs"])


@pytest.mark.parametrize("called_before_data", [False, True])
def test_runs_on_data_find_nothing_of_those_before(called_before_data):
    kept, made = (randomize(net()).eval() for net in (Keeping, Making))
    torch.manual_seed(0)
    data = [torch.randn(16, 4, dtype=torch.float64) for _ in range(5)]
    found = []
    for net in (kept, made):
        graph = bough.trace(net, data[0])
        assert noted(net) == (0, 0, 1, 0)
        plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        small = bough.cut(net, plan)
        if called_before_data:
            net(data[0])
        before = noted(net)
        scores = bough.score(graph, bough.importance.OBS(), data)
        refitted = bough.refit(net, small, plan, data).model
        assert noted(net) == before
        found.append((scores["bias"], refitted.state_dict()))
    torch.testing.assert_close(*found)


# Each way to keep a tensor for later runs: a function (x) -> table, and what it keeps now, as a list.

KEPT = None
TABLES = {}
PLACES = types.SimpleNamespace(tables={})


def made(x):
    return x.new_full((1, x.shape[-1]), 2.0)


def in_a_global(x):
    global KEPT
    if KEPT is None:
        KEPT = made(x)
    return KEPT


def in_a_global_dict(x):
    return TABLES.setdefault("table", made(x)) if "table" not in TABLES else TABLES["table"]


def in_an_object(x):
    if "table" not in PLACES.tables:
        PLACES.tables["table"] = made(x)
    return PLACES.tables["table"]


def in_a_default(x, kept=[]):  # noqa: B006
    if not kept:
        kept.append(made(x))
    return kept[0]


def in_its_attribute(x):
    if not hasattr(in_its_attribute, "table"):
        in_its_attribute.table = made(x)
    return in_its_attribute.table


def remembering(function):
    kept = deque(maxlen=1)

    @functools.wraps(function)
    def call(x):
        if not kept:
            kept.append(function(x))
        return kept[0]

    call.kept = lambda: list(kept)
    return call


in_a_closure = remembering(made)


class Helper:
    tables: ClassVar = OrderedDict()
    last = None

    @classmethod
    def in_a_class(cls, x):
        if "table" not in cls.tables:
            cls.tables["table"] = made(x)
        cls.last = cls.tables["table"]
        return cls.last

    @functools.cached_property
    def one(self):
        return torch.ones(1)


HELPER = Helper()


def in_a_helper(x):
    return HELPER.in_a_class(x) * HELPER.one


@functools.cache
def sized(n, like):
    return torch.full((1, n), 2.0, dtype=like)


def in_a_memoized_function(x):
    return sized(x.shape[-1], x.dtype)


KEEPERS = {
    in_a_global: lambda: [KEPT],
    in_a_global_dict: lambda: list(TABLES.values()),
    in_an_object: lambda: list(PLACES.tables.values()),
    in_a_default: lambda: list(in_a_default.__defaults__[0]),
    in_its_attribute: lambda: list(vars(in_its_attribute).values()),
    in_a_closure: in_a_closure.kept,
    in_a_helper: lambda: [*Helper.tables.values(), Helper.last, *vars(HELPER).values()],
    in_a_memoized_function: lambda: [sized.cache_info().currsize],
}


class Through(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.enter, self.leave, self.function = nn.Linear(4, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.leave(self.enter(x * self.function(x)).relu())


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("function", KEEPERS, ids=lambda f: f.__name__)
def test_caches_hold_what_they_held(function, called_before):
    net, x = randomize(Through(function)).eval(), torch.randn(5, 4, dtype=torch.float64)
    expected = net.leave(net.enter(x * 2).relu())
    if called_before:
        net(x)
    before = KEEPERS[function]()
    graph = bough.trace(net, x)
    scores = bough.score(graph, bough.importance.OBS(), [x, x])
    plan = bough.plan(graph, scores, keep=0.5)
    small = bough.cut(net, plan)
    assert bough.verify(net, small, plan, x).equal
    after = KEEPERS[function]()
    assert len(after) == len(before)
    assert all(a is b for a, b in zip(after, before, strict=True))
    assert torch.equal(net(x), expected)
    assert small.enter.out_features == 4


@functools.lru_cache(maxsize=2)
def number(n):
    return object()


class Numbered(Through):
    def forward(self, x):
        number(x.shape[1] + 7)
        number(x.shape[0] + 7)
        number(1)
        return super().forward(x)


def test_memoized_functions_lose_nothing():
    """Not even from a cache that is too small for what the run asks."""
    net, x = randomize(Numbered(made)).eval(), torch.randn(5, 4, dtype=torch.float64)
    first, second = number("first"), number("second")
    bough.prune(net, x, bough.Budget(params="60%"))
    assert (number("first"), number("second")) == (first, second)


class Bent(nn.Module):
    """Remembers a table of its own width by itself."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.width = nn.Linear(4, 8), nn.Linear(8, 3), 8

    @functools.lru_cache  # noqa: B019
    def table(self):
        return torch.full((self.width,), 0.5, dtype=torch.float64)

    def forward(self, x):
        return self.leave((self.enter(x) + self.table()).relu())


def test_memoized_methods_of_a_model_cut_in_place_are_computed_anew():
    net, x = randomize(Bent()).eval(), torch.randn(5, 4, dtype=torch.float64)
    net(x)
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert plan.groups["enter"] == (4, 8)
    expected = bough.cut(net, plan)(x)
    assert torch.equal(bough.cut_(net, plan)(x), expected)


def test_what_hooks_note_is_of_runs_on_data_alone():
    net, x = randomize(Through(made)).eval(), torch.randn(5, 4, dtype=torch.float64)
    seen = []
    net.enter.register_forward_hook(lambda module, given, result: seen.append(result))
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert seen == []
    bough.score(graph, bough.importance.OBS(), [x, x])
    assert [t.device.type for t in seen] == ["cpu", "cpu"]
    assert plan.groups["enter"] == (4, 8)


def test_a_forward_that_is_set_on_a_module_is_followed():
    net, x = randomize(Through(made)).eval(), torch.randn(5, 4, dtype=torch.float64)
    kept = []

    def forward(given):
        if not kept:
            kept.append(made(given))
        return nn.functional.linear(given * kept[0], net.enter.weight, net.enter.bias)

    net.enter.forward = forward
    plan = bough.plan(graph := bough.trace(net, x), bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert kept == []
    assert plan.groups["enter"] == (4, 8)


NAMELESS = types.FunctionType((lambda x: x * 2).__code__, {})  # as made by exec: it has no module


class CallsNameless(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(NAMELESS(self.a(x)))


def test_a_function_of_no_module():
    assert NAMELESS.__module__ is None
    assert [g.size for g in bough.trace(CallsNameless(), torch.randn(1, 4)).groups] == [8]
