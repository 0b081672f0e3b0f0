"""Allocation by measured curves: what the model loses when one group is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.cost import ClosedForm
from bough.errors import PlanError
from bough.graph import Group
from bough.planning.allocation.columns import Column
from bough.planning.allocation.greedy import Greedy
from bough.planning.allocation.knapsack import Knapsack
from bough.planning.allocation.milp import Milp
from bough.planning.allocation.problem import Allocation

Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Takes the rise of measured curves as the importance that steps lose; `by` decides with it.

    Args:
        curves: {group: [(units kept, loss of the model), ...]}, that at all units included, as `bough.sensitivity` measures.
            Between the points lines, below the lowest as the last line goes on; losses that fall on the way are taken as
            flat. Of tied groups the losses add up. Groups with one point only stay whole.
        by: the allocator that is given these importances.

    Raises:
        PlanError: a group without a curve, or one that lacks the point at all units (when called).
    """

    curves: Curves
    by: Greedy | Knapsack | Milp = field(default_factory=Greedy)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        known = [c for c in columns if all(len(self._points(g)) > 1 for g in c.groups)]
        drops = [[self._drops(g, n) for g, n in zip(c.groups, c.counts.T, strict=True)] for c in known]
        given = [replace(c, drops=np.stack(d, axis=1)) for c, d in zip(known, drops, strict=True)]
        return replace(self.by, relative=False)(form, given, limits)

    def _points(self, group: Group) -> list[tuple[int, float]]:
        points = sorted(self.curves.get(group.name, ()), reverse=True)
        if not points or points[0][0] != group.size:
            raise PlanError(
                f"curves[{group.name!r}] must have points, one of them at all {group.size} units: measure it, or keep it whole "
                f"by [({group.size}, 0.0)]"
            )
        return [(int(n), float(x)) for n, x in points]

    def _drops(self, group: Group, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        points = self._points(group)
        kept = np.array([p[0] for p in points], dtype=np.float64)
        loss = np.maximum.accumulate([p[1] for p in points])
        slope = (loss[-1] - loss[-2]) / (kept[-2] - kept[-1])
        below = np.maximum(kept[-1] - counts, 0.0)
        return np.diff(np.interp(counts, kept[::-1], loss[::-1]) + slope * below)
