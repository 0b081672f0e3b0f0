"""Which activation stands for a group: what its consumers read.

A group's units are read where they are summed over: the inputs of the linear layers, convolutions and products that
contract them, so after the norm and the nonlinearity. A group of a residual stream has many readings; each criterion
says whether it adds or averages over them. A group that no contraction sums over (a mean does, a choice of experts) is
read where an op takes it in and does not hand it on; one that none takes in, wherever it occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.spaces import Atom, Space, normal
from bough.tracing.contractions import Contraction, Place, contractions, weights_of


@dataclass(frozen=True, slots=True)
class Reading:
    """An axis of an argument of an op. `weight`: the place where the weight that reads it has that axis."""

    op: int
    argument: int
    dim: int
    contraction: Contraction | None = field(default=None, compare=False)
    weight: Place | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        return f"{self.op}.{self.argument}.{self.dim}"

    def space(self, graph: Graph) -> Space:
        """The axis's space."""
        return normal(graph.ops[self.op].arguments[self.argument][self.dim])

    def rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """[size of the axis, all else]: x with the axis first."""
        x = tensors[self.argument].detach()
        return x.movedim(self.dim, 0).reshape(x.shape[self.dim], -1)

    def weight_rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """[size of the axis, all else]: the weights that read each index of the axis."""
        assert self.weight is not None
        w, size = tensors[self.weight[0]].detach(), tensors[self.argument].shape[self.dim]
        rows = w.movedim(self.weight[1], 0)
        if len(rows) == size:
            return rows.reshape(size, -1)
        groups = size // len(rows)  # a grouped convolution: [G x O, I, ...] -> [G x I, O x ...]
        return w.reshape(groups, -1, *w.shape[1:]).movedim(2, 1).reshape(size, -1)


def readings(graph: Graph) -> dict[str, tuple[Reading, ...]]:
    """The readings of each group.

    Raises:
        PlanError: a group of which no activation has units.
    """
    found: dict[Atom, list[Reading]] = {}
    constant: dict[Atom, list[Reading]] = {}  # of what is computed from parameters alone, such as tables of positions
    origin = weights_of(graph)
    for c in contractions(graph.ops):
        activations = [p for p in c.places if origin(c.op, p[0]) is None]
        into = found if activations else constant
        activations = activations or [next((p for p in c.places if not c.op.states[p[0]]), c.places[0])]
        weight = next((p for p in c.places if p not in activations), None)
        for argument, dim in activations:
            for atom in c.atoms:
                into.setdefault(atom, []).append(Reading(c.op.index, argument, dim, c, weight))
    found = {**constant, **found}
    for places in (_taken_in, _anywhere):
        missing = {g.atom for g in graph.groups if g.atom not in found}
        if missing:
            for atom, reading in places(graph, missing, lambda op, i: origin(op, i) is None):
                found.setdefault(atom, []).append(reading)
    lost = [g.name for g in graph.groups if g.atom not in found]
    if lost:
        raise PlanError(f"no activation has the units of {lost[0]!r}: use a criterion on weights, or ignore={lost[0]!r}")
    return {g.name: tuple(found[g.atom]) for g in graph.groups}


def seen(name: str, found: Sequence[Reading], values: Container[Reading]) -> list[Reading]:
    """Of a group's readings those that occurred: where control flow depends on data, some may not.

    Raises:
        PlanError: none did.
    """
    there = [r for r in found if r in values]
    if not there:
        raise PlanError(f"on this data nothing reads the units of {name!r}: give data that takes the traced path")
    return there


Activation = Callable[[OpRecord, int], bool]


def _taken_in(graph: Graph, atoms: set[Atom], activation: Activation) -> Iterator[tuple[Atom, Reading]]:
    held = _in_states(graph)
    for op in graph.ops:
        out = {a for axes in op.results for s in axes for a in normal(s).atoms}
        yield from _held(op, atoms - out, activation, held)


def _anywhere(graph: Graph, atoms: set[Atom], activation: Activation) -> Iterator[tuple[Atom, Reading]]:
    held = _in_states(graph)
    for op in graph.ops:
        yield from _held(op, atoms, activation, held)


def _held(op: OpRecord, atoms: set[Atom], activation: Activation, held: set[Atom]) -> Iterator[tuple[Atom, Reading]]:
    """Axes of units alone: one mixed with batch or positions has another size on other data."""
    for i, axes in enumerate(op.arguments):
        for d, space in enumerate(axes):
            there = normal(space).atoms
            for atom in atoms.intersection(there) if activation(op, i) and held.issuperset(there) else ():
                yield atom, Reading(op.index, i, d)


def _in_states(graph: Graph) -> set[Atom]:
    return {a for s in graph.states.values() for axis in s.axes for a in normal(axis).atoms}
