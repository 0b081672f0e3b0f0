"""Consumers whose weights refit can solve for: products of an activation and a weight, in the runs of both models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from bough.calibration import InputAxis
from bough.graph import Graph, OpRecord
from bough.ops import einsum_letters
from bough.planning import Plan
from bough.recovery.correspondence import PRODUCTS, changed_values, match_ops, name_after_cut, output_dim
from bough.spaces import Atom, Kept, normal
from bough.tracing.contractions import Contraction, contractions, weights_of
from bough.tracing.flow import Flow, Produced

WeightUses = Mapping[int, tuple[frozenset[str], InputAxis]]
"""For operators that multiply an activation by a weight: the parameters of the weight, and the contracted axis."""


@dataclass(frozen=True, slots=True)
class ResidualInput:
    """The value to which a consumer's output is added, computed earlier in both runs.

    Attributes:
        dense: the result of an operator that has this value in the dense run.
        small: the same in the cut model's run.
        add: the addition, in the dense run.
        argument: number of the value among the addition's arguments.
        norm: the batch norm between consumer and addition, in the cut model's run; None if there is none.
    """

    dense: Produced
    small: Produced
    add: OpRecord
    argument: int
    norm: OpRecord | None


@dataclass(frozen=True, slots=True)
class Consumer:
    """An operator of both runs whose weight, a parameter of the cut model or a view of one, can be solved for.

    Attributes:
        name: of the parameter.
        dense: the contracted axis in the dense run.
        small: the same in the cut model's run.
        constant: number of the argument that is added to the outputs; None if there is none.
        shift: name of the tensor that takes the solved constant: the parameter that is added or, without one, the running
            mean of the batch norm that alone reads the outputs; "" if there is neither.
        residual: the value to which the outputs are added, if there is one.
        routed: whether the rows that the operator processes depend on the data, so that those of both runs differ.
    """

    name: str
    dense: InputAxis
    small: InputAxis
    constant: int | None
    shift: str
    residual: ResidualInput | None
    routed: bool


@dataclass(frozen=True, slots=True)
class ConsumerSearch:
    """Consumers in the order of the run, and the reasons why other weights are not solved for."""

    consumers: tuple[Consumer, ...]
    skipped: dict[str, str]


def find_consumers(dense: Graph, small: Graph, plan: Plan, kept: Mapping[Atom, Kept], everything: bool) -> ConsumerSearch:
    """Return the consumers whose weights refit can solve for.

    Args:
        dense: of the dense model.
        small: of the cut model.
        plan: by which it was cut.
        kept: the kept units, as `kept_units` returns them.
        everything: whether to include all consumers whose input was changed by the cut, not only those that read cut units.
    """
    changed, dense_op = changed_values(dense, plan, kept), match_ops(dense, small, plan)
    uses, flow, dense_flow = dict(weight_uses(small)), Flow(small), Flow(dense)
    skipped: dict[str, str] = {}
    consumers: list[Consumer] = []
    dense_axes = {axis.op: axis for _, (_, axis) in weight_uses(dense)}

    def is_affected(axis: InputAxis) -> bool:
        assert axis.contraction is not None
        reads_cut = any(a in kept for a in _summed_atoms(axis.contraction))
        return reads_cut or (everything and dense.ops[axis.op].inputs[axis.argument] in changed)

    pairs = {index: dense_axes.get(dense_op[index].index) if index in dense_op else None for index in uses}
    affected = {n for index, (names, _) in uses.items() if (axis := pairs[index]) and is_affected(axis) for n in names}
    for index, (names, axis) in uses.items():
        dense_axis = pairs[index]
        if dense_axis is None:
            skipped.update(dict.fromkeys(names, "the dense model's run has no such op"))
            continue
        if affected.isdisjoint(names):
            continue
        reason = _obstacle(small, names, uses, flow, plan) or _mixing_obstacle(dense, dense_axis, kept)
        if reason:
            skipped.update(dict.fromkeys(names, reason))
            continue
        op, (name,) = small.ops[index], names
        constant = flow.constant(op)
        shift = flow.mean(op) if constant is None else op.states[constant]
        if constant is not None and not _is_solvable(small, shift, names, uses, flow):
            shift = ""
        routed = small.real or op.name == "_grouped_mm"
        residual = None if routed else _residual_input(op, flow, dense_flow, dense_op)
        consumers.append(Consumer(name, dense_axis, axis, constant, shift, residual, routed))
    for name, dims in plan.kept.items():
        new_name = name_after_cut(name, plan)
        if dims and len(dense.states[name].axes) > 1 and new_name in flow.recurrent:
            skipped[new_name] = f"read by {flow.recurrent[new_name]}, a recurrence"
    return ConsumerSearch(tuple(consumers), skipped)


def weight_uses(graph: Graph) -> Iterator[tuple[int, tuple[frozenset[str], InputAxis]]]:
    """Yield (op, (parameters, axis)) for each product of an activation and a weight."""
    origin = weights_of(graph)
    seen: set[int] = set()
    for c in contractions(graph.ops):
        origins = [origin(c.op, i) for i, _ in c.places]
        if c.op.index in seen or len(c.places) != 2 or sum(o is None for o in origins) != 1:
            continue
        activation = origins.index(None)
        names = origins[1 - activation]
        if names:
            seen.add(c.op.index)
            yield c.op.index, (names, InputAxis(c.op.index, *c.places[activation], c, c.places[1 - activation]))


def _summed_atoms(c: Contraction) -> frozenset[Atom]:
    """Return all atoms that an operator sums over, including those of other letters of an einsum."""
    return c.atoms | {a for s in c.op.combined for a in normal(s).atoms}


def _obstacle(small: Graph, names: frozenset[str], uses: WeightUses, flow: Flow, plan: Plan) -> str:
    """Return why a weight cannot be solved for, judging by the cut model's run; "" if it can."""
    if len(names) > 1:
        some = sorted(names)
        return f"the weight is computed from {' and '.join(some[:2])}{f' and {len(some) - 2} more' if len(some) > 2 else ''}"
    (name,) = names
    for op, argument in flow.uses.get(name, ()):
        constant = flow.constant(op)
        if constant is not None and (op.scalars or flow.origin(op, constant) is None or not _one_per_output(op, constant)):
            return f"{op.name} of {op.module or 'the model'} adds something else than a bias, or scales it"
        if op.name == "einsum" and _sums_weight_alone(op, argument):
            return f"an einsum of {op.module or 'the model'} sums over a dim of the weight alone"
        use = uses.get(op.index)
        if use is None or name not in use[0] or (use[1].weight or (-1,))[0] != argument:
            return f"{op.name} of {op.module or 'the model'} reads the same parameter"
    if small.real and len({(op.name, op.where, op.module) for op, _ in flow.uses[name]}) < len(flow.uses[name]):
        return "the model's path, and with it who reads the parameter, depends on data"
    if any(name_after_cut(s.name, plan) == name and not _scales_outputs(flow, name, s.dim) for s in plan.scales):
        return "a factor that keeps a scalar of the model as it was is folded into it"
    return ""


