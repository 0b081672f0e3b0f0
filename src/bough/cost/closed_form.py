"""Parameters, MACs, activation bytes, peak memory and size of any plan, by arithmetic on the kept counts.

Every cost is a polynomial in the groups' counts: a sum over ops (or tensors) of products of axis sizes. Peak memory is
the maximum over the ops of such polynomials. All are evaluated for many candidate plans at once.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from bough.graph import Graph
from bough.spaces import Atom, Space, normal

Counts = NDArray[np.float64]
Monomial = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs at the example inputs' shapes.

    `params`: numbers of parameters. `macs`: multiply-accumulates of linear and recurrent layers, convolutions, matrix products
    and attention in one forward pass. `size`: bytes of the state dict. `activation_bytes`: bytes of all tensors that ops
    make (views and in-place results not counted again). `peak_memory`: most bytes of activations alive at once, each
    from the op that makes it to the last that reads it, inputs included.
    """

    params: int
    macs: int
    size: int
    activation_bytes: int
    peak_memory: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


FIELDS = tuple(f.name for f in fields(Cost))


class _Polynomials:
    """Rows of polynomials over atoms' counts, with monomials shared between rows."""

    def __init__(self, atoms: list[Atom]) -> None:
        self.column = {atom: i for i, atom in enumerate(atoms)}
        self.monomials: dict[Monomial, int] = {}
        self.rows: list[dict[int, float]] = []

    def expand(self, space: Space) -> dict[Monomial, float]:
        space = normal(space)
        if isinstance(space, Atom):
            column = self.column.get(space)
            return {(): float(space.size)} if column is None else {(column,): 1.0}
        parts = getattr(space, "factors", None)
        if parts is not None:
            return self.times(list(parts))
        total: dict[Monomial, float] = {}
        for term in space.terms:  # type: ignore[union-attr]
            for m, c in self.expand(term).items():
                total[m] = total.get(m, 0.0) + c
        return total

    def times(self, spaces: list[Space]) -> dict[Monomial, float]:
        result: dict[Monomial, float] = {(): 1.0}
        for space in spaces:
            factor = self.expand(space)
            new: dict[Monomial, float] = {}
            for a, p in result.items():
                for b, q in factor.items():
                    key = tuple(sorted(a + b))
                    new[key] = new.get(key, 0.0) + p * q
            result = new
        return result

    def add(self, terms: list[tuple[float, tuple[Space, ...]]]) -> int:
        row: dict[int, float] = {}
        for weight, spaces in terms:
            for monomial, value in self.times(list(spaces)).items():
                index = self.monomials.setdefault(monomial, len(self.monomials))
                row[index] = row.get(index, 0.0) + weight * value
        self.rows.append(row)
        return len(self.rows) - 1

    def compile(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        width = max((len(m) for m in self.monomials), default=0)
        table = np.full((len(self.monomials), max(width, 1)), len(self.column), dtype=np.int64)
        for monomial, i in self.monomials.items():
            table[i, : len(monomial)] = monomial
        matrix = np.zeros((len(self.rows), len(self.monomials)))
        for r, row in enumerate(self.rows):
            matrix[r, list(row)] = list(row.values())
        return table, matrix


class ClosedForm:
    """The costs of a graph as functions of the units kept in each of its groups."""

    def __init__(self, graph: Graph) -> None:
        self.names = [g.name for g in graph.groups]
        self.sizes = np.array([g.size for g in graph.groups], dtype=np.float64)
        poly = _Polynomials([g.atom for g in graph.groups])
        states = list(graph.states.values())
        poly.add([(1.0, s.axes) for s in states if s.parameter])
        poly.add([(1.0, spaces) for op in graph.ops for spaces in op.macs])
        poly.add([(float(s.itemsize), s.axes) for s in states if s.saved])
        poly.add([(float(s.itemsize), s.axes) for s in graph.storages if s.born >= 0])
        self._table, self._matrix = poly.compile()
        self._peak_table, self._peak_matrix = _liveness(graph)

    def evaluate(self, counts: Counts, wanted: Container[str] = FIELDS) -> dict[str, NDArray[np.float64]]:
        """Costs of plans [plans, groups] of kept counts: one array [plans] per field of `Cost` that is asked for."""
        counts = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        padded = np.concatenate([counts, np.ones((len(counts), 1))], axis=1)
        values = padded[:, self._table].prod(axis=2) @ self._matrix.T
        found = {name: values[:, i] for i, name in enumerate(FIELDS[:-1]) if name in wanted}
        if "peak_memory" in wanted:
            live = padded[:, self._peak_table].prod(axis=2) @ self._peak_matrix.T
            found["peak_memory"] = live.max(axis=1, initial=0.0)
        return found

    def cost(self, counts: Counts | None = None) -> Cost:
        """The cost at one vector of counts; of the whole model without."""
        values = self.evaluate(self.sizes if counts is None else counts)
        return Cost(**{k: round(float(v[0])) for k, v in values.items()})


def _liveness(graph: Graph) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One polynomial per op: the bytes alive while it runs. Ops whose live set is a subset of a neighbour's are left out."""
    poly = _Polynomials([g.atom for g in graph.groups])
    events: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for i, storage in enumerate(graph.storages):
        events.setdefault(max(storage.born, 0), []).append(i)
        ends.setdefault(storage.dies, []).append(i)
    expanded = [poly.times([*s.axes]) for s in graph.storages]
    live: dict[int, None] = {}
    last_added = False
    steps: list[dict[int, None]] = []
    for step in range(len(graph.ops) + 1):
        new = events.get(step, [])
        for i in new:
            live[i] = None
        dead = ends.get(step, [])
        last_added = last_added or bool(new)
        if (last_added and dead) or step == len(graph.ops):
            steps.append(dict(live))
            last_added = False
        for i in dead:
            live.pop(i, None)
    for members in steps:
        row: dict[int, float] = {}
        for i in members:
            for monomial, value in expanded[i].items():
                index = poly.monomials.setdefault(monomial, len(poly.monomials))
                row[index] = row.get(index, 0.0) + value * graph.storages[i].itemsize
        poly.rows.append(row)
    return poly.compile()


_forms: WeakKeyDictionary[Graph, ClosedForm] = WeakKeyDictionary()


def closed_form(graph: Graph) -> ClosedForm:
    """The closed form of a graph's costs; made once."""
    form = _forms.get(graph)
    if form is None:
        form = _forms[graph] = ClosedForm(graph)
    return form


def cost_of(graph: Graph, counts: Mapping[str, int] | None = None) -> Cost:
    """The cost of a graph's model with the given units kept per group name (all where absent)."""
    form = closed_form(graph)
    known: Mapping[str, Any] = counts or {}
    vector = np.array([known.get(n, s) for n, s in zip(form.names, form.sizes, strict=True)], dtype=np.float64)
    return form.cost(vector)
