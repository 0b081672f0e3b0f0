"""Recurrent layers and cells (LSTM, GRU, RNN of tanh or relu), and sequences packed for them.

A weight's rows are gates x H, gate by gate, so a hidden unit takes a row of each gate. All layers and directions of one
call share H, because their states are one tensor [layers x directions, B, H]; of a projected LSTM, H are the cells and
R, the projection's rows, the hidden units that are handed on.

A unit whose rows are all zero: in an LSTM, c' = s(0) c + s(0) tanh(0) = c / 2; in a GRU, h' = (1 - s(0)) tanh(0) + s(0) h
= h / 2; in an RNN, h' = 0. So it stays zero where its first state is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bough.graph import GroupKind
from bough.ops.context import KERNEL, Context, Typing, argument
from bough.ops.meta import demand, like
from bough.ops.spec import Place, RecordedOp, contracts_within, on_shapes, rule, traits
from bough.spaces import Space, concat, product


@dataclass(frozen=True, slots=True)
class Weights:
    """One direction of one layer: weights [gates x H, I] and [gates x H, R], biases [gates x H], projection [R, H]."""

    inputs: Tensor
    hidden: Tensor
    biases: tuple[Tensor, ...]
    projection: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A call of a recurrent layer: on [T, B, I] (or [B, T, I]), or on packed rows [N, I]."""

    x: Tensor
    states: tuple[Tensor, ...]  # h, or h and c: [layers x directions, B, R or H]
    params: tuple[Tensor, ...]
    biased: bool
    layers: int
    directions: int
    packed: bool
    batch_first: bool

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> Recurrence:
        """From the arguments of aten::lstm, gru, rnn_tanh or rnn_relu in either form."""
        packed = isinstance(args[3], (tuple, list))
        x, states, params, biased, layers, _, _, both, *rest = (args[0], *args[2:]) if packed else args
        states = tuple(states) if isinstance(states, (tuple, list)) else (states,)
        return cls(x, states, tuple(params), biased, layers, 1 + bool(both), packed, bool(rest and rest[0]))

    @property
    def projected(self) -> bool:
        return len(self.params) > self.layers * self.directions * (4 if self.biased else 2)

    def weights(self) -> list[tuple[Weights, ...]]:
        """Of each layer, of each direction."""
        each = len(self.params) // (self.layers * self.directions)
        parts = [self._weights(self.params[i : i + each]) for i in range(0, len(self.params), each)]
        return [tuple(parts[i : i + self.directions]) for i in range(0, len(parts), self.directions)]

    def _weights(self, given: tuple[Tensor, ...]) -> Weights:
        end = 4 if self.biased else 2
        return Weights(given[0], given[1], given[2:end], given[end] if len(given) > end else None)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _layers(c: Context, call: Any, result: Any) -> list[Typing]:
    if call.kwargs:
        return []
    r = Recurrence.of(call.args)
    x, states = c.of(r.x), [c.of(s) for s in r.states]
    hidden, cells = states[0].axes[-1], states[-1].axes[-1]
    if r.projected:
        c.notes.narrower.append((hidden, cells))  # torch takes states of equal sizes for those of no projection
    else:
        c.unify(hidden, cells)
    batch, steps = _axes_before(c, r, x, states), x.axes[:-1]
    into = Typing(x.axes, x.null)
    nulls: list[tuple[bool, bool]] = []
    for layer in r.weights():
        given = [_direction(c, call.name, w, into, states) for w in layer]
        into = Typing((*steps, concat(*[hidden] * len(layer))), (*(False,) * len(steps), all(h for h, _ in given)))
        nulls += given
    whole = c.data(r.layers * r.directions, "recurrent layers")
    ends = [
        Typing((whole, batch, hidden), (False, False, all(n for n, _ in nulls))),
        Typing((whole, batch, cells), (False, False, all(n for _, n in nulls))),
    ]
    return [into, *ends[: len(states)]]


def _axes_before(c: Context, r: Recurrence, x: Typing, states: list[Typing]) -> Space:
    """Types the axes of steps, rows and layers; gives the batch's."""
    batch = states[0].axes[1]
    for state in states:
        c.freeze(state.axes[0], "recurrent layers")
        c.unify(batch, state.axes[1])
    if r.packed:
        c.freeze(batch, "packed by lengths")
        c.freeze(x.axes[0], "packed by lengths")
    else:
        c.freeze(x.axes[1 if r.batch_first else 0], "steps of a recurrence")
        c.unify(x.axes[0 if r.batch_first else 1], batch)
    return batch


