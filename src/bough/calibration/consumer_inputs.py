"""The activations that stand for a group: the inputs of the operators that consume its units.

A group's units are observed where an operator reduces over them: the inputs of the linear layers, convolutions and matrix
products that contract them, hence after the normalization and the nonlinearity. A group of a residual stream has many
consumers; each criterion states whether it adds or averages over them. A group that no contraction reduces over (a mean does,
or a selection of experts) is observed where an operator takes its axis and does not pass it on; if no operator does, then
wherever the axis occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord, RecordedRun
from bough.ops import Place
from bough.spaces import Atom, Space, normal
from bough.tracing.contractions import Contraction, contractions, weights_of


@dataclass(frozen=True, slots=True)
class InputAxis:
    """An axis of an operator's input.

    Attributes:
        op: index of the operator in `graph.ops`.
        argument: number of the tensor argument.
        dim: of that tensor.
        contraction: the contraction over this axis; None if the operator contracts nothing.
        weight: (argument, dim) at which the weight of the contraction has this axis; None if no weight takes part.
    """

    op: int
    argument: int
    dim: int
    contraction: Contraction | None = field(default=None, compare=False)
    weight: Place | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Name of the axis in running sums."""
        return f"{self.op}.{self.argument}.{self.dim}"

    def space(self, graph: Graph) -> Space:
        """Return the index space of the axis, in normal form."""
        return normal(graph.ops[self.op].arguments[self.argument][self.dim])

    def rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the activation with this axis first: [size of the axis, product of all other sizes]."""
        x = tensors[self.argument].detach()
        return x.movedim(self.dim, 0).reshape(x.shape[self.dim], -1)

    def weight_rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the weights that multiply each index of the axis: [size of the axis, product of all other sizes]."""
        assert self.weight is not None
        w, size = tensors[self.weight[0]].detach(), tensors[self.argument].shape[self.dim]
        rows = w.movedim(self.weight[1], 0)
        if len(rows) == size:
            return rows.reshape(size, -1)
        groups = size // len(rows)  # a grouped convolution: [G x O, I, ...] -> [G x I, O x ...]
        return w.reshape(groups, -1, *w.shape[1:]).movedim(2, 1).reshape(size, -1)


def consumer_inputs(graph: Graph) -> dict[str, tuple[InputAxis, ...]]:
    """Return, for each group by name, the input axes at which its units are consumed.

    Raises:
        PlanError: no activation of the first call has the units of a group.
    """
    axes_of = _consuming_axes(graph)
    unobserved = [g for g in graph.groups if g.atom not in axes_of]
    if unobserved:
        name = unobserved[0].name
        raise PlanError(f"{_why_unobserved(graph, unobserved[0])}: use a criterion on weights, or ignore={name!r}")
    return {g.name: tuple(axes_of[g.atom]) for g in graph.groups}


def unreached_groups(graph: Graph) -> dict[str, str]:
    """Return the groups that data does not reach, because the first call does not read them, with that reason."""
    if not graph.further_ops:
        return {}
    axes_of = _consuming_axes(graph)
    return {g.name: _why_unobserved(graph, g) for g in graph.groups if g.atom not in axes_of and _reading_run(graph, g)}


def _why_unobserved(graph: Graph, group: Group) -> str:
    """Say why no activation of the first call has the units of a group."""
    recorded, name = _reading_run(graph, group), group.name
    if recorded is None:
        return f"no activation has the units of {name!r}"
    if recorded.beside:
        return f"no call reads the units of {name!r} (give one that does: bough.Call)"
    if recorded.other_mode:
        return f"only a run in the other mode (training or evaluation) reads the units of {name!r}"
    call = f"call {recorded.call + 1} of {len(graph.calls)}, {graph.calls[recorded.call]},"
    return (
        f"only {call} reads the units of {name!r}, and data is passed through the first call (to pass it through several, make "
        "them one: bough.Call(x, method=f), where f(model, x) makes them all)"
    )


def _reading_run(graph: Graph, group: Group) -> RecordedRun | None:
    """Return the first of the further runs in which a group's units are used."""
    for recorded in graph.runs[1:]:
        ops = graph.all_ops[recorded.start : recorded.end]
        if any(group.atom in normal(s).atoms for op in ops for axes in op.arguments for s in axes):
            return recorded
    return None


def _consuming_axes(graph: Graph) -> dict[Atom, list[InputAxis]]:
    """Return the input axes at which the first call consumes units, for each atom of a group that has any."""
    axes_of: dict[Atom, list[InputAxis]] = {}
    constant: dict[Atom, list[InputAxis]] = {}  # of values computed from parameters alone, such as tables of positions
    origin = weights_of(graph)
    for c in contractions(graph.ops):
        activations = [p for p in c.places if origin(c.op, p[0]) is None]
        target = axes_of if activations else constant
        activations = activations or [next((p for p in c.places if not c.op.states[p[0]]), c.places[0])]
        weight = next((p for p in c.places if p not in activations), None)
        for argument, dim in activations:
            for atom in c.atoms:
                target.setdefault(atom, []).append(InputAxis(c.op.index, argument, dim, c, weight))
    axes_of = {**constant, **axes_of}
    for find in (_reduced_axes, _all_axes):
        missing = {g.atom for g in graph.groups if g.atom not in axes_of}
        if missing:
            for atom, axis in find(graph, missing, lambda op, i: origin(op, i) is None):
                axes_of.setdefault(atom, []).append(axis)
    return axes_of


def observed_axes(group: str, axes: Sequence[InputAxis], observed: Container[InputAxis]) -> list[InputAxis]:
    """Return the axes of a group that were observed; with data-dependent control flow some operators may not have run.

    Raises:
        PlanError: none was observed.
    """
    present = [axis for axis in axes if axis in observed]
    if not present:
        raise PlanError(f"on this data nothing reads the units of {group!r}: give data that takes the traced path")
    return present


IsActivation = Callable[[OpRecord, int], bool]


def _reduced_axes(graph: Graph, atoms: set[Atom], is_activation: IsActivation) -> Iterator[tuple[Atom, InputAxis]]:
    """Yield input axes with one of `atoms` that no result of the operator has."""
    in_states = _state_atoms(graph)
    for op in graph.ops:
        passed_on = {a for axes in op.results for s in axes for a in normal(s).atoms}
        yield from _unit_axes(op, atoms - passed_on, is_activation, in_states)


def _all_axes(graph: Graph, atoms: set[Atom], is_activation: IsActivation) -> Iterator[tuple[Atom, InputAxis]]:
    """Yield all input axes with one of `atoms`."""
    in_states = _state_atoms(graph)
    for op in graph.ops:
        yield from _unit_axes(op, atoms, is_activation, in_states)


def _unit_axes(
    op: OpRecord, atoms: set[Atom], is_activation: IsActivation, in_states: set[Atom]
) -> Iterator[tuple[Atom, InputAxis]]:
    """Yield the activation axes of an operator that have one of `atoms`.

    An axis that mixes units with batch or positions has another size on other data, so such axes are skipped.
    """
    for i, axes in enumerate(op.arguments):
        for d, space in enumerate(axes):
            present = normal(space).atoms
            for atom in atoms.intersection(present) if is_activation(op, i) and in_states.issuperset(present) else ():
                yield atom, InputAxis(op.index, i, d)


def _state_atoms(graph: Graph) -> set[Atom]:
    """Return the atoms that parameters and buffers have."""
    return {a for s in graph.states.values() for axis in s.axes for a in normal(axis).atoms}
