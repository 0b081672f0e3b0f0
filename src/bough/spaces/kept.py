"""Numbers from spaces: sizes and indices when some units stay, and where the units of an atom are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.spaces.space import Atom, Product, Space, Sum, normal

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Each:
    """Units kept of an atom that differ for each unit of another: `units` [size of `over`, as many for each], ascending."""

    over: Atom
    units: Indices

    def __len__(self) -> int:
        return int(self.units.shape[1])


Kept = Indices | Each


def innermost(space: Space) -> tuple[Atom, ...]:
    """The atoms that vary fastest, one of each term: where their sizes are multiples of n, so is that of `space`."""
    space = normal(space)
    if isinstance(space, Atom):
        return (space,)
    if isinstance(space, Product):
        return innermost(space.factors[-1]) if space.factors else ()
    return tuple(a for t in space.terms for a in innermost(t))


def count(space: Space, kept: Mapping[Atom, Any]) -> Any:
    """The size of `space` when each atom has `kept[atom]` units (all where absent); numbers or arrays."""
    if not isinstance(space, Atom) or space.link is not None:
        space = normal(space)
    if isinstance(space, Atom):
        return kept.get(space, space.size)
    if isinstance(space, Product):
        return reduce(mul, (count(f, kept) for f in space.factors), 1)
    return sum(count(t, kept) for t in space.terms)


def indices(space: Space, kept: Mapping[Atom, Kept]) -> Indices:
    """The indices of `space` (int64, ascending) whose every coordinate is kept; atoms absent from `kept` are whole.

    Where an atom keeps other units for each unit of a second one (`Each`), the second stands before it in a product.
    """
    space = normal(space)
    overs = {k.over for a in space.atoms if isinstance(k := kept.get(a), Each)}
    indices: NDArray[np.int64] = _indices(space, kept, overs, {}, 1)[0]
    return indices


def _indices(
    space: Space, kept: Mapping[Atom, Kept], overs: set[Atom], at: Mapping[Atom, Indices], rows: int
) -> Indices:  # fmt: skip
    """The indices kept of `space` [rows, n], one row for each way to stand `at` units of what comes before it."""
    if isinstance(space, Atom):
        own = kept.get(space)
        if isinstance(own, Each):
            return own.units[at[own.over]]
        return np.tile(np.arange(space.size) if own is None else own, (rows, 1))
    if isinstance(space, Sum):
        offsets = np.cumsum([0, *(t.size for t in space.terms)])
        return np.hstack([_indices(t, kept, overs, at, rows) + o for t, o in zip(space.terms, offsets, strict=False)])
    found = np.zeros(rows, dtype=np.int64)
    for factor in space.factors:
        own = _indices(factor, kept, overs, at, len(found))
        at = {a: np.repeat(u, own.shape[1]) for a, u in at.items()}
        if isinstance(factor, Atom) and factor in overs:
            at[factor] = own.reshape(-1)
        found = (found[:, None] * factor.size + own).reshape(-1)
    return found.reshape(rows, -1)


def paths(space: Space) -> list[tuple[Atom, ...]]:
    """The atoms that an index of `space` has a unit of, the last one varying fastest: one tuple for each choice of terms."""
    space = normal(space)
    if isinstance(space, Atom):
        return [(space,)]
    if isinstance(space, Sum):
        return [p for t in space.terms for p in paths(t)]
    return [tuple(a for p in ways for a in p) for ways in itertools.product(*map(paths, space.factors))]


def coordinates(space: Space, atom: Atom) -> list[Indices]:
    """For each place that `atom` takes in `space`: its unit at every index of `space`, -1 where it has none."""
    space = normal(space)
    if space is atom:
        return [np.arange(atom.size)]
    if isinstance(space, Atom) or atom not in space.atoms:
        return []
    found: list[Indices] = []
    if isinstance(space, Product):
        before, after = 1, space.size
        for factor in space.factors:
            after //= factor.size
            found += [np.tile(np.repeat(c, after), before) for c in coordinates(factor, atom)]
            before *= factor.size
        return found
    offset = 0
    for term in space.terms:
        for depth, c in enumerate(coordinates(term, atom)):
            if depth == len(found):
                found.append(np.full(space.size, -1, dtype=np.int64))
            found[depth][offset : offset + term.size] = c
        offset += term.size
    return found
