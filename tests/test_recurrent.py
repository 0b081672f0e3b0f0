"""Recurrent nets, cut to half without a hint, equal the originals whose units are silenced by hand."""

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bough
from tests.zoo import randomize, to_double
from tests.zoo.small_recurrent import ZOO, Given

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": nn.RNN}
READS = ("steps", "mean", "last", "both", "cells")


@dataclass(frozen=True)
class Options:
    kind: str = "lstm"
    inputs: int = 8
    hidden: int = 6
    layers: int = 1
    bias: bool = True
    batch_first: bool = True
    bidirectional: bool = False
    projection: int = 0
    lengths: tuple[int, ...] = ()  # packed where given
    enforce_sorted: bool = True
    learned: bool = False  # first states
    reads: str = "steps"

    @property
    def directions(self):
        return 1 + self.bidirectional


def layer(o, inputs, hidden, projection):
    more = {"nonlinearity": o.kind} if o.kind in ("tanh", "relu") else {}
    more |= {"proj_size": projection} if projection else {}
    return KINDS[o.kind](
        inputs, hidden, num_layers=o.layers, bias=o.bias, batch_first=o.batch_first, bidirectional=o.bidirectional, **more
    )


class Net(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, o: Options):
        super().__init__()
        self.options = o
        self.embed, self.rnn = nn.Linear(5, o.inputs), layer(o, o.inputs, o.hidden, o.projection)
        handed_on = o.projection or o.hidden
        width = {"last": handed_on, "both": 2 * handed_on, "cells": o.hidden}.get(o.reads, handed_on * o.directions)
        self.head = nn.Linear(width, 3)
        if o.learned:
            sizes = (handed_on, o.hidden) if o.kind == "lstm" else (o.hidden,)
            self.first = nn.ParameterList(torch.randn(o.layers * o.directions, 1, n) for n in sizes)

    def states(self, batch):
        given = [s.expand(-1, batch, -1).contiguous() for s in self.first]
        return tuple(given) if len(given) > 1 else given[0]

    def forward(self, x):
        o = self.options
        x = F.relu(self.embed(x))
        states = self.states(len(x)) if o.learned else None
        x = x if o.batch_first else x.transpose(0, 1)
        if o.lengths:
            x = pack_padded_sequence(x, torch.tensor(o.lengths), o.batch_first, o.enforce_sorted)
        out, last = self.rnn(x, states)
        if o.lengths:
            out, _ = pad_packed_sequence(out, o.batch_first)
        hidden, cells = last if o.kind == "lstm" else (last, last)
        read = {
            "steps": lambda: out,
            "mean": lambda: out.mean(1 if o.batch_first else 0),
            "last": lambda: hidden[-1],
            "both": lambda: torch.cat((hidden[-2], hidden[-1]), -1),
            "cells": lambda: cells[0],
        }
        return self.head(read[o.reads]())


@st.composite
def options(draw):
    kind = draw(st.sampled_from([*KINDS]))
    layers, both = draw(st.integers(1, 3)), draw(st.booleans())
    hidden = draw(st.integers(2, 7))
    lengths = draw(st.sampled_from([(), (6, 4), (3, 6)]))
    reads = [r for r in READS if (r != "cells" or kind == "lstm") and (r != "both" or layers * (1 + both) > 1)]
    return Options(
        kind, draw(st.integers(2, 7)), hidden, layers, draw(st.booleans()), draw(st.booleans()), both,
        projection=draw(st.integers(0, hidden - 1)) if kind == "lstm" else 0,
        lengths=lengths, enforce_sorted=lengths == (6, 4), learned=draw(st.booleans()), reads=draw(st.sampled_from(reads)),
    )  # fmt: skip


def built(make, *args):
    torch.manual_seed(0)
    return randomize(make(*args).eval())


def call(model, inputs):
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def planned(model, inputs, keep=0.5, **more):
    graph = bough.trace(model, inputs)
    assert not graph.unknown_ops
    assert not graph.real
    assert all(g.exact for g in graph.groups)
    return bough.plan(graph, bough.score(graph, bough.importance.Random(1)), keep=keep, **more)


def gone(plan, name, dim, size):
    """The units that a plan takes away, read off a dim that they alone make up."""
    return sorted({*range(size)} - {*plan.kept.get(name, {}).get(dim, range(size))})


def zero(parameter, rows):
    parameter.data[rows] = 0


