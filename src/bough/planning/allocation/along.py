"""Allocators that remove steps in one order, fixed before: the shortest prefix of it that meets the limits.

Then steps are put back, those removed last first, as long as the limits are still met (but for `Uniform`).
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
from bough.planning.allocation.greedy import cumulated, total_loss
from bough.planning.allocation.problem import Allocation, Problem, Taken

Ranks = Sequence[NDArray[np.float64]]
_UNUSED = 0.01  # share of the budget that may be left without a search for a plan that is closer to it


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
    """Cuts all groups by the same share, up to one step of each: one unit, or what `round_to` and ties make of it."""

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        problem = Problem(form, columns, limits)
        return problem.unreachable() or problem.allocation(_alike(problem))


def _alike(problem: Problem) -> Taken:
    """The least share that meets the limits, taken of every column; of those that just reach it, some may keep one step more.

    What could be put back besides stays out: it would pull the shares apart.
    """
    shares = [1.0 - c.counts[1:, 0] / c.counts[0, 0] for c in problem.columns]
    taken, order = _shortest(problem, shares)
    reached = [float(s[k - 1]) if k else 0.0 for s, k in zip(shares, taken, strict=True)]
    for i in (i for i in dict.fromkeys(reversed(order)) if reached[i] == max(reached)):
        fewer = taken - np.eye(len(taken), dtype=np.int64)[i]
        taken = fewer if problem.meets(fewer) else taken
    return taken


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
    """Return what groups that can be compared have in common: the kind, and the names (numbers left out) and dims of members.

    Args:
        group: of a graph.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> first, second = bough.trace(net, torch.randn(1, 8)).groups
        >>> form_of(first) == form_of(second)
        True
    """
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
    taken, order = _shortest(problem, ranks)
    return problem.allocation(_closer(problem, ranks, problem.put_back(taken, reversed(order))))


def _closer(problem: Problem, ranks: Ranks, taken: Taken) -> Taken:
    """Where a large step, such as a head of a residual stream, leaves much of the budget: the best plan without one such step.

    Other columns then give more, in the order of their ranks. A plan is taken if it uses more of the budget and loses less
    importance, in shares that multiply (`Column.losses`).
    """
    best, used = taken, max(problem.ratios(taken).values())
    if used >= 1 - _UNUSED:
        return taken
    lost = cumulated(problem.columns, relative=True)
    for i in np.flatnonzero(taken):
        last = [np.where((np.arange(len(r)) >= taken[i] - 1) & (j == i), np.inf, r) for j, r in enumerate(ranks)]
        found, order = _shortest(problem, last)
        if found[i] < taken[i]:
            found = problem.put_back(found, reversed(order))
            ratio = max(problem.ratios(found).values())
            if ratio > used and total_loss(lost, found) < total_loss(lost, best):
                best, used = found, ratio
    return best


def _shortest(problem: Problem, ranks: Ranks) -> tuple[Taken, list[int]]:
    """The shortest prefix of all steps, lowest rank first, that meets the limits, and the columns of its steps in order."""
    owner = np.repeat(np.arange(len(ranks)), problem.steps)
    order = owner[np.argsort(np.concatenate([*ranks, np.zeros(0)]), kind="stable")]
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        met = problem.meets(np.bincount(order[:middle], minlength=len(ranks)))
        low, high = (low, middle) if met else (middle + 1, high)
    return np.bincount(order[:low], minlength=len(ranks)), order[:low].tolist()
