"""Build the search space of a traced model: the widths that plans may have, by the rules of `plan`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.cost.prices import Prices
from bough.errors import PlanError, instead
from bough.graph import Graph
from bough.planning import Budget, Options, planned
from bough.planning.alignment import aligned
from bough.planning.allocation import Allowed, Column, columns
from bough.planning.budget import LeastOfTied
from bough.planning.constraints.equations import ties
from bough.planning.depth import chosen, left_out
from bough.planning.named import by_group, groups_left_whole, least
from bough.planning.ragged import differing
from bough.searching.pricing import Pricing
from bough.searching.space import SearchSpace
from bough.supernet import Supernet
from bough.tracing.selection import left_alone

Scores = Mapping[str, NDArray[np.float64]]


def search_space(
    graph: Graph, scores: Scores, options: Options, *, budget: Budget | None = None, prices: Prices | None = None,
    layers: Iterable[str] = (), errors: bool = False,
) -> tuple[SearchSpace, dict[str, str]]:  # fmt: skip
    """Return (the space of plans of a graph, {group that no plan of it cuts: reason}).

    The plan of the smallest widths is made once, so the model's Python is run at them: groups that it contradicts there keep
    all units, and widths that it refuses there are left out of the space.

    Args:
        graph: of the traced model.
        scores: one array [units] per group.
        options: of planning; `allocation` is not used, and the layers in `drop` are left out of every plan.
        budget: upper bounds that all candidates meet.
        prices: the costs that are known besides parameters, MACs and bytes.
        layers: names or patterns of layers that a plan may leave out.
        errors: whether the scores are errors, as for allocation "error".

    Raises:
        BudgetError: not even the smallest plan meets the budget.
        PlanError: an unknown name, or nothing to choose.
        ConflictError: the model does not run without one of `layers`.

    Example:
        >>> import torch, bough
        >>> from bough.planning import Options
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> space, frozen = search_space(graph, bough.score(graph, "l2"), Options())
        >>> space.names, frozen
        (['0'], {})
    """
    always = tuple(x.name for x in chosen(graph, options.drop, {}, scores))
    rest = left_out(graph, chosen(graph, always, {}, scores))
    optional = optional_layers(graph, layers, always)
    for name in optional:
        left_out(graph, chosen(graph, (*always, name), {}, scores))
    minimum = by_group(graph, options.minimum, "minimum") if isinstance(options.minimum, Mapping) else options.minimum
    allowed = Allowed(aligned(options.round_to), least(graph.groups, minimum))
    stay = groups_left_whole(rest, left_alone(rest, options.ignore, options.only), options.exact_only)
    by_name = {g.name: g for g in rest.groups}
    ranked = differing(rest, scores, options.ragged).ranked(scores)

    def columns_of(stay: Mapping[str, str]) -> list[Column]:
        return columns([[by_name[n] for n in names] for names in ties(rest, stay).classes], ranked, allowed)

    agreed, stay = _agreed(graph, scores, replace(options, drop=always), columns_of, stay)
    found = [c for c in agreed if c.steps]
    if not found and not optional:
        reasons = "; ".join(f"{n}: {why}" for n, why in stay.items()) or "no group has another width"
        raise PlanError(f"there is nothing to search: {reasons}. Lower minimum or round_to, or give layers")
    pricing = Pricing(graph, prices or Prices())
    limits = budget.limits(pricing.original) if budget is not None else {}
    sizes = {g.name: g.size for g in graph.groups}
    return SearchSpace(pricing, found, sizes, [[name] for name in optional], always, limits, errors), stay


def subnet_space(net: Supernet, *, budget: Budget | None = None, prices: Prices | None = None) -> SearchSpace:
    """Return the space of the subnets of a supernet, whose layers are left out in the order in which they were in training.

    Args:
        net: whose subnets are searched.
        budget: upper bounds that all candidates meet.
        prices: the costs that are known besides parameters, MACs and bytes.

    Raises:
        BudgetError: not even the smallest subnet meets the budget.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> subnet_space(bough.supernet(net, torch.randn(1, 4))).names
        ['0']
    """
    by_name = {g.name: g for g in net.graph.groups}
    found = [columns([[by_name[n] for n in width.groups]], net.scores, net.allowed)[0] for width in net.space.widths]
    pricing = Pricing(net.graph, prices or Prices())
    limits = budget.limits(pricing.original) if budget is not None else {}
    sizes = {g.name: g.size for g in net.graph.groups}
    return SearchSpace(pricing, found, sizes, net.space.depths, (), limits)


def optional_layers(graph: Graph, given: Iterable[str], always: Sequence[str]) -> list[str]:
    """Return the names of layers that names and patterns fit, those in `always` excepted.

    Raises:
        PlanError: a name or pattern fits no layer that can be left out.
    """
    names = [x.name for x in graph.layers]
    found: list[str] = []
    for pattern in (given,) if isinstance(given, str) else given:
        fit = [n for n in names if n == pattern or fnmatchcase(n, pattern)]
        if not fit:
            raise PlanError(f"layers: {pattern!r} is no layer that can be left out; {instead(pattern, names)}")
        found += [n for n in fit if n not in found and n not in always]
    return found


def _agreed(
    graph: Graph,
    scores: Scores,
    options: Options,
    columns_of: Callable[[Mapping[str, str]], list[Column]],
    stay: dict[str, str],
) -> tuple[list[Column], dict[str, str]]:
    """Return (the widths that the model's Python agrees with, {group that keeps all units: reason}).

    Plans are made at the smallest widths, and where these are contradicted, once more at the widths in the middle.
    """
    lowest = _lowest(columns_of(stay), ())
    if not lowest:
        return [], stay
    plan = planned(graph, scores, LeastOfTied(lowest), options)
    contradicted = plan.frozen.keys() & lowest.keys()
    if contradicted:
        lowest = _lowest(columns_of(stay), contradicted)
        plan = planned(graph, scores, LeastOfTied(lowest), options)
        stay = {**stay, **{n: why for n, why in plan.frozen.items() if n in lowest}}
    return [_above(c, plan.groups) for c in columns_of(stay)], stay


def _lowest(found: Sequence[Column], contradicted: Collection[str]) -> dict[str, int]:
    """Return the smallest counts of all groups, and of those that are contradicted there the counts in the middle."""
    rows = [len(c.counts) // 2 if any(g.name in contradicted for g in c.groups) else -1 for c in found]
    return {g.name: int(n) for c, row in zip(found, rows, strict=True) for g, n in zip(c.groups, c.counts[row], strict=True)}


def _above(column: Column, groups: Mapping[str, Any]) -> Column:
    """Return a column without the widths below those of a plan."""
    lowest = np.array([groups[g.name][0] for g in column.groups])
    rows = int((column.counts >= lowest).all(axis=1).sum())
    return replace(column, counts=column.counts[:rows], drops=column.drops[: rows - 1], highest=column.highest[: rows - 1])
