"""Latency as a closed form of the kept counts: the sum over ops of measured times, and of bytes moved."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bough.cost.traffic import activations, moving, weights
from bough.errors import PlanError
from bough.graph import Builder, Counts, Graph, Polynomials, total
from bough.latency.grids import Grid, GridLookup, Widths
from bough.latency.op_shapes import OpShape, is_timed, op_shapes

OTHER = "other"  # the name of all ops that are not timed by themselves
OVERHEAD = "overhead"  # the name of the term that is the same for each op


class OpTimes(Protocol):
    """The fields of a `LatencyTable` that its closed form needs."""

    @property
    def device(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def quantum(self) -> int: ...
    @property
    def op_seconds(self) -> float: ...
    @property
    def byte_seconds(self) -> float: ...
    @property
    def points(self) -> Mapping[str, Mapping[Widths, float]]: ...
    @property
    def scale(self) -> float: ...
    @property
    def factors(self) -> Mapping[str, float]: ...
    @property
    def op_overhead(self) -> float: ...


class LatencyForm:
    """The latency of a model as a `Part` of its closed form: a term per timed op, and the bytes that other ops move.

    Attributes:
        scopes: for each term, the groups that it depends on.
        names: for each term, the name of its op; `OTHER` for ops that are not timed by themselves, `OVERHEAD` for what
            all ops take besides.
        overhead: seconds that no plan removes: for each op with prunable widths its time at the smallest measured widths,
            for each other op the table's `op_seconds`; and for each op its `op_overhead`.
        ops: number of ops.

    Raises:
        PlanError: the table has no times for an op, or not up to its widths.
    """

    def __init__(self, table: OpTimes, graph: Graph) -> None:
        shapes = list(op_shapes(graph))
        columns = {g.atom: i for i, g in enumerate(graph.groups)}
        _check_complete(table, shapes)
        grids = {key: Grid(table.points[key], key) for key in dict.fromkeys(s.key for s in shapes)}
        self._lookup = GridLookup([grids[s.key] for s in shapes], table.quantum)
        builder = Builder(columns)
        builder.add([(1.0, builder.expand(()))])  # row 0 stands for letters that an op lacks
        self._rows = np.zeros((len(shapes), max((len(s.letters) for s in shapes), default=0)), dtype=np.int64)
        row = 0
        for i, shape in enumerate(shapes):
            for j, space in enumerate(shape.letters):
                builder.add([(1.0, builder.expand((space,)))])
                row += 1
                self._rows[i, j] = row
        self._widths = builder.build()
        self._untimed = _untimed_ops(table, graph)
        ops = [tuple(sorted({columns[a] for s in x.letters for a in s.atoms if a in columns})) for x in shapes]
        untimed = sum(not is_timed(op) for op, _ in moving(graph))
        self.ops = len(shapes) + untimed
        self.scopes = [*ops, *self._untimed.scopes, ()]
        self.names = [*(s.name for s in shapes), *(OTHER for _ in self._untimed.scopes), OVERHEAD]  # of each term
        factors = [*(table.factors.get(name, 1.0) for name in self.names[:-1]), 1.0]
        seconds = [np.ones((1, len(shapes))), self._untimed.matrix, np.full((1, 1), table.op_overhead * self.ops)]
        self.matrix = np.concatenate(seconds, axis=1) * factors * table.scale
        fastest = [float(grids[s.key].times.min()) if s.letters else table.op_seconds for s in shapes]
        timed = sum(seconds * factor for seconds, factor in zip(fastest, factors, strict=False))
        other = untimed * table.op_seconds * table.factors.get(OTHER, 1.0)
        self.overhead = table.scale * (timed + other + self.ops * table.op_overhead)

    def seconds_by_op(self, counts: Counts) -> dict[str, NDArray[np.float64]]:
        """Return the seconds [plans] that all ops of a name take together, by name, at counts [plans, groups]."""
        seconds = self.matrix.T * self.terms(counts)
        return {name: seconds[[n == name for n in self.names]].sum(axis=0) for name in dict.fromkeys(self.names)}

    def terms(self, counts: Counts) -> NDArray[np.float64]:
        """Return the terms [terms, plans] at counts [plans, groups]."""
        widths = self._widths.matrix @ self._widths.terms(counts)
        return np.concatenate([self._lookup(widths[self._rows]), self._untimed.terms(counts), np.ones((1, counts.shape[0]))])


def _untimed_ops(table: OpTimes, graph: Graph) -> Polynomials:
    """Return the latency of the ops that are not timed by themselves: a constant each, and the bytes they read and write."""
    ops = [(op, size) for op, size in moving(graph) if not is_timed(op)]
    terms = [(table.op_seconds, ()) for _ in ops]
    moved = [(size * table.byte_seconds, axes) for op, size in ops for axes in (*activations(op), *weights(op))]
    return total((g.atom for g in graph.groups), [*terms, *moved])


def _check_complete(table: OpTimes, shapes: list[OpShape]) -> None:
    """Raise PlanError if the table lacks times for some of the shapes."""
    missing = list(dict.fromkeys(s.key for s in shapes if s.key not in table.points))
    for s in shapes:
        for letter, space, widths in zip(
            ascii_lowercase, s.letters, zip(*table.points.get(s.key, ()), strict=True), strict=False
        ):
            if space.size > max(widths):
                missing.append(f"{s.key} with {letter} up to {space.size}")
    if missing:
        raise PlanError(
            f"the table of {table.device}, {table.backend} has no times of {len(missing)} forms of ops, such as {missing[0]}: "
            "complete it by LatencyTable.measure(graph, ..., onto=table) there, or by with_csv"
        )
