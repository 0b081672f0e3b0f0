"""Meets a latency as measured: plan, cut, measure, correct the table, plan again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.arguments import check_arguments
from bough.cost import shown
from bough.cutting import cut
from bough.errors import BudgetError
from bough.graph import Graph
from bough.latency import LatencyTable
from bough.measuring import device_name, latency
from bough.planning import Budget, Options, Plan, planned
from bough.planning.budget import Goal
from bough.targeting.latency_search import Search

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class Timed:
    """A model cut to a latency.

    Attributes:
        plan, model: the plan that was chosen, and the model cut by it.
        seconds: the measured latency.
        target: the requested latency in seconds.
        met: whether `seconds` is at most `target`, and within the tolerance of it or lower because of another limit.
        rounds: (predicted seconds, measured seconds) of each plan that was tried.
        table: the table with its scale corrected.
    """

    plan: Plan
    model: nn.Module
    seconds: float
    target: float
    met: bool
    rounds: tuple[tuple[float, float], ...]
    table: LatencyTable


def meet_latency(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], budget: Budget, table: LatencyTable, *,
    measure: Measure | None = None, tolerance: float = 0.05, rounds: int = 20, **options: Any,
) -> Timed:  # fmt: skip
    """Plan, cut and measure until the latency of the cut model is at most `budget.latency` and within `tolerance` of it.

    Args:
        graph, scores: as for `plan`.
        budget: has a limit on latency; a percentage is of the measured latency of the original model.
        table: of the device and backend that `measure` uses.
        measure: returns the seconds of a model. By default the median of 30 passes on the machine at hand, with the
            table's backend and the graph's inputs; pass a function of your own to measure on another device.
        tolerance: how far below the target the latency may be, as a fraction of the target.
        rounds: maximum number of plans that are tried.
        options: as for `plan`.

    Raises:
        BudgetError: the budget has no latency, no plan reaches it, or all plans that were tried are slower than it.

    Example:
        >>> import math, torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).eval()
        >>> graph = bough.trace(net, torch.randn(32, 64))
        >>> times = {}
        >>> for key, widths in bough.latency.required_points(graph):  # the table of a device, by a formula
        ...     times.setdefault(key, {})[widths] = 1e-9 * math.prod(widths)
        >>> table = bough.LatencyTable("a chip", "its compiler", 8, 0.0, 0.0, times)
        >>> def measure(small):  # stands for a run on the device
        ...     return 1e-9 * sum(p.numel() for p in small.parameters())
        >>> timed = bough.meet_latency(graph, bough.score(graph, "l2"), bough.Budget(latency="60%"), table, measure=measure)
        >>> timed.seconds <= 0.6 * measure(net)
        True
    """
    check_arguments(meet_latency, locals())
    return targeted(graph, scores, budget, table, Options(**options), measure, tolerance, rounds)


def targeted(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], budget: Budget, table: LatencyTable, options: Options,
    measure: Measure | None = None, tolerance: float = 0.05, rounds: int = 20,
) -> Timed:  # fmt: skip
    """Do the work of `meet_latency`, with the options of planning as one value."""
    if budget.latency is None:
        raise BudgetError("meet_latency needs a budget of latency, such as Budget(latency='3 ms')")
    if rounds < 1 or not 0 <= tolerance < 1:
        raise BudgetError(f"rounds={rounds}, tolerance={tolerance}: rounds must be at least 1, tolerance from 0 to below 1")
    measured = measure or (lambda model: latency(model, graph.calls, backend=table.backend).median)
    original = measured(graph.model)
    target = budget.limits(replace(graph.cost(), latency=original))["latency"]
    search = Search(budget, target, tolerance, table.scaled(original / float(table.seconds(graph)[0])))
    best: Timed | None = None
    while len(search.rounds) < rounds and (goal := search.next()) is not None:
        try:
            found = planned(graph, scores, goal, replace(options, table=search.table))
        except BudgetError:
            if not search.rounds:
                raise
            search.limits.unreachable()
            continue
        if search.known(found):
            continue
        small = cut(graph.model, found)
        seconds = measured(small)
        if search.settles(seconds):  # once more, so that it was no lucky moment
            seconds = (seconds + measured(small)) / 2
        search.learn(found, seconds)
        if seconds <= target and (search.settles(seconds) or best is None or seconds > best.seconds):
            met = seconds >= target * (1 - tolerance)
            note = f"latency: measured {shown('latency', seconds)}, asked {shown('latency', target)}"
            noted = replace(found, notes=(*found.notes, note + ("" if met else f"; no plan was within {tolerance:.0%}")))
            best = Timed(noted, small, seconds, target, met, (), search.table)
        if search.settles(seconds):
            break
        if seconds <= target and _limited_by_others(found, goal, tolerance):
            note = f"latency: measured {shown('latency', seconds)}, asked {shown('latency', target)}; another bound decides"
            best = Timed(replace(found, notes=(*found.notes, note)), small, seconds, target, True, (), search.table)
            break
    if best is None:
        closest = min(m for _, m in search.rounds)
        raise BudgetError(
            f"latency={budget.latency!r}: no plan of {len(search.rounds)} was measured below {shown('latency', target)}, "
            f"the closest took {shown('latency', closest)}: raise the budget or rounds, or measure on a quieter machine"
        )
    return replace(best, rounds=tuple(search.rounds), table=search.table)


def _limited_by_others(found: Plan, goal: Goal, tolerance: float) -> bool:
    """Return whether a plan is far below its latency limit because another limit of the budget is nearly reached."""
    if not isinstance(goal, Budget):
        return False
    costs, near = found.cost.to_dict(), 1 - tolerance
    ratios = {field: costs[field] / limit for field, limit in goal.limits(found.original).items()}
    return bool(ratios.pop("latency") < near <= max(ratios.values(), default=0.0))


def of_this_machine(table: LatencyTable, graph: Graph) -> bool:
    """Return whether a table was measured on this machine, with the device and precision of the graph's model."""
    tensor = next((graph.tensor(n) for n, s in graph.states.items() if s.parameter), None)
    return tensor is not None and table.device == device_name(tensor.device, tensor.dtype)