def silence(rnn, hidden, cells):
    """Zeroes what makes these units: a row in every gate of each layer and direction, or a row of the projection."""
    for name, p in rnn.named_parameters():
        if name.startswith("weight_hr"):
            zero(p, hidden)
        else:
            size = rnn.hidden_size
            zero(p, [gate * size + unit for gate in range(len(p) // size) for unit in cells])


def silenced(model, plan):
    """The original, whose removed units give zero: what reads them is left as it is."""
    model = copy.deepcopy(model)
    o = model.options
    hidden = gone(plan, "rnn.weight_hh_l0", 1, o.projection or o.hidden)
    cells = gone(plan, "rnn.weight_hr_l0", 1, o.hidden) if o.projection else hidden
    zero(model.embed.weight, gone(plan, "embed.weight", 0, o.inputs))
    zero(model.embed.bias, gone(plan, "embed.weight", 0, o.inputs))
    silence(model.rnn, hidden, cells)
    for state, units in zip(model.first if o.learned else (), (hidden, cells), strict=False):
        state.data[..., units] = 0
    return model


def error(a, b, *inputs):
    with torch.no_grad():
        return (a(*inputs) - b(*inputs)).abs().max().item()


def check(o):
    model, x = built(Net, o), torch.randn(2, 6, 5, dtype=torch.double)
    plan = planned(model, x)
    small = bough.cut(model, plan)
    assert error(silenced(model, plan), small, x) < 1e-9
    assert bough.verify(model, small, plan, x).equal
    return model, plan, small, x


@given(options())
@settings(max_examples=12)
def test_cut_equals_silenced(o):
    check(o)


TABLE = {
    "lstm": Options(),
    "lstm_stack": Options(layers=3, bidirectional=True),
    "lstm_projected": Options(projection=4, layers=2, bidirectional=True),
    "lstm_steps_first": Options(batch_first=False, reads="cells", learned=True),
    "lstm_packed": Options(lengths=(6, 4), bidirectional=True),
    "lstm_packed_unsorted": Options(lengths=(3, 6), enforce_sorted=False, learned=True, reads="last"),
    "lstm_packed_projected": Options(lengths=(6, 4), projection=4, bias=False),
    "gru": Options("gru", reads="mean"),
    "gru_stack": Options("gru", layers=2, bidirectional=True, reads="both"),
    "gru_packed": Options("gru", lengths=(3, 6), enforce_sorted=False, batch_first=False),
    "tanh": Options("tanh", learned=True),
    "relu": Options("relu", layers=2, bidirectional=True, bias=False),
}


@functools.cache
def checked(name):
    return check(TABLE[name])


@pytest.mark.parametrize("name", TABLE)
def test_all_widths_go_to_half_and_the_module_says_so(name):
    o = TABLE[name]
    _, plan, small, _ = checked(name)
    assert all(2 * kept == total for kept, total in plan.groups.values())
    assert not plan.frozen
    assert (small.rnn.input_size, small.rnn.hidden_size) == (o.inputs // 2, o.hidden // 2)
    assert small.rnn.proj_size == o.projection // 2
    fresh = layer(o, small.rnn.input_size, small.rnn.hidden_size, small.rnn.proj_size)
    fresh.load_state_dict(small.rnn.state_dict())


@pytest.mark.parametrize("name", TABLE)
def test_in_place_gives_the_same(name):
    model, plan, small, x = checked(name)
    model = copy.deepcopy(model)
    weights = list(model.rnn.parameters())
    assert bough.cut_(model, plan) is model
    assert error(model, small, x) == 0
    assert all(a is b for a, b in zip(model.rnn._flat_weights, weights, strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_a_cut_model_copies_moves_and_trains(name):
    _, _, small, x = checked(name)
    assert error(copy.deepcopy(small), small, x) == 0
    assert error(copy.deepcopy(small).float().double(), small, x) < 1e-5
    trained = copy.deepcopy(small).train()
    trained(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained.rnn.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_nets_as_people_write_them(name):
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    model, inputs = randomize(model.eval()), to_double(inputs)
    graph = bough.trace(model, inputs)
    assert not graph.unknown_ops
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(1)), keep=0.5)
    assert all(2 * kept == total for kept, total in plan.groups.values())
    assert not plan.frozen
    hidden = {g.name for g in graph.groups for m in g.members if m.name.rpartition(".")[2].startswith("weight_hh")}
    assert hidden
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, inputs)
    assert report.equal
    assert report.scale > 0.01


def test_states_that_are_given_or_returned_stay():
    model = built(Given)
    inputs = (torch.randn(6, 2, 5).double(), *torch.randn(2, 1, 2, 6).double())
    graph = bough.trace(model, inputs)
    assert [g.name for g in graph.groups] == ["embed"]
    assert {f.name: f.reason for f in graph.frozen}["rnn"] == "input of the model"
    plan = planned(model, inputs)
    small = bough.cut(model, plan)
    assert (small.rnn.input_size, small.rnn.hidden_size) == (4, 6)
    assert bough.verify(model, small, plan, inputs).equal


def test_cells_stay_wider_than_the_projection():
    """torch can not tell a projection from none where both are of one size."""
    model, x = built(Net, Options(hidden=6, projection=5)), torch.randn(2, 6, 5).double()
    plan = planned(model, x, keep={"rnn": 3, "rnn#2": 3})
    assert plan.groups["rnn"] == (6, 6)
    assert plan.groups["rnn#2"] == (3, 5)
    assert plan.frozen == {"rnn": plan.frozen["rnn"]}
    assert "it must stay wider than 3, and would be 3" in plan.frozen["rnn"]
    assert bough.verify(model, bough.cut(model, plan), plan, x).equal
    with pytest.raises(bough.errors.ConflictError, match="must stay wider than 3"):
        planned(model, x, keep={"rnn": 3, "rnn#2": 3}, on_conflict="raise")


def test_steps_and_layers_are_no_units():
    class Across(nn.Module):
        """Steps along what a layer computes: their order matters."""

        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.head = nn.Linear(5, 8), nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x).transpose(1, 2))[0])

    graph = bough.trace(Across(), torch.randn(2, 6, 5))
    assert [g.name for g in graph.groups] == ["rnn"]
    assert "steps of a recurrence" in {f.name: f.reason for f in graph.frozen}["embed"]


class Summed(nn.Module):
    """A sum over the units, whose first states are zero, or the model's own but no parameters."""

    def __init__(self, kind, at_zero):
        super().__init__()
        self.rnn, self.at_zero = layer(Options(kind), 5, 6, 0), at_zero
        self.register_buffer("first", torch.rand(1, 2, 6))

    def forward(self, x):
        first = torch.zeros_like(self.first) if self.at_zero else self.first
        out, last = self.rnn(x, (first, first) if isinstance(self.rnn, nn.LSTM) else first)
        return out.sum(-1), last[-1].sum(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_zero", [True, False])
def test_a_unit_without_weights_stays_zero_if_it_begins_at_zero(kind, at_zero):
    """In an RNN it is zero from the first step."""
    model, x = built(Summed, kind, at_zero), torch.randn(2, 6, 5).double()
    graph = bough.trace(model, x)
    (group,) = graph.groups
    assert group.exact == (at_zero or kind in ("tanh", "relu"))
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random(1)), keep=0.5)
    small = bough.cut(model, plan)
    assert small.rnn.hidden_size == small.first.shape[-1] == 3
    assert bough.verify(model, small, plan, x).equal


