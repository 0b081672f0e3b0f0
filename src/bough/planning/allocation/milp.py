"""The exact optimum on a menu of widths: a mixed-integer linear program, solved by HiGHS through scipy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.cost import ClosedForm
from bough.errors import PlanError
from bough.planning.allocation.columns import Column
from bough.planning.allocation.greedy import ROUNDS, cheapest, cumulated, greedy, total_loss
from bough.planning.allocation.problem import Allocation, Problem, Taken

Menu = Sequence[NDArray[np.int64]]  # of each column, the numbers of steps to choose from
_MOST = 20_000  # widths together of the groups of one op


@dataclass(frozen=True, slots=True)
class Milp:
    """The least importance lost on a menu of widths per column, all limits at once, to optimality.

    A cost is a sum of terms that depend on a few columns each. Next to a 0-1 variable per (column, width), each such set
    of columns has one per combination of widths, tied to the columns by its marginals: so products of widths, measured
    latencies and the maximum of peak memory are all linear, and nothing is approximated. Columns with more widths than
    the menu are solved `rounds` times, on menus ever finer about the plan before, the first about the greedy one. Then
    steps are put back. Never worse than `Greedy`.

    Args:
        relative: losses of the share of each group's importance, see `Column.losses`.
        widths: entries of the menu per column.
        rounds: how often menus are refined.
        seconds: for each program; if they run out the note says how far from the optimum the plan can be.

    Raises:
        PlanError: scipy is not installed, or too many widths meet in one op (when called).
    """

    relative: bool = True
    widths: int = 8
    rounds: int = 4
    seconds: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        problem = Problem(form, columns, limits)
        smallest = problem.unreachable()
        if smallest is not None or not columns:
            return smallest or problem.allocation(problem.none())
        lost = cumulated(columns, self.relative)
        spacing = problem.steps / max(self.widths - 1, 1)
        best = taken = cheapest(problem, lost, ROUNDS)
        note = ""
        for _ in range(self.rounds):
            menu = [self._menu(n, s, t) for n, s, t in zip(problem.steps, spacing, taken, strict=True)]
            solved = _Program(problem, menu).solve(lost, self.seconds)
            if solved is None:
                note = note or f"the solver found no plan in {self.seconds:g} s: the plan is the best of those before"
                break
            taken, gap = solved
            if gap > 1e-6:
                note = f"the solver stopped after {self.seconds:g} s; the best plan on its menu can be {gap:.2%} better"
            if (spacing <= 1).all():
                break
            spacing = np.maximum(spacing * 2 / max(self.widths - 1, 2), 1.0)
        taken = greedy(problem, lost, taken)  # the program's is within HiGHS's tolerance of the limits, or below them
        return problem.allocation(min(best, taken, key=lambda t: total_loss(lost, t)), note=note)

    def _menu(self, steps: int, spacing: float, centre: int) -> NDArray[np.int64]:
        """Numbers of steps about `centre`, none and all included; every one where the menu holds them."""
        if steps < self.widths:
            return np.arange(steps + 1)
        half = self.widths // 2
        near = np.round(centre + max(spacing, 1.0) * np.arange(-half, self.widths - half))
        return np.unique(np.clip([0, centre, *near, steps], 0, steps)).astype(np.int64)


class _Program:
    """The program on one menu. Variables: first the choices of each column, then the joint choices of each scope."""

    def __init__(self, problem: Problem, menu: Menu) -> None:
        self.problem, self.menu = problem, menu
        self.starts = np.cumsum([0, *map(len, menu)])
        self.column_of = {}
        place = {name: i for i, name in enumerate(problem.form.names)}
        for i, c in enumerate(problem.columns):
            self.column_of.update({place[g.name]: i for g in c.groups})
        self.joint: dict[tuple[int, ...], int] = {}  # a scope of several columns -> its first variable
        self.size = int(self.starts[-1])
        self.entries: tuple[list[Any], list[Any], list[Any]] = ([], [], [])  # coefficients, rows, variables
        self.bounds: list[tuple[float, float]] = []

    def solve(self, lost: Sequence[NDArray[np.float64]], seconds: float) -> tuple[Taken, float] | None:
        """(steps taken, the gap to the optimum's bound); None where none was found in time."""
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import coo_array
        except ImportError:
            raise PlanError("allocation by Milp needs scipy: pip install bough[search]") from None
        for i, choices in enumerate(self.menu):
            self._row(np.ones(len(choices)), np.arange(len(choices)) + self.starts[i], 1.0, 1.0)
        for name, limit in self.problem.limits.items():
            self._limit(name, limit)
        loss = np.zeros(self.size)
        loss[: self.starts[-1]] = np.concatenate([values[m] for values, m in zip(lost, self.menu, strict=True)])
        whole = np.zeros(self.size)
        whole[: self.starts[-1]] = 1
        values, rows, variables = (np.concatenate(x) for x in self.entries)
        matrix = coo_array((values, (rows, variables)), shape=(len(self.bounds), self.size)).tocsr()
        low, high = np.array(self.bounds).T
        found = milp(
            loss, constraints=LinearConstraint(matrix, low, high), integrality=whole, bounds=Bounds(0, 1),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )  # fmt: skip
        if found.x is None:
            return None
        taken = [m[int(np.argmax(found.x[a:b]))] for m, a, b in zip(self.menu, self.starts, self.starts[1:], strict=False)]
        return np.array(taken, dtype=np.int64), float(found.mip_gap or 0.0)

    def _row(self, values: NDArray[np.float64], variables: NDArray[np.int64], low: float, high: float) -> None:
        there = values != 0
        for store, new in zip(
            self.entries, (values[there], np.full(there.sum(), len(self.bounds)), variables[there]), strict=True
        ):
            store.append(new)
        self.bounds.append((low, high))

    def _limit(self, name: str, limit: float) -> None:
        """One row per row of a cost: the sum over scopes of what each choice of their columns costs."""
        part = self.problem.form.parts[name]
        scopes: dict[tuple[int, ...], list[int]] = {}
        for t, groups in enumerate(part.scopes):
            columns = {self.column_of[g] for g in groups if g in self.column_of}
            scopes.setdefault(tuple(sorted(columns)), []).append(t)
        values, variables, constant = [], [], np.zeros(len(part.matrix))
        for scope, terms in scopes.items():
            cost = part.matrix[:, terms] @ part.terms(self.problem.counts(self._plans(scope)))[terms] / limit
            if scope:
                first = int(self.starts[scope[0]]) if len(scope) == 1 else self._joint(scope)
                values.append(cost)
                variables.append(first + np.arange(cost.shape[1]))
            else:
                constant += cost[:, 0]
        if values:
            for row, spent in zip(np.concatenate(values, axis=1), constant, strict=True):
                self._row(row, np.concatenate(variables), -np.inf, 1.0 - spent)

    def _plans(self, scope: tuple[int, ...]) -> Taken:
        """All combinations of the choices of a scope's columns, the last column's fastest."""
        shape = [len(self.menu[i]) for i in scope]
        if prod(shape) > _MOST:
            raise PlanError(
                f"Milp: {len(scope)} groups meet in one op, which has {prod(shape):,} combinations: give fewer widths"
            )
        plans = np.zeros((prod(shape), len(self.menu)), dtype=np.int64)
        for i, at in zip(scope, np.indices(shape).reshape(len(shape), prod(shape)), strict=True):
            plans[:, i] = self.menu[i][at]
        return plans

    def _joint(self, scope: tuple[int, ...]) -> int:
        """The first of a scope's variables, one per combination; their marginals are the columns' own variables."""
        if scope not in self.joint:
            first = self.joint[scope] = self.size
            shape = [len(self.menu[i]) for i in scope]
            self.size += prod(shape)
            for at, i in zip(np.indices(shape).reshape(len(shape), prod(shape)), scope, strict=True):
                for k in range(len(self.menu[i])):
                    same = first + np.flatnonzero(at == k)
                    ones = np.concatenate([np.ones(len(same)), [-1.0]])
                    self._row(ones, np.concatenate([same, [self.starts[i] + k]]), 0.0, 0.0)
        return self.joint[scope]
