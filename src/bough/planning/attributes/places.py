"""The places of a graph where a width stands: axes of tensors and of layer inputs, and the factors and terms of these axes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from bough.graph import Graph
from bough.spaces import Atom, Product, Space, Sum, normal
from bough.spaces.space import product

Part = tuple[tuple[int, ...], ...]
"""Steps from an axis to a part of it: (term,) of a sum, (first, last) factors of a product; () is the whole axis."""

INPUT = "<input>"


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """A part of dim `dim` of `tensor`, a parameter or buffer, or "module.<input>", what a module's first operator takes."""

    tensor: str
    dim: int
    part: Part
    space: Space

    def within(self, module: str) -> tuple[str, int, Part]:
        """Return the place as seen from a module around it."""
        return self.tensor[len(module) + 1 if module else 0 :], self.dim, self.part


class Places:
    """All places of a graph, by their size and by their names."""

    def __init__(self, graph: Graph) -> None:
        self.axes: dict[tuple[str, int], Space] = {
            (s.name, d): normal(a) for s in graph.states.values() for d, a in enumerate(s.axes)
        }
        free = {g.atom for g in graph.groups}
        seen: set[str] = set()
        for op in graph.ops:
            if op.module not in seen:
                taken = next((a for a, s in zip(op.arguments, op.states, strict=False) if not s), ())
                seen.add(op.module)
                self.axes.update(
                    {
                        (f"{op.module}.{INPUT}" if op.module else INPUT, d): space
                        for d, space in enumerate(map(normal, taken))
                        if free & set(space.atoms)  # not samples, positions or pixels
                    }
                )
        self._by_size: dict[int, list[Place]] = defaultdict(list)
        for (name, dim), axis in self.axes.items():
            for part, space in _parts(axis):
                if space.size > 1:
                    self._by_size[space.size].append(Place(name, dim, part, space))

    def of(self, module: str, size: int) -> list[Place]:
        """Return the places of this size among the tensors of a module and the modules in it."""
        inside = f"{module}." if module else ""
        return [p for p in self._by_size.get(size, ()) if p.tensor.startswith(inside)]

    def repeats(self, module: str, size: int, of: int) -> list[Place]:
        """Return the places of this size that count the repeats of another factor, one of size `of`.

        Query heads that share key-value heads are `KV x R`, and keys have `KV` without `R`: so R counts repeats of KV. Each
        axis of the module that has the place must have the other factor, and one must have the other factor alone.
        """
        inside = f"{module}." if module else ""
        axes = [axis for (name, _), axis in self.axes.items() if name.startswith(inside)]

        def is_repeat(place: Place) -> bool:
            mine, whole = set(place.space.atoms), self.axes[place.tensor, place.dim]
            around = [set(axis.atoms) for axis in axes]
            others = [set(s.atoms) for _, s in _parts(whole) if s.size == of and not mine & set(s.atoms)]
            return any(
                all(other <= atoms for atoms in around if mine & atoms)
                and any(other <= atoms for atoms in around if not mine & atoms)
                for other in others
            )

        return [p for p in self.of(module, size) if p.part and is_repeat(p)]

    def size(self, module: str, place: tuple[str, int, Part]) -> int | None:
        """Return the size of the place that `Place.within` describes, in another module; None if it has no such place."""
        name, dim, part = place
        axis = self.axes.get((f"{module}.{name}" if module else name, dim))
        found = None if axis is None else _at(axis, part)
        return None if found is None else found.size


def identity(space: Space) -> Hashable:
    """Return a key that two spaces share if they are the same space."""
    space = normal(space)
    if isinstance(space, Atom):
        return id(space)
    inner = space.factors if isinstance(space, Product) else space.terms
    return (type(space), *map(identity, inner))


def _parts(space: Space) -> Iterator[tuple[Part, Space]]:
    yield (), space
    if isinstance(space, Sum):
        for i, term in enumerate(space.terms):
            yield from ((((i,), *part), inner) for part, inner in _parts(term))
    elif isinstance(space, Product):
        n = len(space.factors)
        for first in range(n):
            for last in range(first, n):
                if 0 < last - first < n - 1:
                    yield ((first, last),), product(*space.factors[first : last + 1])
            yield from ((((first, first), *part), inner) for part, inner in _parts(space.factors[first]))


def _at(space: Space, part: Part) -> Space | None:
    for step in part:
        if len(step) == 1:
            if not isinstance(space, Sum) or step[0] >= len(space.terms):
                return None
            space = space.terms[step[0]]
        else:
            factors = space.factors if isinstance(space, Product) else (space,)
            if step[1] >= len(factors):
                return None
            space = product(*factors[step[0] : step[1] + 1])
    return space
