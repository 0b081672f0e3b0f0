"""From a budget, or from what is to be kept, to the number of units of each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm, Cost, shown
from bough.errors import BudgetError, PlanError, instead
from bough.graph import Graph, Group
from bough.planning.allocation import Allocation, Allocator, Allowed, allocated, columns
from bough.planning.budget import Budget, Goal, Keep
from bough.planning.equations import Ties


@dataclass(frozen=True, eq=False, slots=True)
class Counting:
    """Decides counts: `goal` is a budget, of a model that costs `original`, or what is to be kept of `graph`'s groups."""

    graph: Graph
    form: ClosedForm
    original: Cost
    scores: Mapping[str, NDArray[np.float64]]
    goal: Goal
    decide: Allocator

    def __call__(self, tied: Ties, allowed: Allowed) -> Allocation:
        """Units of each group, cut in proportion where they are `tied`.

        Raises:
            BudgetError: the budget can not be reached.
            PlanError: no such group, or counts that it can not have.
        """
        by_name = {g.name: g for g in self.graph.groups}
        classes = [[by_name[n] for n in names] for names in tied.classes]
        if not isinstance(self.goal, Budget):
            return Allocation(_given(by_name, classes, self.goal, allowed), True)
        limits = self.goal.limits(self.original)
        found = allocated(self.decide, self.form, columns(classes, self.scores, allowed), limits)
        if not found.met:
            raise BudgetError(self._unreachable(tied, limits, self.cost(found.counts)))
        return found

    def cost(self, counts: Mapping[str, int]) -> Cost:
        """Of the cut model."""
        return self.form.cost(self.form.vector(counts))

    def _unreachable(self, tied: Ties, limits: Mapping[str, float], best: Cost) -> str:
        reached, whole, graph = best.to_dict(), self.original.to_dict(), self.graph
        missed = [
            f"{k}: at most {shown(k, limit)} is asked, "
            f"the best reachable is {shown(k, reached[k])} ({reached[k] / whole[k]:.1%} of {shown(k, whole[k])})"
            for k, limit in limits.items()
            if reached[k] > limit
        ]
        stuck = [f"{f.name} ({f.reason})" for f in graph.frozen] + [f"{n} ({why})" for n, why in tied.held.items()]
        in_frozen = {m.name for f in graph.frozen for m in f.members} - {m.name for g in graph.groups for m in g.members}
        share = sum(graph.tensor(n).numel() for n in in_frozen if graph.states[n].parameter) / max(self.original.params, 1)
        return (
            f"the budget can not be reached. {'; '.join(missed)}. {share:.0%} of the parameters are wholly frozen; "
            f"frozen: {', '.join(stuck[:6]) or 'nothing'}{' ...' if len(stuck) > 6 else ''}. "
            "Raise the budget, or lower minimum, round_to or ignore."
        )


def _given(by_name: Mapping[str, Group], classes: list[list[Group]], keep: Keep, allowed: Allowed) -> dict[str, int]:
    """The least widths allowed that are not below what is to be kept."""
    counts = {n: g.size for n, g in by_name.items()}
    if isinstance(keep, Mapping):
        unknown = [n for n in keep if n not in by_name]
        if unknown:
            raise PlanError(f"keep names {unknown[0]!r}, which is no group; {instead(unknown[0], by_name)}")
        bad = [n for n, k in keep.items() if not (isinstance(k, Integral) and 1 <= k <= by_name[n].size)]
        if bad:
            raise PlanError(f"keep[{bad[0]!r}]={keep[bad[0]]}: must be a whole number from 1 to {by_name[bad[0]].size}")
    elif not (isinstance(keep, Real) and 0 < keep <= 1):
        raise PlanError(f"keep={keep!r}: a share of the units must be above 0 and at most 1")
    for groups in classes:
        counted = allowed.widths(groups)
        shares = [keep[g.name] / g.size for g in groups if g.name in keep] if isinstance(keep, Mapping) else [keep]
        if shares:
            left = counted[:, 0] / counted[0, 0]
            row = int(np.flatnonzero(left >= min(shares) - 1e-9)[-1])
            counts.update({g.name: int(n) for g, n in zip(groups, counted[row], strict=True)})
    return counts