def test_moving_weights_in_memory_is_no_part_of_the_run():
    class Flattening(Net):
        """What `flatten_parameters` does on a GPU."""

        def forward(self, x):
            torch._cudnn_rnn_flatten_weight(self.rnn._flat_weights, 4, 8, 2, 6, 0, 1, True, False)
            return super().forward(x)

    for real in (False, True):
        graph = bough.trace(Flattening(Options()), torch.randn(2, 6, 5), real=real)
        assert not graph.unknown_ops
        assert [g.name for g in graph.groups] == ["embed", "rnn"]


@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm"])
def test_parametrized_weights(way):
    model, x = built(Net, Options()), torch.randn(2, 6, 5).double()
    getattr(nn.utils.parametrizations, way)(model.rnn, "weight_hh_l0")
    model(x)  # what the layer now holds of its weight has a history
    plan = planned(model, x)
    small = bough.cut(model, plan)
    assert small.rnn.hidden_size == 3
    assert bough.verify(model, small, plan, x).equal
    small(x).sum().backward()


def test_a_model_without_memory_for_it():
    with torch.device("meta"):
        model = Net(Options(hidden=40_000, inputs=30_000, layers=8, bidirectional=True)).eval()
    graph = bough.trace(model, torch.randn(2, 6, 5, device="meta"))
    assert [(g.name, g.size) for g in graph.groups] == [("embed", 30_000), ("rnn", 40_000)]


def test_cost_counts_each_gate_of_each_step():
    o = Options(projection=4, layers=2, bidirectional=True)
    graph = bough.trace(Net(o), torch.randn(2, 6, 5))
    steps = 2 * 6
    first, second = 4 * 6 * (8 + 4) + 4 * 6, 4 * 6 * (8 + 4) + 4 * 6
    assert graph.cost().macs == steps * (5 * 8 + 2 * (first + second) + 8 * 3)
    packed = bough.trace(Net(Options("gru", lengths=(6, 4))), torch.randn(2, 6, 5))
    assert packed.cost().macs == 12 * 5 * 8 + 10 * 3 * 6 * (8 + 6) + 12 * 6 * 3  # ten rows are not padding


def test_saved_and_loaded(tmp_path):
    def build():
        torch.manual_seed(0)
        return Net(Options(layers=2, bidirectional=True)).eval()

    x = torch.randn(2, 6, 5)
    result = bough.prune(build(), x, bough.Budget(params="50%"))
    bough.save(result, tmp_path)
    again = bough.load(tmp_path, build)
    assert torch.equal(again(x), result.model(x))
    assert again.rnn.hidden_size == result.model.rnn.hidden_size < 6
    assert result.report.equal
