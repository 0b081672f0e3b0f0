"""Index spaces: what an axis of a tensor ranges over, and how two of them become the same.

    Space = Atom(size) | Product(major, ..., minor) | Sum(first, ..., last)

An Atom is a union-find node: `link` leads to the space it has become. One index of an unlinked Atom is a *unit*.
`normal` gives the normal form: no Product directly in a Product, no Sum directly in a Sum, no space of size 1 in a
Product, and `(A + B) x K = A x K + B x K`, so that a Sum is only ever the last factor. `unify` makes two spaces the
same by their coarsest common refinement; where there is none, both are frozen. This file knows nothing of tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Atom:
    """An indivisible space of `size` units, until it is linked to what it has become."""

    __slots__ = ("link", "reason", "size")

    def __init__(self, size: int, reason: object = None) -> None:
        self.size = size
        self.link: Space | None = None
        self.reason = reason  # why it is frozen; None where it is free

    @property
    def atoms(self) -> tuple[Atom, ...]:
        return (self,)

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.reason is not None else ''}@{id(self) & 0xFFFF:x}"


class Product:
    """Row-major product: the last factor varies fastest."""

    __slots__ = ("atoms", "factors", "formed", "size")

    def __init__(self, factors: Iterable[Space], formed: bool = False) -> None:
        self.formed = formed  # made in normal form; still so while no atom in it is linked
        self.factors = tuple(factors)
        self.size: int = reduce(mul, (f.size for f in self.factors), 1)
        self.atoms: tuple[Atom, ...] = tuple(dict.fromkeys(a for f in self.factors for a in f.atoms))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Product) and self.factors == other.factors)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"({' x '.join(map(repr, self.factors))})"


class Sum:
    """Segments one after the other."""

    __slots__ = ("atoms", "formed", "size", "terms")

    def __init__(self, terms: Iterable[Space], formed: bool = False) -> None:
        self.formed = formed
        self.terms = tuple(terms)
        self.size: int = sum(t.size for t in self.terms)
        self.atoms: tuple[Atom, ...] = tuple(dict.fromkeys(a for t in self.terms for a in t.atoms))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Sum) and self.terms == other.terms)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"({' + '.join(map(repr, self.terms))})"


@dataclass(frozen=True, eq=False, slots=True)
class Each:
    """Units kept of an atom that differ for each unit of another: `units` [size of `over`, as many for each], ascending."""

    over: Atom
    units: Indices

    def __len__(self) -> int:
        return self.units.shape[1]


Space = Atom | Product | Sum
Kept = Indices | Each
UNIT = Product((), formed=True)


def _root(atom: Atom) -> Atom:
    """The last Atom on the chain of Atom-to-Atom links, with path compression."""
    root = atom
    while isinstance(root.link, Atom):
        root = root.link
    while isinstance(atom.link, Atom) and atom.link is not root:
        atom.link, atom = root, atom.link
    return root


def normal(space: Space) -> Space:
    """The normal form of `space` under everything unified so far."""
    if isinstance(space, Atom):
        root = _root(space)
        if root.link is None:
            return UNIT if root.size == 1 else root
        root.link = normal(root.link)
        return root.link
    if space.formed and all(a.link is None for a in space.atoms):
        return space
    return product(*space.factors) if isinstance(space, Product) else concat(*space.terms)


def product(*spaces: Space) -> Space:
    """The normal form of the row-major product of `spaces`."""
    factors: list[Space] = []
    for space in spaces:
        space = normal(space)
        factors.extend(space.factors if isinstance(space, Product) else (space,))
    if len(factors) == 1:
        return factors[0]
    for i, factor in enumerate(factors[:-1]):
        if isinstance(factor, Sum):
            return product(*factors[:i], concat(*(product(term, *factors[i + 1 :]) for term in factor.terms)))
    return Product(factors, formed=True) if factors else UNIT


def concat(*spaces: Space) -> Space:
    """The normal form of the segments `spaces`, in order; empty segments vanish."""
    terms: list[Space] = []
    for space in spaces:
        space = normal(space)
        if space.size:
            terms.extend(space.terms if isinstance(space, Sum) else (space,))
    if len(terms) == 1:
        return terms[0]
    return Sum(terms, formed=True) if terms else Atom(0, "empty")


def freeze(space: Space, reason: object) -> None:
    """Freezes every free atom of `space`, for `reason`."""
    for atom in normal(space).atoms:
        if atom.reason is None:
            atom.reason = reason


def is_frozen(space: Space) -> bool:
    """Whether no atom of `space` is free."""
    return all(atom.reason is not None for atom in normal(space).atoms)


def unify(a: Space, b: Space, reason: object = "no common refinement") -> None:
    """Makes `a` and `b` the same space, or freezes (for `reason`) the parts that have no common refinement."""
    work: list[tuple[Space, Space]] = [(a, b)]
    while work:
        left, right = work.pop()
        left, right = normal(left), normal(right)
        if left is right or left == right:
            continue
        if left.size != right.size:
            freeze(left, reason)
            freeze(right, reason)
        elif isinstance(left, Atom):
            _bind(left, right, reason)
        elif isinstance(right, Atom):
            _bind(right, left, reason)
        elif isinstance(left, Sum) or isinstance(right, Sum):
            _align_terms(left, right, work)
        else:
            _align_factors(left, right, work, reason)


def _bind(atom: Atom, space: Space, reason: object) -> None:
    if atom in space.atoms and space is not atom:  # a = a x b has no finite solution
        freeze(space, reason)
        return
    atom.link = space
    if atom.reason is not None:
        freeze(space, atom.reason)


def _refine(atom: Atom, space: Space) -> None:
    atom.link = space
    if atom.reason is not None:
        for part in space.atoms:
            part.reason = atom.reason


def _cut(space: Space, at: int) -> tuple[Space, Space]:
    """Splits a space (in normal form) after its first `at` indices."""
    if at in (0, space.size):
        return (Sum(()), space) if not at else (space, Sum(()))
    if isinstance(space, Atom):
        parts = Atom(at), Atom(space.size - at)
        _refine(space, Sum(parts))
        return parts
    if isinstance(space, Sum):
        first, rest = space.terms[0], Sum(space.terms[1:])
        if at <= first.size:
            left, right = _cut(first, at)
            return left, Sum((right, rest))
        left, right = _cut(rest, at - first.size)
        return Sum((first, left)), right
    major, minor = space.factors[0], Product(space.factors[1:])
    whole, part = divmod(at, minor.size)
    before, after = _cut(major, whole)
    if not part:
        return Product((before, minor)), Product((after, minor))
    _, later = _cut(normal(after), 1)  # the cut goes through one unit of the major factor
    left, right = _cut(normal(minor), part)
    return Sum((Product((before, minor)), left)), Sum((right, Product((later, minor))))


def _align_terms(left: Space, right: Space, work: list[tuple[Space, Space]]) -> None:
    """Sum against Sum or Product: cuts both at each other's boundaries, left to right."""
    stacks: tuple[list[Space], list[Space]] = ([left], [right])
    while stacks[0] and stacks[1]:
        heads = [_head(stack) for stack in stacks]
        a, b = heads
        if a.size == b.size:
            work.append((a, b))
            continue
        large = 0 if a.size > b.size else 1
        parts = _cut(heads[large], heads[1 - large].size)
        stacks[large].extend(reversed(parts))
        stacks[1 - large].append(heads[1 - large])


