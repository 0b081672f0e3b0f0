"""Mixtures of experts in a recorded run: where each expert's output is computed, and where the gated outputs are read.

Experts are the axis of stacked weights over which a contraction does not sum, and which a gate chooses or weighs later on. An
expert's output is the result of the last contraction with such weights. The gated outputs are observed at the first operator
that reads the only value through which all of them pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.ops import spec
from bough.spaces import Atom, Space, normal
from bough.tracing.contractions import contractions
from bough.tracing.flow import Flow

_PICKING = "select", "index", "index_select"


@dataclass(frozen=True, slots=True)
class ExpertOutput:
    """The operator that computes outputs of experts, and how its rows are assigned to experts.

    Attributes:
        op: index of the contraction in `graph.ops`.
        argument: number of its argument that holds the weights.
        parameter, dim: the stacked parameter, and its dim of the experts.
        result: index of the operator whose result is the output: the contraction, or the addition of a bias after it.
        features: dims of the result that hold the features of an output; the others are rows.
        axis: dim of the result that is the axis of the experts, if it has one.
        chosen: index of the operator that picks the weights of experts by a tensor of indices, if one does.
        chosen_dims: dims of the result that the axes of that tensor become.
    """

    op: int
    argument: int
    parameter: str
    dim: int
    result: int
    features: tuple[int, ...]
    axis: int | None = None
    chosen: int | None = None
    chosen_dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of one gate.

    Attributes:
        space: index space of the axis of the experts.
        parameters: (parameter, dim of the experts) of the experts' own weights and biases, without those of the gate.
        outputs: where outputs of experts are computed.
        weighed: whether a gate multiplies the outputs.
        gated: (operator, argument) that first reads what all gated outputs have become; None if only the model's output is.
    """

    space: Space
    parameters: tuple[tuple[str, int], ...]
    outputs: tuple[ExpertOutput, ...]
    weighed: bool
    gated: tuple[int, int] | None


def find_mixtures(graph: Graph) -> list[Mixture]:
    """Return the mixtures of experts whose outputs are observable one by one.

    Raises:
        PlanError: the run does not tell the outputs of the experts of a group apart.
    """
    flow, by_space = Flow(graph), dict[tuple[Atom, ...], list[_StackedWeight]]()
    for weight in _stacked_weights(flow):
        by_space.setdefault(weight.space.atoms, []).append(weight)
    found = [m for weights in by_space.values() if (m := _mixture(flow, weights)) is not None]
    seen = {a for m in found for a in m.space.atoms}
    for group in graph.groups:
        if group.kind == "expert" and group.atom not in seen:
            raise _not_told_apart(group)
    return found


def _not_told_apart(group: Group) -> PlanError:
    """Return the error for experts whose outputs are not observable one by one."""
    return PlanError(
        f"the run does not tell the outputs of the experts of {group.name!r} apart: use another criterion, or "
        f"ignore={group.name!r}"
    )


@dataclass(frozen=True, slots=True)
class _StackedWeight:
    """A contraction with weights of experts: its argument, and the parameter with the dim of the experts."""

    op: OpRecord
    argument: int
    parameter: str
    dim: int
    space: Space
    features: frozenset[Atom]


def _stacked_weights(flow: Flow) -> Iterator[_StackedWeight]:
    """Yield the contractions of activations with weights that have an axis of units which is neither summed over nor made."""
    graph, units = flow.graph, {g.atom for g in flow.graph.groups}
    for c in contractions(graph.ops):
        weights = [(i, _weights(flow, c.op, i)) for i, _ in c.places]
        if all(names is not None for _, names in weights):
            continue  # a product of weights
        for argument, names in weights:
            for name in sorted(names or ()):
                axes = [normal(axis) for axis in graph.states[name].axes]
                for dim, space in enumerate(axes):
                    made = (_atoms([*axes[:dim], *axes[dim + 1 :]]) - c.atoms) & _atoms(c.op.results[0])
                    if made and units.intersection(space.atoms) and c.atoms.isdisjoint(space.atoms) and _is_stack(c.op, space):
                        yield _StackedWeight(c.op, argument, name, dim, space, frozenset(made))


