"""Importance per cost, greedily: always the step that loses the least importance for the cost it saves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.cost import ClosedForm
from bough.planning.allocation.columns import Column
from bough.planning.allocation.problem import Allocation, Problem, Taken

Arrays = Sequence[NDArray[np.float64]]
ROUNDS = 8
_SHARPNESS = 8  # how strongly a limit that is missed by a few percent loses weight


@dataclass(frozen=True, slots=True)
class Greedy:
    """Removes, step by step, what loses the least importance per cost saved, until all limits are met.

    The saving of a step is computed at the widths reached so far. For peak memory, every op above the limit counts. Once
    the limits are met, steps are put back while they stay met, the last ones first.

    Importance is counted relative to the sum of its group (see `Column.losses`), unless `relative` is False.

    With several limits, savings are added up as shares of each limit. Two repetitions, each up to `rounds` times, improve the
    plan, and the best one is kept: with smaller weights for limits that the plan undercuts, and with the savings that steps
    have at the widths of the plan found, because the first steps were priced at the widths of the dense model.
    """

    relative: bool = True
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        problem = Problem(form, columns, limits)
        lost = cumulated(columns, self.relative)
        return problem.unreachable() or problem.allocation(cheapest(problem, lost, self.rounds))


def cheapest(problem: Problem, lost: Arrays, rounds: int) -> Taken:
    """Return the plan of `Greedy`."""
    return improved(problem, lost, _weighed(problem, lost, rounds), rounds, lambda found: _at_prices(problem, lost, found))


def _weighed(problem: Problem, lost: Arrays, rounds: int) -> Taken:
    """Return the best of several greedy plans, each with limits weighed by how close the plan before came to them."""
    best = found = greedy(problem, lost)
    for _ in range(rounds if len(problem.limits) > 1 else 0):
        for name, ratio in problem.ratios(found).items():
            problem.weights[name] *= ratio**_SHARPNESS
        found = greedy(problem, lost)
        if total_loss(lost, found) < total_loss(lost, best):
            best = found
    problem.weights = dict.fromkeys(problem.limits, 1.0)
    return best


def improved(problem: Problem, lost: Arrays, taken: Taken, rounds: int, near: Callable[[Taken], Taken]) -> Taken:
    """The best of `taken` and of plans that greedy steps make of what `near` says beside the plan before, until one returns."""
    best = found = taken
    seen = {found.tobytes()}
    for _ in range(rounds):
        found = greedy(problem, lost, near(found))
        if total_loss(lost, found) < total_loss(lost, best):
            best = found
        if found.tobytes() in seen:
            break
        seen.add(found.tobytes())
    return best


def _at_prices(problem: Problem, lost: Arrays, taken: Taken) -> Taken:
    """The cheapest steps, at what each saves beside the others of `taken`, until the limit that it is closest to is met.

    Maxima have no such prices: where one of them is the closest, the plan stays.
    """
    name, limit = problem.closest(taken)
    if len(problem.form.parts[name].matrix) > 1:
        return taken
    costs = [problem.alone(name, taken, i) for i in range(len(taken))]
    saved = [-np.diff(c) for c in costs]
    prices = [
        np.maximum.accumulate(np.divide(np.diff(loss), s, out=np.full(len(s), np.inf), where=s > 0))
        for loss, s in zip(lost, saved, strict=True)
    ]
    owner = np.repeat(np.arange(len(costs)), problem.steps)
    order = np.argsort(np.concatenate(prices), kind="stable")
    over = problem.ratios(taken)[name] * limit - limit + sum(float(c[0] - c[k]) for c, k in zip(costs, taken, strict=True))
    needed = int(np.searchsorted(np.cumsum(np.concatenate(saved)[order]), over))
    return np.bincount(owner[order[: needed + 1]], minlength=len(costs)).astype(np.int64)


def total_loss(lost: Arrays, taken: Taken) -> float:
    """The importance that a plan loses."""
    return float(sum(values[k] for values, k in zip(lost, taken, strict=True)))


def cumulated(columns: Sequence[Column], relative: bool) -> list[NDArray[np.float64]]:
    """Of each column, the importance lost [steps + 1] after so many steps."""
    return [np.concatenate([[0.0], np.cumsum(c.losses(relative))]) for c in columns]


def greedy(problem: Problem, lost: Arrays, taken: Taken | None = None) -> Taken:
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
    def best(problem: Problem, lost: Arrays, taken: Taken, column: int) -> _Move:
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
