"""How many units each group keeps: the largest plan, along an order of removal, that meets the budget.

Groups tied by the model's Python form one `Column`, cut in steps. The steps of all columns, lowest score first, form
one order of removal. The shortest prefix that meets the budget is removed; then steps are put back, best first, as
long as the budget is still met. So no step of any column can be put back at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, lcm

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm
from bough.graph import Group

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Column:
    """Tied groups: `counts[k][i]` units of group i remain after k steps; `ranks[k]` is the score of step k."""

    groups: tuple[Group, ...]
    counts: NDArray[np.int64]  # [steps + 1, groups]
    ranks: NDArray[np.float64]  # [steps]


def columns(
    classes: Sequence[Sequence[Group]], scores: Scores, *, round_to: int, minimum: float, uniform: bool
) -> list[Column]:
    """The removal steps of each class of tied groups."""
    result = []
    for groups in classes:
        counts = _counts(groups, round_to, minimum)
        if len(counts) > 1:
            result.append(Column(tuple(groups), counts, _ranks(groups, counts, scores, uniform)))
    return result


def _counts(groups: Sequence[Group], round_to: int, minimum: float) -> NDArray[np.int64]:
    steps = gcd(*(g.size for g in groups))
    sizes = np.array([g.size // steps for g in groups])
    kept = np.arange(steps, 0, -1)
    allowed = np.ones(len(kept), dtype=bool)
    for g, unit in zip(groups, sizes, strict=True):
        least = max(g.least, minimum if minimum >= 1 else ceil(minimum * g.size))
        allowed &= kept * unit >= min(least, g.size)
        step = g.multiple if g.kind == "head" else lcm(g.multiple, round_to)
        allowed &= (kept * unit) % step == 0
    allowed[0] = True
    return kept[allowed][:, None] * sizes[None, :]


def _ranks(groups: Sequence[Group], counts: NDArray[np.int64], scores: Scores, uniform: bool) -> NDArray[np.float64]:
    """The score of each step: the mean, over the tied groups, of the mean of the units it removes, each relative to
    its group's mean; uniform allocation ranks by the share removed instead."""
    if uniform:
        return 1.0 - counts[1:, 0] / counts[0, 0]
    total = np.zeros(len(counts) - 1)
    for i, g in enumerate(groups):
        ordered = np.sort(scores[g.name])
        ordered = ordered / (ordered.mean() or 1.0)
        cumulative = np.concatenate([[0.0], np.cumsum(ordered)])
        removed = g.size - counts[:, i]
        total += np.diff(cumulative[removed]) / np.diff(removed)
    return np.maximum.accumulate(total / len(groups))


@dataclass(frozen=True, slots=True)
class Allocation:
    """Units kept per group name, and whether the limits are met."""

    counts: dict[str, int]
    met: bool


def allocate(form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
    """The largest plan along the order of removal that meets `limits` (fields of Cost)."""
    place = {name: i for i, name in enumerate(form.names)}
    places = [np.array([place[g.name] for g in c.groups]) for c in columns]
    ranks = np.concatenate([c.ranks for c in columns]) if columns else np.zeros(0)
    owner = np.concatenate([np.full(len(c.ranks), i) for i, c in enumerate(columns)]) if columns else np.zeros(0, int)
    order = owner[np.argsort(ranks, kind="stable")]

    def vector(taken: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = form.sizes.copy()
        for column, where, steps in zip(columns, places, taken, strict=True):
            counts[where] = column.counts[steps]
        return counts

    def meets(counts: NDArray[np.float64]) -> bool:
        values = form.evaluate(counts, limits)
        return all(values[k][0] <= limit * (1 + 1e-12) for k, limit in limits.items())

    def prefix(length: int) -> NDArray[np.int64]:
        return np.bincount(order[:length], minlength=len(columns))

    low, high = 0, len(order)
    counts = vector(prefix(high))
    if not meets(counts):
        return Allocation(_named(form, counts), False)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(vector(prefix(middle))) else (middle + 1, high)
    taken = prefix(low)
    counts = vector(taken)
    for i in dict.fromkeys(order[:low][::-1].tolist()):  # the columns, the one cut last first
        for steps in range(taken[i] - 1, -1, -1):
            before = counts[places[i]]
            counts[places[i]] = columns[i].counts[steps]
            if not meets(counts):
                counts[places[i]] = before
                break
    return Allocation(_named(form, counts), True)


def _named(form: ClosedForm, counts: NDArray[np.float64]) -> dict[str, int]:
    return {name: int(n) for name, n in zip(form.names, counts, strict=True)}
