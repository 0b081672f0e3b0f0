"""From a budget, or from what is to be kept, to the number of units of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm, Cost, shown
from bough.errors import BudgetError, PlanError
from bough.graph import Graph, Group
from bough.latency import LatencyForm
from bough.planning.allocation import Allocation, Allocator, Allowed, allocated, columns
from bough.planning.budget import Budget, Goal, Keep, LeastOfTied
from bough.planning.constraints.equations import Ties
from bough.planning.named import shares_kept


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
        if not isinstance(self.goal, Budget):
            return Allocation(_given(self.graph.groups, tied, self.goal, allowed), True)
        by_name = {g.name: g for g in self.graph.groups}
        classes = [[by_name[n] for n in names] for names in tied.classes]
        limits = self.goal.limits(self.original)
        found = allocated(self.decide, self.form, columns(classes, self.scores, allowed), limits)
        if not found.met:
            why = self._unreachable(tied, limits, self.cost(found.counts))
            refused = "; ".join(f"{n}: {', '.join(map(str, sorted(k)))}" for n, k in allowed.refused.items())
            raise BudgetError(f"{why} Counts that the model's Python contradicts: {refused}." if refused else why)
        return found

    def cost(self, counts: Mapping[str, int]) -> Cost:
        """Of the cut model."""
        return self.form.cost(self.form.vector(counts))

    def _unreachable(self, tied: Ties, limits: Mapping[str, float], best: Cost) -> str:
        reached, whole, graph = best.to_dict(), self.original.to_dict(), self.graph
        missed_names, latency = [k for k, limit in limits.items() if reached[k] > limit], self.form.parts.get("latency")
        missed = [
            f"{k}: at most {shown(k, limits[k])} is asked, "
            f"the best reachable is {shown(k, reached[k])} ({reached[k] / whole[k]:.1%} of {shown(k, whole[k])})"
            for k in missed_names
        ]
        if missed_names == ["latency"] and isinstance(latency, LatencyForm) and latency.overhead > limits["latency"]:
            return (
                f"the budget can not be reached. {missed[0]}. {shown('latency', latency.overhead)} of it is overhead of "
                f"{latency.ops} ops, time that no width changes: leave out layers (drop=...), use a table of a backend that "
                "fuses ops (compile, onnxruntime) or of a larger batch, or raise the budget."
            )
        stuck = [f"{f.name} ({f.reason})" for f in graph.frozen] + [f"{n} ({why})" for n, why in tied.frozen.items()]
        in_frozen = {m.name for f in graph.frozen for m in f.members} - {m.name for g in graph.groups for m in g.members}
        share = sum(graph.tensor(n).numel() for n in in_frozen if graph.states[n].parameter) / max(self.original.params, 1)
        return (
            f"the budget can not be reached. {'; '.join(missed)}. {share:.0%} of the parameters are wholly frozen; "
            f"frozen: {', '.join(stuck[:6]) or 'nothing'}{' ...' if len(stuck) > 6 else ''}. "
            "Raise the budget, or lower minimum, round_to or ignore."
        )


def _given(groups: Sequence[Group], tied: Ties, keep: Keep, allowed: Allowed) -> dict[str, int]:
    """The least widths allowed that are not below what is to be kept."""
    by_name = {g.name: g for g in groups}
    counts = {n: g.size for n, g in by_name.items()}
    shares = shares_kept(groups, keep)
    for names in tied.classes:
        counted = allowed.widths([by_name[n] for n in names])
        left = counted[:, 0] / counted[0, 0]
        rows = {n: int(np.flatnonzero(left >= shares[n] - 1e-9)[-1]) for n in names if n in shares}
        if not isinstance(keep, LeastOfTied) and len(set(rows.values())) > 1:
            raise PlanError(_contradiction(rows, shares, by_name, tied))
        if rows:
            counts.update({n: int(k) for n, k in zip(names, counted[max(rows.values())], strict=True)})
    return counts


def _contradiction(rows: Mapping[str, int], shares: Mapping[str, float], groups: Mapping[str, Group], tied: Ties) -> str:
    """Two tied groups that are to keep different shares, and what ties them."""
    one = next(iter(rows))
    other = next(n for n in rows if rows[n] != rows[one])
    first, second = (f"{shares[n]:.3g} of {n!r} ({groups[n].size} units)" for n in (one, other))
    why = tied.reasons.get(other) or tied.reasons.get(one) or "the model's Python computes one from the other"
    return f"keep asks for {first} and {second}, which are cut in proportion ({why}): name one of them, or give both one share"
