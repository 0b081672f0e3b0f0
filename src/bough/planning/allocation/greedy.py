"""Importance per cost, greedily: always the step that loses the least importance for the cost it saves."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm
from bough.planning.allocation.columns import Column
from bough.planning.allocation.problem import Allocation, Problem, Taken


@dataclass(frozen=True, slots=True)
class Greedy:
    """Removes the step of least importance lost per cost saved, over the limits still missed, until all are met.

    What a step saves is computed at the widths reached so far, of peak memory too: there, every moment above the limit
    counts. Then steps are put back, those removed last first.
    """

    relative: bool = True

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        problem = Problem(form, columns, limits)
        return problem.unreachable() or problem.allocation(greedy(problem, cumulated(columns, self.relative)))


def cumulated(columns: Sequence[Column], relative: bool) -> list[NDArray[np.float64]]:
    """Of each column, the importance lost [steps + 1] after so many steps."""
    return [np.concatenate([[0.0], np.cumsum(c.losses(relative))]) for c in columns]


def greedy(problem: Problem, lost: Sequence[NDArray[np.float64]], taken: Taken | None = None) -> Taken:
    """The greedy plan from `taken` (from nothing removed): steps until the limits are met, then what can be put back.

    A heap holds each column's best move at the price it had when last looked at. Prices only rise as other widths shrink
    (each cost is a sum of products), so a move that is still the cheapest at today's price is the cheapest of all.
    """
    taken = problem.none() if taken is None else taken.copy()
    heap = [_Move.best(problem, lost, taken, i) for i in np.flatnonzero(taken < problem.steps).tolist()]
    heapq.heapify(heap)
    order: list[int] = []
    while not problem.meets(taken):
        i = heapq.heappop(heap).column
        move = _Move.best(problem, lost, taken, i)
        if heap and heap[0] < move:
            heapq.heappush(heap, move)
            continue
        taken[i] += move.steps
        order.append(i)
        if taken[i] < problem.steps[i]:
            heapq.heappush(heap, _Move.best(problem, lost, taken, i))
    return problem.put_back(taken, reversed(order))


@dataclass(frozen=True, order=True, slots=True)
class _Move:
    """Some next steps of a column, and the importance they lose per cost they save (infinite where they save nothing)."""

    price: float
    loss: float
    column: int
    steps: int

    @staticmethod
    def best(problem: Problem, lost: Sequence[NDArray[np.float64]], taken: Taken, column: int) -> _Move:
        """The cheapest of 1, 2, 4, ... and all remaining steps: more than one where the cost falls in stairs."""
        now, left = int(taken[column]), int(problem.steps[column] - taken[column])
        moves = np.array([*(1 << np.arange(left.bit_length())), left])
        moves = moves[moves <= left]
        plans = np.tile(taken, (len(moves) + 1, 1))
        plans[1:, column] += moves
        excess = problem.excess(plans)
        saved = excess[0] - excess[1:]
        loss = lost[column][now + moves] - lost[column][now]
        price = np.divide(loss, saved, out=np.full(len(moves), np.inf), where=saved > 0)
        best = int(np.argmin(price))
        return _Move(float(price[best]), float(loss[best]), column, int(moves[best]))
