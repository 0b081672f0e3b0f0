"""What least squares can solve for: the weights of a run that read activations, and what goes with each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from bough.calibration import InputAxis
from bough.graph import Graph, OpRecord
from bough.planning.plan import Plan
from bough.recovery.pairing import lossy, renamed, twins
from bough.rules.contraction import einsum_letters
from bough.spaces import Atom, Kept, normal
from bough.tracing.contractions import Contraction, contractions, weights_of
from bough.tracing.flow import LAYERS, Flow, Produced

PRODUCTS = (*LAYERS, "addmm")  # `output_dim` of their weight numbers the outputs

Readers = Mapping[int, tuple[frozenset[str], InputAxis]]
"""Of ops that read an activation and a weight: the parameters of the weight, and how it is read."""


@dataclass(frozen=True, slots=True)
class Skip:
    """What the outputs are added to, known before they are: the results of ops of both runs.

    `norm`: the batch norm in between, by its op in the cut model's run.
    """

    dense: Produced
    small: Produced
    add: OpRecord  # of the dense run
    argument: int  # of that add
    norm: OpRecord | None


@dataclass(frozen=True, slots=True)
class Consumer:
    """An op of both runs whose weight, (a view of) the parameter `name` of the cut model, can be solved for.

    `constant`: the argument that is added to the outputs, if there is one. `shift`: what takes a constant that is solved for,
    too: the parameter that is this argument or, without one, the running mean of the batch norm that alone reads the outputs;
    "" where nothing does. `routed`: which rows the op sees depends on the data, so the two runs' are not the same samples.
    """

    name: str
    dense: InputAxis
    small: InputAxis
    constant: int | None
    shift: str
    skip: Skip | None
    routed: bool


@dataclass(frozen=True, slots=True)
class Candidates:
    """Consumers in the order of the run, and why other weights are left as they are."""

    found: tuple[Consumer, ...]
    skipped: dict[str, str]


def consumers(dense: Graph, small: Graph, plan: Plan, kept: Mapping[Atom, Kept], everything: bool) -> Candidates:
    """The consumers of weights for which the cut has changed an input (for which it has cut units, unless `everything`)."""
    changed, twin = lossy(dense, plan, kept), twins(dense, small, plan)
    readers, flow, big = dict(_readers(small)), Flow(small), Flow(dense)
    skipped: dict[str, str] = {}
    found: list[Consumer] = []
    theirs = {r.op: r for r in _all(dense)}

    def affected(reading: InputAxis) -> bool:
        assert reading.contraction is not None
        reads_cut = any(a in kept for a in _summed(reading.contraction))
        return reads_cut or (everything and dense.ops[reading.op].inputs[reading.argument] in changed)

    pairs = {at: theirs.get(twin[at].index) if at in twin else None for at in readers}
    fitted = {n for at, (names, _) in readers.items() if (other := pairs[at]) and affected(other) for n in names}
    for at, (names, reading) in readers.items():
        other = pairs[at]
        if other is None:
            skipped.update(dict.fromkeys(names, "the dense model's run has no such op"))
            continue
        if fitted.isdisjoint(names):
            continue
        why = _obstacle(small, names, readers, flow, plan) or _mixed(dense, other, kept)
        if why:
            skipped.update(dict.fromkeys(names, why))
            continue
        op, (name,) = small.ops[at], names
        constant = flow.constant(op)
        shift = flow.mean(op) if constant is None else op.states[constant]
        if constant is not None and not _solvable(small, shift, names, readers, flow):
            shift = ""
        routed = small.real or op.name == "_grouped_mm"
        skip = None if routed else _skip(op, flow, big, twin)
        found.append(Consumer(name, other, reading, constant, shift, skip, routed))
    for name, dims in plan.kept.items():
        new = renamed(name, plan)
        if dims and len(dense.states[name].axes) > 1 and new in flow.recurrent:
            skipped[new] = f"read by {flow.recurrent[new]}, a recurrence"
    return Candidates(tuple(found), skipped)


def _all(graph: Graph) -> Iterator[InputAxis]:
    return (r for _, (_, r) in _readers(graph))


def _readers(graph: Graph) -> Iterator[tuple[int, tuple[frozenset[str], InputAxis]]]:
    """(op, (parameters, reading)) of each product of an activation and a weight."""
    origin = weights_of(graph)
    seen: set[int] = set()
    for c in contractions(graph.ops):
        made = [origin(c.op, i) for i, _ in c.places]
        if c.op.index in seen or len(c.places) != 2 or sum(m is None for m in made) != 1:
            continue
        one = made.index(None)
        names = made[1 - one]
        if names:
            seen.add(c.op.index)
            yield c.op.index, (names, InputAxis(c.op.index, *c.places[one], c, c.places[1 - one]))


def _summed(c: Contraction) -> frozenset[Atom]:
    """All that the op sums over, other letters of an einsum included."""
    return c.atoms | {a for s in c.op.combined for a in normal(s).atoms}


def _obstacle(small: Graph, names: frozenset[str], readers: Readers, flow: Flow, plan: Plan) -> str:
    """Why a weight can not be solved for, as far as the run tells; "" if it can."""
    if len(names) > 1:
        some = sorted(names)
        return f"the weight is computed from {' and '.join(some[:2])}{f' and {len(some) - 2} more' if len(some) > 2 else ''}"
    (name,) = names
    for op, argument in flow.uses.get(name, ()):
        constant = flow.constant(op)
        if constant is not None and (op.scalars or flow.origin(op, constant) is None or not _one_each(op, constant)):
            return f"{op.name} of {op.module or 'the model'} adds something else than a bias, or scales it"
        if op.name == "einsum" and _summed_alone(op, argument):
            return f"an einsum of {op.module or 'the model'} sums over a dim of the weight alone"
        at = readers.get(op.index)
        if at is None or name not in at[0] or (at[1].weight or (-1,))[0] != argument:
            return f"{op.name} of {op.module or 'the model'} reads the same parameter"
    if small.real and len({(op.name, op.where, op.module) for op, _ in flow.uses[name]}) < len(flow.uses[name]):
        return "the model's path, and with it who reads the parameter, depends on data"
    if any(renamed(s.name, plan) == name and not _scales_outputs(flow, name, s.dim) for s in plan.scales):
        return "a factor that keeps a scalar of the model as it was is folded into it"
    return ""


def _summed_alone(op: OpRecord, weight: int) -> bool:
    """Whether an einsum sums over a letter that its weight alone has."""
    inputs, output = einsum_letters(op.detail[0], [len(a) for a in op.arguments])
    others = {c for i, term in enumerate(inputs) for c in term if i != weight}
    return not others.union(output).issuperset(inputs[weight])


def _one_each(op: OpRecord, constant: int) -> bool:
    """Whether a constant is one number for each output."""
    sizes = [axis.size for axis in op.arguments[constant]]
    if op.name == "baddbmm":
        return sizes == [op.results[0][0].size, 1, op.results[0][2].size]
    outputs = op.results[0][-1 if op.name in ("linear", "addmm") else 1 - len(op.arguments[1])].size
    return sizes[-1:] == [outputs] and prod(sizes) == outputs


def _solvable(small: Graph, constant: str, names: frozenset[str], readers: Readers, flow: Flow) -> bool:
    """Whether a constant is a parameter that is added to products of the same weight alone."""
    uses = flow.uses.get(constant, ())
    return (
        bool(constant)
        and small.states[constant].parameter
        and all(flow.constant(op) == i and op.index in readers and readers[op.index][0] == names for op, i in uses)
    )


def _mixed(dense: Graph, reading: InputAxis, kept: Mapping[Atom, Kept]) -> str:
    """Whether units that are cut share an axis with data, so that the kept ones can not be told on other data."""
    held = {a for s in dense.states.values() for axis in s.axes for a in normal(axis).atoms}
    op = dense.ops[reading.op]
    for axis in (*op.results[0], op.arguments[reading.argument][reading.dim]):
        atoms = normal(axis).atoms
        if any(a in kept for a in atoms) and not held.issuperset(atoms):
            return "units that are cut share an axis with data"
    return ""


def _scales_outputs(flow: Flow, name: str, dim: int) -> bool:
    return all(
        op.states[i] == name and dim == output_dim(op) and op.name in PRODUCTS and not _transposed(op)
        for op, i in flow.uses[name]
    )


def _transposed(op: OpRecord) -> bool:
    return op.name.endswith("convolution") and bool(op.detail[6])


def output_dim(op: OpRecord) -> int:
    """The dim of a linear layer's or convolution's weight that numbers its outputs."""
    return 1 if op.name == "addmm" else 0


def _skip(op: OpRecord, flow: Flow, dense: Flow, twin: Mapping[int, OpRecord]) -> Skip | None:
    """What the op's outputs, normed or not, are added to, where that is made before."""
    after = flow.added(op)
    theirs = twin.get(after[0].index) if after else None
    if after is None or theirs is None:
        return None
    add, place = after
    small, big = flow.made.get(add.inputs[1 - place]), dense.made.get(theirs.inputs[1 - place])
    if small is None or big is None or small[0] >= op.index or big[0] >= twin[op.index].index:
        return None
    return Skip(big, small, theirs, 1 - place, flow.norm(op))
