"""Groups and frozen units: the atoms of a recorded run that parameters have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import lcm

from bough.graph import Frozen, Graph, Group, GroupKind, Member, OpRecord, State
from bough.ops import KERNEL, Reason
from bough.spaces import Atom, Sum, freeze, innermost, normal
from bough.tracing.contractions import read_by
from bough.tracing.typing.ragged import ragged
from bough.tracing.typing.recorder import Recorder

UNUSED = "never summed over: it is not known what removing its units would mean"


def groups_of(
    recorder: Recorder, ops: tuple[OpRecord, ...], in_mode: tuple[OpRecord, ...]
) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    """Return the groups, and the units that stay; `in_mode` are the ops of all runs in the mode that the model is in."""
    members: dict[Atom, list[Member]] = {}
    in_parameter: set[Atom] = set()
    for state in recorder.states.values():
        for dim, axis in enumerate(state.axes):
            for atom in normal(axis).atoms:
                members.setdefault(atom, []).append(Member(state.name, dim))
                if state.parameter:
                    in_parameter.add(atom)
    marks: dict[Atom, set[GroupKind]] = {}
    for kind, space in recorder.context.marks:
        for atom in normal(space).atoms:
            marks.setdefault(atom, set()).add(kind)
    consumed = {atom for space in recorder.context.consumed for atom in normal(space).atoms}
    multiples: dict[Atom, int] = {}
    for space, of in recorder.context.multiples:
        for atom in innermost(space):
            multiples[atom] = lcm(multiples.get(atom, 1), of)
    minima: dict[Atom, int] = {}
    for space, least in recorder.context.minima:
        whole = normal(space)
        if isinstance(whole, Atom):
            minima[whole] = max(minima.get(whole, 1), least)
    renormalized = {a for op in in_mode for s in op.renormalized for a in normal(s).atoms}
    readers = read_by(ops)
    groups: list[Group] = []
    frozen: list[Frozen] = []
    used: dict[str, int] = {}
    for atom, places in members.items():
        if atom not in in_parameter or atom.size < 2 or atom.reason is KERNEL:
            continue
        kind = next((k for k in GroupKind if k in marks.get(atom, ())), GroupKind.NEURON)
        if atom.reason is None and atom not in consumed:
            atom.reason = UNUSED
        name = _name(atom, kind, places, recorder.states, used)
        if atom.reason is None:
            exact = atom not in renormalized
            limits = multiples.get(atom, 1), minima.get(atom, 1)
            groups.append(Group(name, kind, atom.size, exact, tuple(places), atom, *limits, max(readers[atom], 1)))
        else:
            frozen.append(Frozen(name, atom.size, str(atom.reason), tuple(places), atom))
    return tuple(groups), (*frozen, *_singled(recorder, used))


def _singled(recorder: Recorder, used: dict[str, int]) -> Iterator[Frozen]:
    """Yield the units of parameters that the model takes one by one, such as experts in a loop over a list of modules."""
    taken = [(normal(axis), reason) for axis, reason in recorder.context.singled]
    found: dict[int, tuple[int, Reason, list[Member]]] = {}
    for state in recorder.states.values() if taken else ():
        for dim, axis in enumerate(state.axes):
            space = normal(axis)
            n = sum(t.size == 1 for t in space.terms) if state.parameter and isinstance(space, Sum) else 0
            at = next((i for i, (other, _) in enumerate(taken) if other is space), None)
            if n and at is not None:
                found.setdefault(at, (n, taken[at][1], []))[2].append(Member(state.name, dim))
    for n, reason, places in found.values():
        yield Frozen(_name(Atom(n), None, places, recorder.states, used), n, str(reason), tuple(places), Atom(n, reason))


def _name(atom: Atom, kind: GroupKind | None, places: list[Member], states: dict[str, State], used: dict[str, int]) -> str:
    first = next((m for m in places if states[m.name].parameter and m.dim == 0), places[0])
    base = first.name.rpartition(".")[0] or first.name
    if kind in (GroupKind.HEAD, GroupKind.HEAD_DIM, GroupKind.EXPERT):
        base += f"/{kind}"
    used[base] = used.get(base, 0) + 1
    return base if used[base] == 1 else f"{base}#{used[base]}"


def with_frozen(graph: Graph, reasons: Mapping[str, str]) -> Graph:
    """Return the graph with the groups in `reasons` frozen."""
    if not reasons:
        return graph
    for g in graph.groups:
        if g.name in reasons:
            freeze(g.atom, reasons[g.name])
    groups = tuple(g for g in graph.groups if g.name not in reasons)
    frozen = (Frozen(g.name, g.size, reasons[g.name], g.members, g.atom) for g in graph.groups if g.name in reasons)
    return replace(
        graph, groups=groups, frozen=(*graph.frozen, *frozen), ragged=ragged(groups, graph.states, graph.all_ops)
    )  # fmt: skip


def observed(graph: Graph) -> Graph:
    """Return the graph with the groups frozen of which data shows nothing: no value of the first run has their units."""
    values = (axes for op in graph.ops for axes in (*op.results, *op.arguments))
    seen = {atom for axes in values for axis in axes for atom in normal(axis).atoms}
    why = "the call that data is passed through does not reach these units: no activations tell which can go"
    return with_frozen(graph, {g.name: why for g in graph.groups if g.atom not in seen})
