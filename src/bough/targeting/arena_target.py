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
from bough.errors import BudgetError, ExportError
from bough.exporting import Footprint, footprint
from bough.graph import Graph
from bough.planning import Budget, Options, Plan, planned
from bough.planning.budget import parse

_CLOSEST = 1.005  # two limits whose ratio is below this give no plan between them
_BELOW = 0.995  # of the constants that are asked of the closed form after a plan that had too many


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a budget allows the C export of a model, and how it is asked of the closed form.

    Attributes:
        original: bytes of the original model's export.
        arena: bytes of arena that are allowed.
        flash: bytes of constants that are allowed; infinite without a bound.
        budget: the same with the limits of the closed form to begin with, in the original model's ratio to its export.
    """

    original: Footprint
    arena: float
    flash: float
    budget: Budget

    @staticmethod
    def of(graph: Graph, budget: Budget) -> Limits:
        """Return the limits of a budget.

        Raises:
            ExportError: the model has an operator without an integer kernel.
        """
        call = graph.calls[0]
        original = footprint(graph.model, (call.args, call.kwargs))
        closed = Prices("int8", flash=budget.flash is not None).form(graph).cost()
        exact = replace(closed, peak_memory=max(original.arena, 1), flash=original.flash)
        limits = budget.limits(exact)
        arena, flash = limits["peak_memory"], limits.get("flash", math.inf)
        first = replace(budget, peak_memory=arena * closed.peak_memory / exact.peak_memory)
        if budget.flash is not None:
            first = replace(first, flash=flash * (closed.flash or 0) / original.flash)
        return Limits(original, arena, flash, first)

    def fit(self, found: Footprint) -> bool:
        """Return whether an export is within the limits."""
        return found.arena <= self.arena and found.flash <= self.flash

    def used(self, found: Footprint) -> float:
        """Return the share of the limit that an export comes closest to."""
        return max(found.arena / self.arena, found.flash / self.flash)


def export_limits(graph: Graph, budget: Budget, options: Options) -> tuple[Limits | None, tuple[str, ...]]:
    """Return what a budget for microcontrollers allows the C export: None for other budgets.

    Where the model has no C export, the limits are None, too, and a note says why.
    """
    if not _for_microcontroller(budget, options):
        return None, ()
    try:
        return Limits.of(graph, budget), ()
    except ExportError as error:
        return None, (f"peak_memory and flash are met by the closed form alone, as the model has no C export: {error}",)


def _for_microcontroller(budget: Budget, options: Options) -> bool:
    """Return whether a budget is for the C export: INT8 with peak memory and, beside it, flash or widths for Cortex-M."""
    return (
        budget.peak_memory is not None
        and budget.precision == "int8"
        and (budget.flash is not None or options.round_to == "cortex-m")
        and options.on_conflict != "rebuild"
    )


def meet_arena(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], budget: Budget, *, tolerance: float = 0.05, rounds: int = 10,
    **options: Any,
) -> Placed:  # fmt: skip
    """Plan and cut until the arena of the C export is at most `budget.peak_memory`, and within `tolerance` of it.

    A budget of `peak_memory` at int8 is met by a closed form, an upper bound of one to three times the arena. This function
    places the activations of each cut model as the export does, and so uses what the closed form leaves free. `prune` does the
    same where the budget has flash, too, or where `round_to="cortex-m"`.

    Args:
        graph, scores: as for `plan`.
        budget: has `peak_memory` and `precision="int8"`; a percentage is of the original model's arena. With `flash`, the
            constants of each cut model are counted as well.
        tolerance: how far below the target the arena (or the constants) may be, as a fraction of the target.
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
    return placed(graph, scores, budget, Limits.of(graph, budget), Options(**options), tolerance, rounds)


def placed(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], budget: Budget, limits: Limits, options: Options,
    tolerance: float = 0.05, rounds: int = 10,
) -> Placed:  # fmt: skip
    """Do the work of `meet_arena`, with the options of planning as one value."""
    call = graph.calls[0]
    search, goal = _Search(limits.arena, parse("peak_memory", limits.budget.peak_memory or 1, 1.0)), limits.budget
    best: tuple[Plan, nn.Module, Footprint] | None = None
    for _ in range(rounds):
        goal = replace(goal, peak_memory=search.limit)
        try:
            tried = planned(graph, scores, goal, options)
        except BudgetError:
            if best is None:
                raise
            break
        small = cut(graph.model, tried)
        found = footprint(small, (call.args, call.kwargs))
        if limits.fit(found):
            if best is None or limits.used(found) > limits.used(best[2]):
                best = (tried, small, found)
            if limits.used(found) >= 1 - tolerance:
                break
        if found.flash > limits.flash:
            goal = replace(goal, flash=_BELOW * (tried.cost.flash or 0) * limits.flash / found.flash)
        more = search.next(tried.cost.peak_memory, found.arena)
        if not more and found.flash <= limits.flash:
            break
    if best is None:
        _raise_unmet(budget, limits, [arena for _, arena in search.rounds])
    assert best is not None
    plan, small, found = best
    return Placed(
        replace(plan, notes=(*plan.notes, *_notes(limits, found, tolerance))), small, found, limits.arena, limits.original,
        tuple(search.rounds),
    )  # fmt: skip


def _raise_unmet(budget: Budget, limits: Limits, arenas: list[int]) -> None:
    asked = f"peak_memory={budget.peak_memory!r}" + ("" if budget.flash is None else f", flash={budget.flash!r}")
    allowed = f"{limits.arena:,.0f}" + ("" if budget.flash is None else f", with {limits.flash:,.0f} of constants,")
    raise BudgetError(
        f"{asked}: the smallest arena of {len(arenas)} plans is {min(arenas, default=limits.original.arena):,} bytes, and "
        f"{allowed} are allowed: raise the budget, or rounds"
    )


def _notes(limits: Limits, found: Footprint, tolerance: float) -> list[str]:
    """Return what the export of a cut model takes, beside what is allowed."""
    notes = [
        f"arena of the C export: {found.arena:,} bytes, {limits.arena:,.0f} allowed; with CMSIS-NN's working memory "
        f"{found.arena_cmsis:,}, on cores with vector extension {found.arena_vector:,}",
        f"constants of the C export: {found.flash:,} bytes"
        + (f", {limits.flash:,.0f} allowed" if math.isfinite(limits.flash) else ""),
    ]
    if limits.used(found) < 1 - tolerance:
        notes.append(f"no plan used more than {limits.used(found):.0%} of the arena or the constants that are allowed")
    return notes


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
