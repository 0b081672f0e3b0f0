"""How many units of each group a model of the same class, but of other sizes, has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bough.graph import Graph, GroupKind, atoms_of
from bough.planning.config_widths.recipe import Build, shapes
from bough.spaces import Atom, Space, count, normal
from bough.tracing.capture.provenance import Equation, attributes_in, evaluate, spaces_in
from bough.tracing.typing.groups import UNUSED


@dataclass(frozen=True, slots=True)
class _Axis:
    name: str
    dim: int
    space: Space
    atoms: frozenset[Atom]


class Widths:
    """Reads counts off the sizes of tensors and the integers of a build, by the types of a graph.

    Attributes:
        idle: the dims that nothing comes of, of tensors that the run does not read, or whose results it does not, with
            their sizes: they may have any size that is not larger.
    """

    def __init__(self, graph: Graph) -> None:
        self._groups = {g.atom: g.name for g in graph.groups}
        self._kinds = {g.atom: g.kind for g in graph.groups}
        self._sizes = {g.name: g.size for g in graph.groups}
        self._names = shapes(graph.model).keys()
        read = {id(graph.tensor(n)) for op in graph.all_ops for n in op.states if n}
        names = {id(t): n for n, t in reversed(graph.model.state_dict(keep_vars=True).items())}  # of several names the first
        self.idle = {(n, d): size for i, n in names.items() if i not in read for d, size in enumerate(graph.tensor(n).shape)}
        states = [s for n, s in graph.states.items() if id(graph.tensor(n)) in read]
        axes = [_Axis(s.name, d, normal(a), self._of(a)) for s in states for d, a in enumerate(s.axes)]
        self.idle |= {(a.name, a.dim): a.space.size for a in axes if _reason(a.space) == UNUSED}
        self._axes = [a for a in axes if _reason(a.space) != UNUSED]
        self._equations: list[tuple[Equation, frozenset[Atom]]] = [
            (e, self._of(e.space)) for e in graph.equations if attributes_in(e.expression)
        ]

    def size(self, group: str) -> int:
        """Its units as traced."""
        return self._sizes[group]

    def touched(self, build: Build) -> tuple[frozenset[str], bool]:
        """(groups whose sizes, of tensors or as Python has them, are others in `build`; whether it is these sizes alone)."""
        if not self._comparable(build):
            return frozenset(), False
        others = [a.atoms for a in self._axes if self._has(build, a) and build.shapes[a.name][a.dim] != a.space.size]
        others += [atoms for e, atoms in self._equations if evaluate(e.expression, build.integers, {}) != e.space.size]
        return frozenset(self._groups[a] for atoms in others for a in atoms), all(others)

    def of(self, build: Build) -> dict[str, int] | None:
        """Units per group name; None where the types do not fit, or a group would grow."""
        if not self._comparable(build):
            return None
        known: dict[Atom, int] = {}
        targets = [(a.space, a.atoms, build.shapes[a.name][a.dim]) for a in self._axes if self._has(build, a)]
        for e, atoms in self._equations:
            if not any(self._of(s) for s in spaces_in(e.expression)):
                targets.append((e.space, atoms, int(evaluate(e.expression, build.integers, {}))))
        waiting = targets
        unsaid = [{a for a in self._groups if self._kinds[a] is GroupKind.HEAD_DIM}, set(self._groups)]
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
            if len(later) == len(waiting):  # nothing says which factor of these products: what heads see stays, then all
                known.update({a: a.size for a in unsaid.pop(0) if a not in known})
            waiting = later
        counts = {name: known.get(atom, atom.size) for atom, name in self._groups.items()}
        return counts if self.agree(build, counts) else None

    def agree(self, build: Build, counts: Mapping[str, int]) -> bool:
        """Whether all tensors and integers of a build are those of a cut to these counts (all units where absent)."""
        kept = {a: counts.get(n, a.size) for a, n in self._groups.items()}
        return (
            self._comparable(build)
            and all(not self._has(build, a) or count(a.space, kept) == build.shapes[a.name][a.dim] for a in self._axes)
            and all(evaluate(e.expression, build.integers, kept) == count(e.space, kept) for e, _ in self._equations)
        )

    def _comparable(self, build: Build) -> bool:
        """Whether no tensor comes or goes, and no idle one grows."""
        return build.shapes.keys() == self._names and all(
            len(build.shapes[n]) > d and 0 < build.shapes[n][d] <= size for (n, d), size in self.idle.items()
        )

    def _has(self, build: Build, axis: _Axis) -> bool:
        return len(build.shapes.get(axis.name, ())) > axis.dim

    def _of(self, space: Space) -> frozenset[Atom]:
        return frozenset(a for a in atoms_of((space,)) if a in self._groups)


def _reason(space: Space) -> object:
    return space.reason if isinstance(space, Atom) else None


def _solved(space: Space, atom: Atom, known: Mapping[Atom, int], target: int) -> int | None:
    """The count of `atom`, from 1 to its size, for which `space` has the size `target`."""
    none, one = (int(count(space, {**known, atom: n})) for n in (0, 1))
    n, left = divmod(target - none, one - none) if one != none else (0, 1)
    fits = not left and 1 <= n <= atom.size and count(space, {**known, atom: n}) == target
    return n if fits else None
