"""Allocators that remove steps in one order, fixed before: the shortest prefix of it that meets the limits.

Then steps are put back, those removed last first, as long as the limits are still met.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.cost import ClosedForm
from bough.graph import Group
from bough.planning.allocation.columns import Column
from bough.planning.allocation.problem import Allocation, Problem

Ranks = Sequence[NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Global:
    """Ranks all units together, by score (`relative`: to the mean of its group, for scores not comparable between groups)."""

    relative: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        return _along(Problem(form, columns, limits), [c.ranks(self.relative) for c in columns])


@dataclass(frozen=True, slots=True)
class Uniform:
    """Cuts all groups by the same share."""

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        return _along(Problem(form, columns, limits), [1.0 - c.counts[1:, 0] / c.counts[0, 0] for c in columns])


@dataclass(frozen=True, slots=True)
class Isomorphic:
    """Ranks only among groups of equal form, and cuts each such set by the same share (Fang et al., 2024).

    Of equal form are groups of one kind whose members have the same dims and the same names but for numbers: so heads are
    compared with heads, and the first convolutions of residual blocks with each other.
    """

    relative: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        ranks = [c.ranks(self.relative) for c in columns]
        sets: dict[object, list[int]] = {}
        for i, c in enumerate(columns):
            sets.setdefault(frozenset(map(form_of, c.groups)), []).append(i)
        shares = list(ranks)
        for members in sets.values():
            for i, share in zip(members, _shares([columns[i] for i in members], [ranks[i] for i in members]), strict=True):
                shares[i] = share
        return _along(Problem(form, columns, limits), shares)


def form_of(group: Group) -> object:
    """What groups that can be compared have in common: the kind, and the names (numbers left out) and dims of members."""
    return group.kind, frozenset((_pattern(m.name), m.dim) for m in group.members)


def _pattern(name: str) -> str:
    """A name without numbers, but for the one in the name of the module itself: layer#.#.conv1.weight, features.#.weight."""
    parts = name.split(".")
    return ".".join(re.sub(r"\d+", "#", p) if i != len(parts) - 2 or p.isdigit() else p for i, p in enumerate(parts))


def _shares(columns: Sequence[Column], ranks: Ranks) -> list[NDArray[np.float64]]:
    """For each step, the share of all the columns' units that is gone when it and all of lower rank are removed."""
    removed = np.concatenate([-np.diff(c.counts, axis=0).sum(axis=1) for c in columns])
    order = np.argsort(np.concatenate(ranks), kind="stable")
    share = np.empty(len(removed))
    share[order] = np.cumsum(removed[order]) / sum(c.counts[0].sum() for c in columns)
    return np.split(share, np.cumsum([c.steps for c in columns])[:-1])


def _along(problem: Problem, ranks: Ranks) -> Allocation:
    """The shortest prefix of all steps, lowest rank first, that meets the limits; then what can be put back."""
    smallest = problem.unreachable()
    if smallest is not None:
        return smallest
    owner = np.repeat(np.arange(len(ranks)), problem.steps)
    order = owner[np.argsort(np.concatenate([*ranks, np.zeros(0)]), kind="stable")]
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        met = problem.meets(np.bincount(order[:middle], minlength=len(ranks)))
        low, high = (low, middle) if met else (middle + 1, high)
    taken = np.bincount(order[:low], minlength=len(ranks))
    return problem.allocation(problem.put_back(taken, order[:low][::-1].tolist()))
