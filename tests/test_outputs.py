"""What a model returns: tensors are found wherever they are held, stay as they are, and are compared."""

import collections
import dataclasses
import functools
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import TraceError
from bough.tracing.capture.tree import output_tensors, tensors_within


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, hidden, shown):
        self.__hidden, self.shown = hidden, shown


class Child(Slotted):
    __slots__ = ()


class Holder:
    def __init__(self, **tensors):
        self.__dict__.update(tensors)


class Named(dict):
    """A dict with an attribute beside its items."""


@dataclasses.dataclass
class Record:
    features: torch.Tensor
    logits: torch.Tensor


Pair = collections.namedtuple("Pair", "features logits")


def named(features, logits):
    found = Named(logits=logits)
    found.features = features
    return found


def cyclic(features, logits):
    found = Holder(features=features, logits=logits)
    found.itself = found
    return found


HOLDERS = {
    "tuple": lambda f, y: (f, y),
    "namedtuple": Pair,
    "dataclass": Record,
    "namespace": lambda f, y: types.SimpleNamespace(features=f, logits=y),
    "object": lambda f, y: Holder(features=f, logits=y),
    "slots": Slotted,
    "inherited slots": Child,
    "object in a dict in a list": lambda f, y: [{"out": Holder(inner=types.SimpleNamespace(features=f))}, y],
    "attribute of a dict": named,
    "object that holds itself": cyclic,
    "deque": lambda f, y: collections.deque([f, y]),
    "values of a dict": lambda f, y: {"f": f, "y": y}.values(),
    "partial": lambda f, y: functools.partial(torch.add, f, other=y),
    "closure": lambda f, y: lambda: (f, y),
    "method": lambda f, y: Holder(features=f, logits=y).__eq__ and Record(f, y).__repr__,
}


class Net(nn.Module):
    """Returns its features (32) and its logits (4), in a holder."""

    def __init__(self, hold):
        super().__init__()
        self.a, self.b, self.c, self.hold = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4), hold

    def forward(self, x):
        features = F.relu(self.b(F.relu(self.a(x))))
        return self.hold(features, self.c(features))


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def built(hold):
    torch.manual_seed(0)
    return Net(hold).eval()


@pytest.mark.parametrize("name", HOLDERS)
def test_what_a_model_returns_stays_wherever_it_is_held(name):
    model = built(HOLDERS[name])
    with torch.no_grad():
        assert sorted(t.shape[-1] for t in output_tensors(model(X)).values()) == [4, 32]
    graph = bough.trace(model, X)
    assert [g.name for g in graph.groups] == ["a"]
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep=0.5)
    report = bough.verify(model, bough.cut(model, plan), plan, X)
    assert report.equal


def test_paths_name_what_is_held():
    x, y = torch.zeros(1), torch.zeros(2)
    found = output_tensors({"a": [types.SimpleNamespace(b=x)], "p": Pair(y, None)})
    assert list(found) == ["['a'][0].b", "['p'].features"]
    assert found["['a'][0].b"] is x
    assert list(output_tensors(x)) == [""]
    assert list(output_tensors([x, x])) == ["[0]"]  # the same tensor once


def test_arrays_are_outputs_and_plain_values_are_not():
    found = output_tensors({"n": 3, "s": "text", "d": torch.float32, "x": np.arange(3), "none": None, "l": nn.Linear(1, 1)})
    assert list(found) == ["['x']"]
    assert found["['x']"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda x: (v for v in [x]), "generator"), (lambda x: iter([x]), "list_iterator"), (lambda x: map(abs, [x]), "map")],
)
def test_what_cannot_be_looked_into_is_refused_by_name(make, kind):
    with pytest.raises(TraceError, match=rf"output holds a {kind} at output\['a'\]"):
        output_tensors({"a": make(torch.zeros(1))})
    with pytest.raises(TraceError, match=kind):
        bough.trace(built(lambda f, y: (make(f), y)), X)
    assert list(tensors_within(make(torch.zeros(1)))) == []  # inputs are passed on as they are


@pytest.mark.parametrize("hold", [lambda f, y: None, lambda f, y: "text", lambda f, y: {"loss": 3.0}, lambda f, y: y.numpy()])
def test_a_model_that_returns_no_tensor_is_refused(hold):
    with pytest.raises(TraceError, match="returns no tensor: its output is of type"):
        bough.trace(built(hold), X)


@pytest.mark.parametrize("leave", [torch.Tensor.tolist, lambda f: f.numpy() * 2, lambda f: {"first": float(f.numpy()[0, 0])}])
def test_what_leaves_the_tensors_for_the_output_stays(leave):
    """Numbers outside of tensors are outputs, too."""
    model = Net(lambda f, y: (leave(f.detach()), y)).eval()
    graph = bough.trace(model, X)
    assert [g.name for g in graph.groups] == ["a"]


def ragged_rows(layout):
    return torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)], layout=layout)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named(layout):
    with pytest.raises(TraceError, match="an example input is a nested tensor"):
        bough.trace(built(Record), ragged_rows(layout))
    inside = Net(lambda f, y: torch.nested.as_nested_tensor([y[:1], y], layout=layout).to_padded_tensor(0.0)).eval()
    with pytest.raises(TraceError, match=r"the model makes a nested tensor \(.*test_outputs.py"):
        bough.trace(inside, X)


class Cache:
    """What a decoder keeps of earlier tokens."""

    def __init__(self):
        self.kept = []


class Cached(nn.Module):
    """Returns a cache under the name of its own parameter, as decoders of transformers do."""

    def __init__(self, name):
        super().__init__()
        self.a, self.b, self.name = nn.Linear(8, 16), nn.Linear(16, 4), name

    def forward(self, x, cache=None):
        cache = Cache() if cache is None else cache
        cache.kept.append(F.relu(self.a(x)))
        return {"logits": self.b(torch.stack(cache.kept).sum(0)), self.name: cache}


@pytest.mark.parametrize(("name", "cut"), [("cache", True), ("features", False)])
def test_state_for_the_next_call_is_no_output(name, cut):
    """A cache that goes back into the model may have any width; what only the caller reads may not."""
    torch.manual_seed(0)
    model = Cached(name).eval()
    graph = bough.trace(model, X)
    assert [g.name for g in graph.groups] == (["a"] if cut else [])
    if cut:
        plan = bough.plan(graph, bough.score(graph, bough.importance.Random(0)), keep=0.5)
        small = bough.cut(model, plan)
        report = bough.verify(model, small, plan, X)
        assert report.equal
        assert [o.path for o in report.outputs] == ["['logits']"]
        assert small(X, small(X)["cache"])["logits"].shape == (3, 4)


def test_what_a_model_holds_itself_is_seen_before_the_run_is_undone():
    class Notes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.found = nn.Linear(8, 16), nn.Linear(16, 4), {}

        def forward(self, x):
            self.found["features"] = F.relu(self.a(x))
            self.found["logits"] = self.b(self.found["features"])
            return self.found

    model = Notes().eval()
    graph = bough.trace(model, X)
    assert not graph.groups
    assert model.found == {}
