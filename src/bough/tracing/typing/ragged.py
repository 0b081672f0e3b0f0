"""Which units may be other ones for each unit of another group: head dims per head, channels per convolution group.

Let d be the units of one group and h those of another that stands before it in every parameter: `... x H x D`. Each h
may keep a set of d of its own (as many as every other) where the run never brings the d of two h together:

1. every element that has a d has one h: H is on the same axis before D, or is an axis of its own (activations only:
   what is kept of a parameter is given axis by axis);
2. no op adds up or compares along H while D is there;
3. an op that adds up along D does so for each h alone: its results have H, once.

All else that ops may do with the types of D and H (rearrange, work element by element, add up along both) keeps an
element with its h and d.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bough.graph import Group, GroupKind, OpRecord, Ragged, State
from bough.spaces import Atom, Space, normal, paths

Axes = tuple[Space, ...]


def ragged(groups: Sequence[Group], states: Mapping[str, State], ops: Iterable[OpRecord]) -> tuple[Ragged, ...]:
    """Each group that another one leads somewhere, with that one, and whether (or why not) its units may differ."""
    led = {g.atom: _leaders(g, groups, states) for g in groups}
    touching: dict[Atom, list[OpRecord]] = {d: [] for d, leaders in led.items() if leaders}
    for op in ops if touching else ():
        spaces = (*(s for axes in (*op.arguments, *op.results) for s in axes), *(r for r in op.ranges if r is not None))
        for atom in {a for s in spaces for a in normal(s).atoms} & touching.keys():
            touching[atom].append(op)
    found = []
    for g in groups:
        verdicts = [Ragged(g.name, h.name, _against(g, h, states, touching[g.atom])) for h in led[g.atom]]
        found += sorted(verdicts, key=lambda r: r.reason is not None)[:1]
    return tuple(found)


def _leaders(d: Group, groups: Sequence[Group], states: Mapping[str, State]) -> list[Group]:
    """The groups that stand before `d` in a product of a state: those before it in most of them first, then the nearest.

    Of head dims that no head stands before, the heads that are an axis beside them everywhere: to say why that is not enough.
    """
    names = dict.fromkeys(m.name for m in d.members)
    lines = [p[: p.index(d.atom)] for n in names for s in states[n].axes for p in paths(s) if d.atom in p]
    atoms = dict.fromkeys(a for line in lines for a in reversed(line) if a is not d.atom)
    by_atom = {g.atom: g for g in groups}
    found = [by_atom[a] for a in sorted(atoms, key=lambda a: -sum(a in line for line in lines)) if a in by_atom]
    if found or d.kind is not GroupKind.HEAD_DIM:
        return found
    heads = (g for g in groups if g.kind is GroupKind.HEAD)
    return [h for h in heads if {m.name for m in h.members} >= names.keys()]


def _against(d: Group, h: Group, states: Mapping[str, State], ops: Sequence[OpRecord]) -> str | None:
    """Why the units of `d` can not differ for each unit of `h`; None where they can."""
    if not d.exact:
        return "a statistic runs over it"
    for name in dict.fromkeys(m.name for m in d.members):
        for path in (p for s in states[name].axes for p in paths(s) if d.atom in p):
            if path[: path.index(d.atom)].count(h.atom) != 1 or path.count(h.atom) != 1 or path.count(d.atom) != 1:
                apart = any(h.atom in normal(s).atoms for s in states[name].axes)
                return f"{name} has it {f'not behind {h.name} on one axis' if apart else f'without {h.name}'}"
    for op in ops:
        what = _mixed(op, d.atom, h.atom)
        if what is not None:
            return f"{what} ({op.name} in {op.module or 'the model'}, {op.where})"
    return None


def _mixed(op: OpRecord, d: Atom, h: Atom) -> str | None:
    """How an op brings the `d` of several `h` together; None where it does not."""
    if not all(_paired(axes, d, h) for axes in (*op.arguments, *op.results)):
        return "it is used without the other"
    if any(d in normal(s).atoms for s in op.ranges if s is not None):
        return "its units are distinguished by number"
    if any(d in normal(s).atoms for s in op.undefined):
        return "where it is masked nothing is defined"
    for path in (p for s in op.combined for p in paths(s)):
        if h in path and d not in path:
            return "several units of the other are put together"
        if d in path and h not in path and not all(_once(axes, h) for axes in op.results):
            return "it is added up across units of the other"
    return None


def _paired(axes: Axes, d: Atom, h: Atom) -> bool:
    """Whether each element that has a unit of `d` has one of `h` that goes with it."""
    for i, axis in enumerate(axes):
        for path in (p for p in paths(axis) if d in p):
            if path.count(d) > 1 or path.count(h) > 1:
                return False
            if h not in path and not _once(axes[:i] + axes[i + 1 :], h):
                return False
    return True


def _once(axes: Axes, h: Atom) -> bool:
    """Whether each element has one unit of `h`, all along the same axis."""
    having = [axis for axis in axes if h in normal(axis).atoms]
    return len(having) == 1 and all(p.count(h) == 1 for p in paths(having[0]))
