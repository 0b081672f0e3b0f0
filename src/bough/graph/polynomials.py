"""Sums of products of axis sizes, as polynomials in the groups' counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bough.spaces import Atom, Space, normal

Counts = NDArray[np.float64]
Monomial = tuple[int, ...]


class Part(Protocol):
    """One cost as a function of the groups' counts: the largest of some rows, each a weighted sum of terms.

    `scopes[t]`: the groups that term t depends on. `matrix` [rows, terms]: the weights, none of them negative.
    """

    @property
    def scopes(self) -> Sequence[tuple[int, ...]]: ...

    @property
    def matrix(self) -> NDArray[np.float64]: ...

    def terms(self, counts: Counts) -> NDArray[np.float64]:
        """The terms [terms, plans] at counts [plans, groups]."""


class Polynomials:
    """Rows of polynomials: each term a product of counts."""

    def __init__(self, groups: int, monomials: Sequence[Monomial], rows: Sequence[dict[int, float]]) -> None:
        order = sorted(range(len(monomials)), key=lambda i: -len(monomials[i]))  # the highest degree first
        degree = max((len(m) for m in monomials), default=0)
        self._factors = np.full((max(degree, 1), len(order)), groups)  # `groups` stands for the factor 1
        self.matrix = np.zeros((len(rows), len(order)))
        place = np.empty(len(order), dtype=np.int64)
        for t, i in enumerate(order):
            self._factors[: len(monomials[i]), t] = monomials[i]
            place[i] = t
        for r, row in enumerate(rows):
            self.matrix[r, place[list(row)]] = list(row.values())
        self.scopes = [tuple(sorted(set(monomials[i]))) for i in order]
        self._longer = [sum(len(m) > d for m in monomials) for d in range(len(self._factors))]

    def terms(self, counts: Counts) -> NDArray[np.float64]:
        padded = np.ones((counts.shape[1] + 1, len(counts)))
        padded[:-1] = counts.T
        result: NDArray[np.float64] = padded[self._factors[0]]
        for factor, n in zip(self._factors[1:], self._longer[1:], strict=True):
            result[:n] *= padded[factor[:n]]
        return result


class Builder:
    """Makes `Polynomials` of spaces: free atoms are variables, all else is numbers."""

    def __init__(self, atoms: Iterable[Atom]) -> None:
        self._column = {atom: i for i, atom in enumerate(atoms)}
        self._monomials: dict[Monomial, int] = {}
        self._rows: list[dict[int, float]] = []

    def expand(self, spaces: Iterable[Space]) -> dict[Monomial, float]:
        """The product of the spaces' sizes: a coefficient per monomial."""
        result: dict[Monomial, float] = {(): 1.0}
        for space in spaces:
            factor = self._size(space)
            new: dict[Monomial, float] = {}
            for a, p in result.items():
                for b, q in factor.items():
                    key = tuple(sorted(a + b))
                    new[key] = new.get(key, 0.0) + p * q
            result = new
        return result

    def add(self, terms: Iterable[tuple[float, dict[Monomial, float]]]) -> None:
        """A row: the weighted sum of expanded products."""
        row: dict[int, float] = {}
        for weight, expanded in terms:
            for monomial, value in expanded.items():
                index = self._monomials.setdefault(monomial, len(self._monomials))
                row[index] = row.get(index, 0.0) + weight * value
        self._rows.append(row)

    def build(self) -> Polynomials:
        return Polynomials(len(self._column), list(self._monomials), self._rows)

    def _size(self, space: Space) -> dict[Monomial, float]:
        space = normal(space)
        if isinstance(space, Atom):
            column = self._column.get(space)
            return {(): float(space.size)} if column is None else {(column,): 1.0}
        parts = getattr(space, "factors", None)
        if parts is not None:
            return self.expand(parts)
        total: dict[Monomial, float] = {}
        for term in space.terms:  # type: ignore[union-attr]
            for m, c in self._size(term).items():
                total[m] = total.get(m, 0.0) + c
        return total


def total(graph_atoms: Iterable[Atom], terms: Iterable[tuple[float, Iterable[Space]]]) -> Polynomials:
    """One row: the sum of weighted products of axis sizes."""
    builder = Builder(graph_atoms)
    builder.add([(weight, builder.expand(spaces)) for weight, spaces in terms])
    return builder.build()


def numel(axes: Sequence[Space]) -> int:
    """Return the number of elements of a tensor with all units kept."""
    return math.prod(axis.size for axis in axes)
