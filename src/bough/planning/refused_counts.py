"""Learn which counts of a group the model's Python contradicts, where it agrees with other counts of the same group.

An axis of size 1 vanishes in `squeeze`, for instance: then one head is a conflict, and two heads are none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.graph import Graph
from bough.planning.allocation import Allowed
from bough.planning.constraints.equations import Ties
from bough.planning.draft import Draft

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Learned:
    """`refused`: group name -> counts that it cannot have. `unmet`: names of groups that agree with no count that was tried."""

    refused: dict[str, frozenset[int]]
    unmet: frozenset[str]


def learned(
    graph: Graph, counts: Counts, blamed: Collection[str], tied: Ties, allowed: Allowed, tried: Callable[[Counts], Draft | None]
) -> Learned:
    """Try other counts of the groups that a conflict blames, each on its own.

    Args:
        graph: of the model.
        counts: units of each group in the plan that conflicts.
        blamed: names of the groups that the conflict names.
        tied: classes of groups that are cut in proportion.
        allowed: the counts to choose from.
        tried: gives the draft at some counts, or None if the model's class cannot be built at them.

    Returns:
        Nothing where each of the groups, on its own, agrees with its count: only together do they conflict.
    """
    by_name = {g.name: g for g in graph.groups}
    classes = [names for names in tied.classes if set(names) & set(blamed)]
    found = [_Class(names, allowed.widths([by_name[n] for n in names])) for names in classes]
    found = [c for c in found if c.row(counts)]
    trial = _Trial({g.name: g.size for g in graph.groups}, tried)
    agreeing: dict[int, int] = {}
    for others in zip(*(c.others(counts) for c in found), strict=True):
        rows = {i: row for i, row in enumerate(others) if i not in agreeing and row != found[i].row(counts)}
        failing = trial.failing(found, rows) if rows else set()
        agreeing.update({i: row for i, row in rows.items() if i not in failing})
    refused: dict[str, frozenset[int]] = {}
    for i, row in agreeing.items():
        wrong = trial.refused(found[i], found[i].row(counts), row)
        columns = zip(found[i].names, found[i].counts.T, strict=True)
        refused.update({name: frozenset(int(n) for n in column[wrong]) for name, column in columns if wrong})
    unmet = frozenset(n for i, c in enumerate(found) if i not in agreeing for n in c.names)
    return Learned(refused, unmet)


@dataclass(frozen=True, eq=False, slots=True)
class _Class:
    """Tied groups, and the counts [rows, groups] that they may have, from all units down."""

    names: Sequence[str]
    counts: NDArray[np.int64]

    def row(self, counts: Counts) -> int:
        return int(np.flatnonzero(self.counts[:, 0] == counts[self.names[0]])[0])

    def others(self, counts: Counts) -> tuple[int, ...]:
        """Return other rows to try: the widest below all units, the one in the middle, and those beside the row of `counts`."""
        last, row = len(self.counts) - 1, self.row(counts)
        return 1, (1 + last) // 2, max(row - 1, 1), min(row + 1, last)

    def at(self, row: int) -> dict[str, int]:
        return {n: int(k) for n, k in zip(self.names, self.counts[row], strict=True)}


@dataclass(frozen=True, eq=False, slots=True)
class _Trial:
    """Runs the model at some counts of some classes, with all other groups whole."""

    whole: Counts
    tried: Callable[[Counts], Draft | None]

    def failing(self, classes: Sequence[_Class], rows: Mapping[int, int]) -> set[int]:
        """Return those of the classes, each at its row, that a conflict blames; all of them if a conflict blames no group."""
        at = {n: k for i, row in rows.items() for n, k in classes[i].at(row).items()}
        draft = self.tried({**self.whole, **at})
        if draft is None:
            return set(rows)
        if any(not c.atoms for c in draft.conflicts):
            return set(rows)
        blamed = {g.name for c in draft.conflicts for g in draft.graph.groups if g.atom in c.atoms}
        return {i for i in rows if blamed & set(classes[i].names)}

    def refused(self, tied: _Class, row: int, agrees: int) -> list[int]:
        """Return the rows from the first that conflicts to `row`, going down from one that agrees; none if `row` agrees."""
        if not self.failing([tied], {0: row}):
            return []
        if agrees > row or (row > 1 and not self.failing([tied], {0: row - 1})):
            return [row]
        low, high = agrees, row
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.failing([tied], {0: middle}) else (middle, high)
        return list(range(high, row + 1))