def _weights(flow: Flow, op: OpRecord, argument: int) -> frozenset[str] | None:
    """Return the parameters that an argument is made of, also if a tensor of indices picks them; None for an activation."""
    names = flow.origin(op, argument)
    while names is None and (produced := flow.made.get(op.inputs[argument])) is not None:
        op, argument = flow.graph.ops[produced[0]], 0
        if not op.arguments or not (op.name in _PICKING or spec(op.name).rearranges):
            return None
        names = flow.origin(op, 0)
    return names


def _is_stack(op: OpRecord, space: Space) -> bool:
    """Whether an operator does not make an axis of units: none of its results has them, or an activation has them, too."""
    atoms = set(space.atoms)
    holding = [i for i, axes in enumerate(op.arguments) if atoms & _atoms(axes)]
    return not atoms & _atoms(op.results[0]) or len(holding) > 1


def _atoms(axes: Sequence[Space]) -> set[Atom]:
    """Return the atoms of some axes."""
    return {a for axis in axes for a in normal(axis).atoms}


def _mixture(flow: Flow, weights: Sequence[_StackedWeight]) -> Mixture | None:
    """Return the mixture of some stacked weights; None if no gate chooses or weighs them, or nothing distinguishes its rows."""
    graph, space = flow.graph, weights[0].space
    outputs_of = {w.op.index: _derived(graph, w.op.values) for w in weights}
    inner = set().union(*outputs_of.values())
    with_axis = {v for op in graph.ops for v, axes in zip(op.values, op.results, strict=True) if _atoms(axes) & {*space.atoms}}
    of_gate = _derived(graph, with_axis - inner, without=inner)
    products = {op.index for op in graph.ops if _multiplies(op) and inner & {*op.inputs} and of_gate & {*op.inputs}}
    chosen = any(g.kind == "expert" and g.atom in space.atoms for g in graph.groups)
    if not products and not chosen:
        return None
    last = [w for w in weights if not any(_leads_to(graph, w, other, products) for other in weights)]
    outputs = [_output(flow, w) for w in last]
    if not outputs or any(o is None for o in outputs):
        return None
    found = tuple(o for o in outputs if o is not None)
    own = _own_parameters(graph, weights, inner)
    return Mixture(space, own, found, bool(products), _first_reader(graph, found, products) if products else None)


def _own_parameters(graph: Graph, weights: Sequence[_StackedWeight], inner: Collection[int]) -> tuple[tuple[str, int], ...]:
    """Return the stacked weights, and other parameters with an axis of the experts that meet what the weights have computed."""
    space = weights[0].space
    biases = (
        (name, dim)
        for name, state in graph.states.items()
        for dim, axis in enumerate(state.axes)
        if normal(axis) == space and _meets(graph, name, inner)
    )
    return tuple(dict.fromkeys([*((w.parameter, w.dim) for w in weights), *biases]))


def _meets(graph: Graph, name: str, values: Collection[int]) -> bool:
    """Whether an operator reads one of `values` together with a parameter or a part that was picked from it."""
    parts: set[int] = set()
    for op in graph.ops:
        reads = [i for i, state in enumerate(op.states) if state == name or op.inputs[i] in parts]
        if reads and not {*op.inputs}.isdisjoint(values):
            return True
        if reads == [0] and (op.name in _PICKING or spec(op.name).rearranges):
            parts.update(op.values)
    return False


def _leads_to(graph: Graph, weight: _StackedWeight, other: _StackedWeight, products: Collection[int]) -> bool:
    """Whether the result of one contraction reaches the activation of another one of the same experts, ungated."""
    if weight.parameter == other.parameter:
        return False
    reached = set(weight.op.values)
    for op in graph.ops[weight.op.index + 1 : other.op.index]:
        if op.index not in products and not reached.isdisjoint(op.inputs):
            reached.update(op.values)
    return not reached.isdisjoint(other.op.inputs)


def _multiplies(op: OpRecord) -> bool:
    """Whether an operator multiplies its arguments by each other."""
    return op.name.rstrip("_") == "mul" or spec(op.name).contracts is not None