def _head(stack: list[Space]) -> Space:
    space = normal(stack.pop())
    while isinstance(space, Sum):
        stack.extend(reversed(space.terms))
        space = normal(stack.pop())
    return space


def _align_factors(left: Space, right: Space, work: list[tuple[Space, Space]], reason: object) -> None:
    """Product against Product: factors both by each other's factors, from the minor end."""
    stacks: tuple[list[Space], list[Space]] = ([left], [right])
    while stacks[0] and stacks[1]:
        heads = [_minor(stack) for stack in stacks]
        a, b = heads
        if a.size == b.size:
            work.append((a, b))
            continue
        large = 0 if a.size > b.size else 1
        parts = _factor(heads[large], heads[1 - large].size, reason)
        if parts is None:
            _freeze_factors(a, b, stacks, reason)
            continue
        stacks[large].extend(parts)
        stacks[1 - large].append(heads[1 - large])


def _minor(stack: list[Space]) -> Space:
    space = normal(stack.pop())
    while isinstance(space, Product) and space.factors:
        stack.extend(space.factors)
        space = normal(stack.pop())
    return space


def _factor(space: Space, minor: int, reason: object) -> tuple[Space, Space] | None:
    """Writes an Atom or a Sum as (X, Y) with space = X x Y and size(Y) = `minor`, where that is possible."""
    if space.size % minor:
        return None
    if isinstance(space, Atom):
        parts = Atom(space.size // minor), Atom(minor)
        _refine(space, Product(parts))
        return parts
    if not isinstance(space, Sum) or any(term.size % minor for term in space.terms):
        return None
    shared = Atom(minor)
    majors = [Atom(term.size // minor) for term in space.terms]
    for term, major in zip(space.terms, majors, strict=True):
        unify(term, Product((major, shared)), reason)
    return Sum(majors), shared


def _freeze_factors(a: Space, b: Space, stacks: tuple[list[Space], list[Space]], reason: object) -> None:
    sizes = [a.size, b.size]
    freeze(a, reason)
    freeze(b, reason)
    while sizes[0] != sizes[1]:
        short = 0 if sizes[0] < sizes[1] else 1
        if not stacks[short]:
            short = 1 - short
        space = _minor(stacks[short])
        freeze(space, reason)
        sizes[short] *= space.size
        if not stacks[0] and not stacks[1]:
            return


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
    return _indices(space, kept, overs, {}, 1)[0]


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