def _direction(c: Context, name: str, w: Weights, x: Typing, states: list[Typing]) -> tuple[bool, bool]:
    """Types the weights of one direction; says whether the hidden state and the cell of a masked unit stay zero."""
    hidden, cells = states[0].axes[-1], states[-1].axes[-1]
    inputs, recurrent = c.of(w.inputs), c.of(w.hidden)
    gates = c.data(inputs.axes[0].size // cells.size, KERNEL)
    over_rows = [inputs, recurrent, *(c.of(b) for b in w.biases)]
    for t in over_rows:
        c.unify(t.axes[0], product(gates, cells))
    c.contract(x.axes[-1], inputs.axes[1], x.null[-1] or inputs.null[1])
    c.contract(hidden, recurrent.axes[1], recurrent.null[1])
    c.macs(*x.axes, gates, cells)
    c.macs(*x.axes[:-1], hidden, gates, cells)
    c.mark(GroupKind.NEURON, hidden, cells)
    cell_null = all(t.null[0] for t in over_rows) and states[-1].null[-1]
    if w.projection is not None:
        projection = c.of(w.projection)
        c.unify(hidden, projection.axes[0])
        c.contract(cells, projection.axes[1], projection.null[1])
        c.macs(*x.axes[:-1], hidden, cells)
        return projection.null[0], cell_null
    return cell_null or (name.startswith("rnn") and all(t.null[0] for t in over_rows)), cell_null


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(c: Context, call: Any, result: Any) -> Any:
    """One step."""
    given = argument(call, 1, "hx")
    x, states = c.of(call.args[0]), [c.of(s) for s in (given if isinstance(given, (tuple, list)) else (given,))]
    for state in states:
        c.unify(states[0].axes[-1], state.axes[-1])
        c.unify(x.axes[0], state.axes[0])
    biases = (argument(call, 4, "b_ih"), argument(call, 5, "b_hh"))
    w = Weights(argument(call, 2, "w_ih"), argument(call, 3, "w_hh"), tuple(b for b in biases if b is not None))
    nulls = _direction(c, call.name, w, x, states)
    typed = [Typing((x.axes[0], states[0].axes[-1]), (False, n)) for n in nulls]
    return typed[0] if isinstance(result, Tensor) else typed


@rule("_pack_padded_sequence")
def _packed(c: Context, call: Any, result: Any) -> list[Typing]:
    """[B, T, ...] or [T, B, ...] as rows [N, ...], padding left out, and how many rows each step has."""
    x = c.of(call.args[0])
    for axis in (*x.axes[:2], *c.of(call.args[1]).axes):
        c.freeze(axis, "packed by lengths")
    rows, steps = (c.data(r.shape[0], "packed by lengths") for r in result)
    return [Typing((rows, *x.axes[2:]), (False, *x.null[2:])), Typing((steps,), (False,))]


@rule("_pad_packed_sequence")
def _padded(c: Context, call: Any, result: Any) -> list[Typing]:
    """Rows [N, ...] as [B, T, ...] or [T, B, ...], filled up with a value, and the lengths."""
    x = c.of(call.args[0])
    batch, steps = (c.data(n, "packed by lengths") for n in result[0].shape[:2])
    filled_null = argument(call, 3, "padding_value", 0) == 0
    null = (False, False, *(n and filled_null for n in x.null[1:]))
    return [Typing((batch, steps, *x.axes[1:]), null), Typing((c.data(result[1].shape[0], "packed by lengths"),), (False,))]


@on_shapes("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent_on_shapes(*args: Any, **named: Any) -> Any:
    if named:
        return NotImplemented
    r = Recurrence.of(args)
    hidden, cells = r.states[0].shape[-1], r.states[-1].shape[-1]
    batch = r.states[0].shape[1] if r.packed else r.x.shape[0 if r.batch_first else 1]
    for state in r.states:
        demand(state.shape[:2] == (r.layers * r.directions, batch), r.x, state)
    demand(r.projected == (hidden != cells), *r.states)
    gates, width = r.params[0].shape[0] // cells, r.x.shape[-1]
    for layer in r.weights():
        for w in layer:
            demand(w.inputs.shape == (gates * cells, width), r.x, w.inputs, *r.states)
            demand(w.hidden.shape == (gates * cells, hidden), w.hidden, *r.states)
            demand(all(b.shape == (gates * cells,) for b in w.biases), *w.biases, *r.states)
            demand(w.projection is None or w.projection.shape == (hidden, cells), w.projection, *r.states)
        width = hidden * r.directions
    return r.x.new_empty((*r.x.shape[:-1], width)), *(like(s) for s in r.states)


@contracts_within("lstm", "gru", "rnn_tanh", "rnn_relu")
def _over_columns(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    """The columns of every weight of recurrent layers, those of a projection included."""
    packed, states = isinstance(op.detail[3], tuple), 2 if op.name == "lstm" else 1
    yield from (((i, 1),) for i in range(1 + packed + states, len(op.arguments)) if len(op.arguments[i]) == 2)


@contracts_within("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _over_columns_of_cells(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    first = 3 if op.name == "lstm_cell" else 2
    yield from (((i, 1),) for i in (first, first + 1))


traits("_pack_padded_sequence", "_pad_packed_sequence", lengths=True)
