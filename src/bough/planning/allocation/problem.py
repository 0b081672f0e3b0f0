"""What every allocator is given and gives back, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm
from bough.planning.allocation.columns import Column

Taken = NDArray[np.int64]  # steps taken of each column
SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Allocation:
    """Units kept per group name, whether the limits are met, and what is to be said about how they were found."""

    counts: dict[str, int]
    met: bool
    note: str = ""


class Allocator(Protocol):
    """Decides how many units each group keeps."""

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        """Counts that meet `limits` (upper bounds on fields of Cost); where none do, the smallest, with `met` False."""


class Problem:
    """Columns, and limits on the costs of what remains. A plan is an array `taken`: steps taken of each column."""

    def __init__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> None:
        self.form, self.columns, self.limits = form, tuple(columns), dict(limits)
        self.weights = dict.fromkeys(limits, 1.0)  # of each limit, in `excess`
        self.steps: Taken = np.array([c.steps for c in columns], dtype=np.int64)
        place = {name: i for i, name in enumerate(form.names)}
        self._group = np.array([place[g.name] for c in columns for g in c.groups], dtype=np.int64)
        self._column = np.array([i for i, c in enumerate(columns) for _ in c.groups], dtype=np.int64)
        lists = [c.counts[:, j] for c in columns for j in range(len(c.groups))]
        self._starts = np.cumsum([0, *(len(x) for x in lists)])[:-1]
        self._counts = np.concatenate(lists).astype(np.float64) if lists else np.zeros(0)

    def none(self) -> Taken:
        """The plan that removes nothing."""
        return np.zeros(len(self.columns), dtype=np.int64)

    def counts(self, taken: Taken) -> NDArray[np.float64]:
        """Units kept [plans, groups] by plans [plans, columns] (or by one plan)."""
        taken = np.atleast_2d(taken)
        result = np.tile(self.form.sizes, (len(taken), 1))
        result[:, self._group] = self._counts[self._starts + taken[:, self._column]]
        return result

    def excess(self, taken: Taken) -> NDArray[np.float64]:
        """By how much plans [plans, columns] miss the limits: 0 where all are met.

        Each row of each cost counts with the share by which it is above its limit, times the limit's weight. So of peak
        memory every moment above the limit counts, not the highest alone: there are no plateaus where no single step helps.
        """
        counts = self.counts(taken)
        total = np.zeros(len(counts))
        for name, limit in self.limits.items():
            over = self.form.rows(counts, name) / limit - 1.0
            total += self.weights[name] * np.where(over > SLACK, over, 0.0).sum(axis=1)
        return total

    def meets(self, taken: Taken) -> bool:
        return bool(self.excess(taken)[0] == 0.0)

    def ratios(self, taken: Taken) -> dict[str, float]:
        """Each cost of one plan over its limit."""
        values = self.form.evaluate(self.counts(taken), self.limits)
        return {name: float(v[0]) / self.limits[name] for name, v in values.items()}

    def closest(self, taken: Taken) -> tuple[str, float]:
        """The limit that one plan comes closest to, and its value."""
        ratios = self.ratios(taken)
        name = max(ratios, key=lambda k: ratios[k])
        return name, self.limits[name]

    def alone(self, name: str, taken: Taken, column: int) -> NDArray[np.float64]:
        """An additive cost [steps + 1] at each width of one column, with the others as they are in `taken`."""
        plans = np.tile(taken, (int(self.steps[column]) + 1, 1))
        plans[:, column] = np.arange(len(plans))
        return self.form.rows(self.counts(plans), name)[:, 0]

    def put_back(self, taken: Taken, order: Iterable[int]) -> Taken:
        """`taken` with steps put back, column by column in `order` and then the rest, as long as the limits are met.

        Costs never fall when units are added, so afterwards no step of any column can be put back.
        """
        taken = taken.copy()
        for i in dict.fromkeys([*order, *range(len(self.columns))]):
            low, high, tried = 0, int(taken[i]), int(taken[i]) - 1  # as few steps as the limits allow
            while low < high:
                if self.meets(_with(taken, i, tried)):
                    high = tried
                else:
                    low = tried + 1
                tried = (low + high) // 2
            taken[i] = high
        return taken

    def allocation(self, taken: Taken, *, met: bool = True, note: str = "") -> Allocation:
        counts = self.counts(taken)[0]
        return Allocation({name: int(n) for name, n in zip(self.form.names, counts, strict=True)}, met, note)

    def unreachable(self) -> Allocation | None:
        """The smallest plan, where not even that meets the limits."""
        return None if self.meets(self.steps) else self.allocation(self.steps, met=False)


def _with(taken: Taken, column: int, steps: int) -> Taken:
    changed = taken.copy()
    changed[column] = steps
    return changed
