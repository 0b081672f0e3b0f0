"""Where the units of a group are summed over: the contractions of a recorded run, and the roles of weights in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bough.graph import Graph, OpRecord
from bough.ops import Place, base_name, spec
from bough.spaces import Atom, normal


@dataclass(frozen=True, eq=False, slots=True)
class Contraction:
    """An op sums products over the axis at `places`, which all its operands that have it share."""

    op: OpRecord
    places: tuple[Place, ...]
    grouped: bool = False  # the axis also carries units that are not summed over: groups of a convolution

    @property
    def atoms(self) -> frozenset[Atom]:
        """What is summed over."""
        if not self.grouped:
            return frozenset(a for i, d in self.places for a in normal(self.op.arguments[i][d]).atoms)
        (_, (w, dim)), transposed = self.places, self.op.detail[6]
        passed = normal(self.op.results[0][1]).atoms if transposed else ()
        return frozenset(normal(self.op.arguments[w][dim]).atoms) - frozenset(passed)


def contractions(ops: Sequence[OpRecord]) -> Iterator[Contraction]:
    """The contractions of some ops, in order."""
    for op in ops:
        contracts = spec(op.name).contracts
        for places in contracts(op) if contracts else ():
            yield Contraction(op, places, op.name.endswith("convolution") and op.detail[8] > 1)


def _all_contractions(ops: Sequence[OpRecord]) -> Iterator[Contraction]:
    """Yield the contractions of some ops, and those inside of recurrent layers and of products of more than two tensors."""
    yield from contractions(ops)
    for op in ops:
        within = spec(base_name(op.name)).contracts_within
        for places in within(op) if within else ():
            yield Contraction(op, places)


def read_by(ops: Sequence[OpRecord]) -> Counter[Atom]:
    """How many contractions of some ops read each atom."""
    return Counter(a for c in _all_contractions(ops) for a in c.atoms)


def weights_of(graph: Graph) -> Callable[[OpRecord, int], frozenset[str] | None]:
    """For a tensor argument of an op: the parameters it is made of (itself, transposed, normed); None for an activation."""
    made: dict[int, frozenset[str]] = {}

    def origin(op: OpRecord, argument: int) -> frozenset[str] | None:
        state = op.states[argument]
        if state:
            return frozenset((state,) if graph.states[state].parameter else ())
        return made.get(op.inputs[argument])

    for op in graph.all_ops:
        origins = [origin(op, i) for i in range(len(op.arguments))]
        if origins and all(o is not None for o in origins):
            made.update(dict.fromkeys(op.values, frozenset().union(*(o for o in origins if o))))
    return origin


def consumed(graph: Graph) -> frozenset[tuple[str, int]]:
    """The (parameter, dim)s over which an activation is contracted: the weights that read a unit, not those that make it.

    A parameter that meets no contraction itself (a factor of weight norm, a transposed view) is judged by the atoms of
    those that do.
    """
    origin = weights_of(graph)
    found: set[tuple[str, int]] = set()
    for contraction in _all_contractions(graph.all_ops):
        for argument, dim in contraction.places:
            state = contraction.op.states[argument]
            for name in origin(contraction.op, argument) or ():
                if name == state:
                    found.add((name, dim))
                else:
                    found.update((name, d) for d in _holding(graph, name, contraction))
    return frozenset(found)


def _holding(graph: Graph, name: str, contraction: Contraction) -> list[int]:
    """The dims of a weight's parameter that hold the contracted units; where two do, the last one reads."""
    axes = graph.states[name].axes
    dims = [d for d, axis in enumerate(axes) if contraction.atoms.intersection(normal(axis).atoms)]
    return dims[-1:]


def elementwise_parameters(graph: Graph) -> frozenset[tuple[str, Atom]]:
    """Return (parameter, atom) where every op with both meets the atom in an activation too and passes it on.

    Such a parameter scales, shifts, normalizes or filters units that something else computes: norms, masks, scales of
    layers, biases added by hand, depthwise convolutions.
    """
    origin = weights_of(graph)
    contracted: dict[int, set[Atom]] = {}
    for contraction in _all_contractions(graph.all_ops):
        contracted.setdefault(contraction.op.index, set()).update(contraction.atoms)
    passed: set[tuple[str, Atom]] = set()
    computed: set[tuple[str, Atom]] = set()
    for op in graph.all_ops:
        origins = [origin(op, i) for i in range(len(op.arguments))]
        if all(o is not None for o in origins):
            continue  # it makes a weight of weights
        active = {a for axes, o in zip(op.arguments, origins, strict=True) if o is None for x in axes for a in normal(x).atoms}
        whole = active.intersection(a for axes in op.results for x in axes for a in normal(x).atoms)
        whole -= contracted.get(op.index, set()) if spec(op.name).contracts_within is None else whole
        for axes, names in zip(op.arguments, origins, strict=True):
            atoms = {a for x in axes for a in normal(x).atoms}
            for name in names or ():
                passed.update((name, a) for a in atoms & whole)
                computed.update((name, a) for a in atoms - whole)
    return frozenset(passed - computed)
