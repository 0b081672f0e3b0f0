"""The three kinds of space, and their normal form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import mul


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


Space = Atom | Product | Sum
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
        if space.link is None:
            return UNIT if space.size == 1 else space
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
