"""Meets an arena of the C export to the byte: plan by the closed form, cut, place the activations, correct, plan again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.arguments import check_arguments
from bough.cost import Prices
from bough.cutting import cut
from bough.errors import BudgetError
from bough.exporting import Footprint, footprint
from bough.graph import Graph
from bough.planning import Budget, Options, Plan, planned

_CLOSEST = 1.005  # two limits whose ratio is below this give no plan between them


@dataclass(frozen=True, slots=True)
class Placed:
    """A model cut to an arena.

    Attributes:
        plan, model: the plan that was chosen, and the model cut by it.
        footprint: bytes of arena and constants of its export to C.
        target: the requested bytes of arena.
        original: bytes of the original model's export.
        rounds: (bytes of peak memory by the closed form, bytes of arena) of each plan that was tried.
    """

    plan: Plan
    model: nn.Module
    footprint: Footprint
    target: float
    original: Footprint
    rounds: tuple[tuple[int, int], ...]


def meet_arena(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], budget: Budget, *, tolerance: float = 0.05, rounds: int = 10,
    **options: Any,
) -> Placed:  # fmt: skip
    """Plan and cut until the arena of the C export is at most `budget.peak_memory`, and within `tolerance` of it.

    A budget of `peak_memory` at int8 is met by a closed form, an upper bound of one to three times the arena. This function
    places the activations of each cut model as the export does, and so uses what the closed form leaves free.

    Args:
        graph, scores: as for `plan`.
        budget: has `peak_memory` and `precision="int8"`; a percentage is of the original model's arena.
        tolerance: how far below the target the arena may be, as a fraction of the target.
        rounds: maximum number of plans that are tried.
        options: as for `plan`.

    Raises:
        BudgetError: the budget has no peak memory at int8, no plan reaches it, or none of `rounds` plans did.
        ExportError: the model has an operator without an integer kernel.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
        >>> graph = bough.trace(net, torch.randn(1, 1, 12, 12))
        >>> budget = bough.Budget(peak_memory="50%", precision="int8")
        >>> done = meet_arena(graph, bough.score(graph, "l2"), budget, allocation="greedy")
        >>> done.footprint.arena <= done.target <= 0.5 * done.original.arena
        True
    """
    check_arguments(meet_arena, locals())
    if budget.peak_memory is None or budget.precision != "int8":
        raise BudgetError('meet_arena needs Budget(peak_memory=..., precision="int8")')
    if rounds < 1 or not 0 <= tolerance < 1:
        raise BudgetError(f"rounds={rounds}, tolerance={tolerance}: rounds must be at least 1, tolerance from 0 to below 1")
    call = graph.calls[0]
    original = footprint(graph.model, (call.args, call.kwargs))
    closed = Prices("int8", flash=budget.flash is not None).form(graph).cost()
    target = budget.limits(replace(closed, peak_memory=original.arena))["peak_memory"]
    search = _Search(target, limit=target * closed.peak_memory / original.arena)
    best: tuple[Plan, nn.Module, Footprint] | None = None
    for _ in range(rounds):
        try:
            tried = planned(graph, scores, replace(budget, peak_memory=search.limit), Options(**options))
        except BudgetError:
            if best is None:
                raise
            break
        small = cut(graph.model, tried)
        found = footprint(small, (call.args, call.kwargs))
        fits = found.arena <= target
        if fits and (best is None or found.arena > best[2].arena):
            best = (tried, small, found)
        if (fits and found.arena >= target * (1 - tolerance)) or not search.next(tried.cost.peak_memory, found.arena):
            break
    if best is None:
        least = min((a for _, a in search.rounds), default=original.arena)
        raise BudgetError(
            f"peak_memory={budget.peak_memory!r}: the smallest arena of {len(search.rounds)} plans is {least:,} bytes, and "
            f"{target:,.0f} are allowed: raise the budget, or rounds"
        )
    plan, small, found = best
    note = f"arena of the C export: {found.arena:,} bytes, {target:,.0f} allowed"
    return Placed(replace(plan, notes=(*plan.notes, note)), small, found, target, original, tuple(search.rounds))


class _Search:
    """Limits of the closed form to plan for, between those whose arenas fit and those whose arenas do not."""

    def __init__(self, target: float, limit: float) -> None:
        self.target, self.limit = target, limit
        self.fits, self.exceeds = 0.0, math.inf
        self.rounds: list[tuple[int, int]] = []

    def next(self, closed: int, arena: int) -> bool:
        """Take in what a plan gave and set the next limit; False if there is none."""
        known = (closed, arena) in self.rounds
        self.rounds.append((closed, arena))
        if arena <= self.target:
            self.fits = max(self.fits, self.limit)
        else:
            self.exceeds = min(self.exceeds, closed)
        guess = closed * self.target / arena
        if known or not self.fits < guess < self.exceeds:
            guess = (self.fits + self.exceeds) / 2 if math.isfinite(self.exceeds) else self.fits * 2
        self.limit = guess
        return self.exceeds > self.fits * _CLOSEST and (math.isfinite(self.exceeds) or not known)