def _derived(graph: Graph, values: Collection[int], without: Collection[int] = ()) -> set[int]:
    """Return `values` and all that is computed from them, except for `without`."""
    derived = set(values)
    for op in graph.ops:
        if not derived.isdisjoint(op.inputs):
            derived.update(v for v in op.values if v not in without)
    return derived


def _first_reader(graph: Graph, outputs: Sequence[ExpertOutput], products: Collection[int]) -> tuple[int, int] | None:
    """Return the (operator, argument) that first reads the only value through which all gated outputs pass."""
    made_at = {value: op.index for op in graph.ops for value in op.values}
    last_read = {value: op.index for op in graph.ops for value in op.inputs}
    made = _derived(graph, [v for o in outputs for v in graph.ops[o.result].values])
    sites = Counter((op.name, op.where, op.module) for op in graph.ops)
    for op in graph.ops[max(products) + 1 :]:
        live = {v for v in made if made_at[v] < op.index <= last_read.get(v, -1)}
        once = sites[op.name, op.where, op.module] == 1 and not spec(op.name).rearranges
        if len(live) == 1 and once and (value := live.pop()) in op.inputs:
            return op.index, op.inputs.index(value)
    return None


def _output(flow: Flow, weight: _StackedWeight) -> ExpertOutput | None:
    """Return how the rows of a contraction's result are assigned to experts; None if nothing shows it, or it is overwritten."""
    op, space = weight.op, weight.space
    result = op.results[0]
    features = tuple(d for d, axis in enumerate(result) if weight.features.intersection(normal(axis).atoms))
    after = _with_bias(flow, op, space)
    follower = flow.only_reader(after)
    if follower is not None and follower[0].name.endswith("_") and follower[1] == 0:
        return None
    output = ExpertOutput(op.index, weight.argument, weight.parameter, weight.dim, after.index, features)
    axis = next((d for d, other in enumerate(result) if normal(other) == space), None)
    if axis is not None:
        return replace(output, axis=axis)
    if _has_axis(op, weight.argument, space):
        return output if op.name == "_grouped_mm" else None
    picking = _picking(flow, op, weight.argument, space)
    if picking is None or picking.name == "select":
        return output if picking is not None else None
    dims = _dims_in(picking.arguments[1], result) if len(picking.arguments) == 2 else None
    return None if dims is None else replace(output, chosen=picking.index, chosen_dims=dims)


def _has_axis(op: OpRecord, argument: int, space: Space) -> bool:
    """Whether an argument of an operator has an axis over `space`."""
    return any(normal(axis) == space for axis in op.arguments[argument])


def _picking(flow: Flow, op: OpRecord, argument: int, space: Space) -> OpRecord | None:
    """Return the operator that takes weights of single experts out of a parameter, for an argument made of such weights."""
    while (produced := flow.made.get(op.inputs[argument])) is not None:
        op, argument = flow.graph.ops[produced[0]], 0
        if op.arguments and _has_axis(op, 0, space):
            return op if op.name in _PICKING else None
    return None


def _dims_in(axes: Sequence[Space], result: Sequence[Space]) -> tuple[int, ...] | None:
    """Return the dims of `result` that are `axes`, in order; None if one is missing."""
    dims: list[int] = []
    for axis in axes:
        start = dims[-1] + 1 if dims else 0
        found = next((d for d in range(start, len(result)) if normal(result[d]) == normal(axis)), None)
        if found is None:
            return None
        dims.append(found)
    return tuple(dims)


def _with_bias(flow: Flow, op: OpRecord, space: Space) -> OpRecord:
    """Return the addition of the experts' bias to the result of an operator, or the operator itself."""
    after = flow.only_reader(op)
    if after is None or after[0].scalars or len(after[0].inputs) != 2:
        return op
    if after[0].name != "add" and (after[0].name, after[1]) != ("add_", 0):
        return op
    add, argument = after[0], 1 - after[1]
    value = add
    while not value.states[argument]:
        produced = flow.made.get(value.inputs[argument])
        if produced is None or not flow.graph.ops[produced[0]].arguments:
            return op
        value, argument = flow.graph.ops[produced[0]], 0
    state = flow.graph.states[value.states[argument]]
    return add if state.parameter and any(normal(axis) == space for axis in state.axes) else op