def _sums_weight_alone(op: OpRecord, weight: int) -> bool:
    """Whether an einsum sums over a letter that only its argument number `weight` has."""
    inputs, output = einsum_letters(op.detail[0], [len(a) for a in op.arguments])
    others = {c for i, term in enumerate(inputs) for c in term if i != weight}
    return not others.union(output).issuperset(inputs[weight])


def _one_per_output(op: OpRecord, constant: int) -> bool:
    """Whether the argument number `constant` has one value per output."""
    sizes = [axis.size for axis in op.arguments[constant]]
    if op.name == "baddbmm":
        return sizes == [op.results[0][0].size, 1, op.results[0][2].size]
    outputs = op.results[0][-1 if op.name in ("linear", "addmm") else 1 - len(op.arguments[1])].size
    return sizes[-1:] == [outputs] and prod(sizes) == outputs


def _is_solvable(small: Graph, constant: str, names: frozenset[str], uses: WeightUses, flow: Flow) -> bool:
    """Whether a constant is a parameter that is only ever added to products of the same weight."""
    constant_uses = flow.uses.get(constant, ())
    return (
        bool(constant)
        and small.states[constant].parameter
        and all(flow.constant(op) == i and op.index in uses and uses[op.index][0] == names for op, i in constant_uses)
    )


def _mixing_obstacle(dense: Graph, axis: InputAxis, kept: Mapping[Atom, Kept]) -> str:
    """Return a reason if cut units share an axis with data, so that the kept ones cannot be selected on other data."""
    in_states = {a for s in dense.states.values() for x in s.axes for a in normal(x).atoms}
    op = dense.ops[axis.op]
    for space in (*op.results[0], op.arguments[axis.argument][axis.dim]):
        atoms = normal(space).atoms
        if any(a in kept for a in atoms) and not in_states.issuperset(atoms):
            return "units that are cut share an axis with data"
    return ""


def _scales_outputs(flow: Flow, name: str, dim: int) -> bool:
    """Whether scaling a parameter along `dim` scales the outputs of all operators that use it."""
    return all(
        op.states[i] == name and dim == output_dim(op) and op.name in PRODUCTS and not _is_transposed(op)
        for op, i in flow.uses[name]
    )


def _is_transposed(op: OpRecord) -> bool:
    return op.name.endswith("convolution") and bool(op.detail[6])


def _residual_input(op: OpRecord, flow: Flow, dense_flow: Flow, dense_op: Mapping[int, OpRecord]) -> ResidualInput | None:
    """Return the value to which an operator's outputs are added, if it is computed before the operator in both runs."""
    addition = flow.added(op)
    dense_add = dense_op.get(addition[0].index) if addition else None
    if addition is None or dense_add is None:
        return None
    add, argument = addition
    other = 1 - argument
    small, dense = flow.made.get(add.inputs[other]), dense_flow.made.get(dense_add.inputs[other])
    if small is None or dense is None or small[0] >= op.index or dense[0] >= dense_op[op.index].index:
        return None
    return ResidualInput(dense, small, dense_add, other, flow.norm(op))
