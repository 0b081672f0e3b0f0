"""How many units of each group a model of the same class, but of other sizes, has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bough.graph import Graph, atoms_of
from bough.planning.recipe import Build
from bough.spaces import Atom, Space, count
from bough.tracing.provenance import Equation, attributes_in, evaluate, spaces_in


@dataclass(frozen=True, slots=True)
class _Axis:
    name: str
    dim: int
    space: Space
    atoms: frozenset[Atom]


class Widths:
    """Reads counts off the sizes of tensors and the integers of a build, by the types of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._groups = {g.atom: g.name for g in graph.groups}
        self._kinds = {g.atom: g.kind for g in graph.groups}
        self._sizes = {g.name: g.size for g in graph.groups}
        typed = {id(graph.tensor(n)) for n in graph.states}
        held = graph.model.state_dict(keep_vars=True)
        self._rest = {n: tuple(t.shape) for n, t in held.items() if id(t) not in typed}  # the run does not touch these
        self._axes = [_Axis(s.name, d, a, self._of(a)) for s in graph.states.values() if s.axes for d, a in enumerate(s.axes)]
        self._equations: list[tuple[Equation, frozenset[Atom]]] = [
            (e, self._of(e.space)) for e in graph.equations if attributes_in(e.expression)
        ]

    def size(self, group: str) -> int:
        """Its units as traced."""
        return self._sizes[group]

    def of(self, build: Build) -> dict[str, int] | None:
        """Units per group name; None where the types do not fit, or a group would grow."""
        known: dict[Atom, int] = {}
        targets = [(a.space, a.atoms, build.shapes[a.name][a.dim]) for a in self._axes if self._has(build, a)]
        for e, atoms in self._equations:
            if not any(self._of(s) for s in spaces_in(e.expression)):
                targets.append((e.space, atoms, int(evaluate(e.expression, build.integers, {}))))
        waiting = targets
        unsaid = [{a for a in self._groups if self._kinds[a] == "head_dim"}, set(self._groups)]
        while waiting:
            later = []
            for space, atoms, target in waiting:
                unknown = [a for a in atoms if a not in known]
                if len(unknown) > 1:
                    later.append((space, atoms, target))
                elif unknown:
                    n = _solved(space, unknown[0], known, target)
                    if n is None:
                        return None
                    known[unknown[0]] = n
            if len(later) == len(waiting):  # nothing tells the factors of these products: what heads see stays, then all
                known.update({a: a.size for a in unsaid.pop(0) if a not in known})
            waiting = later
        counts = {name: known.get(atom, atom.size) for atom, name in self._groups.items()}
        return counts if self.agree(build, counts) else None

    def agree(self, build: Build, counts: Mapping[str, int]) -> bool:
        """Whether all tensors and integers of a build are those of a cut to these counts (all units where absent)."""
        kept = {a: counts.get(n, a.size) for a, n in self._groups.items()}
        return (
            all(build.shapes.get(n) == shape for n, shape in self._rest.items())
            and all(not self._has(build, a) or count(a.space, kept) == build.shapes[a.name][a.dim] for a in self._axes)
            and all(evaluate(e.expression, build.integers, kept) == count(e.space, kept) for e, _ in self._equations)
        )

    def _has(self, build: Build, axis: _Axis) -> bool:
        return len(build.shapes.get(axis.name, ())) > axis.dim

    def _of(self, space: Space) -> frozenset[Atom]:
        return frozenset(a for a in atoms_of((space,)) if a in self._groups)


def _solved(space: Space, atom: Atom, known: Mapping[Atom, int], target: int) -> int | None:
    """The count of `atom`, from 1 to its size, for which `space` has the size `target`."""
    none, one = (int(count(space, {**known, atom: n})) for n in (0, 1))
    n, left = divmod(target - none, one - none) if one != none else (0, 1)
    fits = not left and 1 <= n <= atom.size and count(space, {**known, atom: n}) == target
    return n if fits else None
