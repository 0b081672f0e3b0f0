"""Which widths of a model's groups are elastic: decided by the same rules as a plan, and checked at the smallest subnet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bough.errors import ConflictError, PlanError
from bough.graph import Graph
from bough.planning.alignment import aligned
from bough.planning.allocation import Allowed
from bough.planning.constraints.equations import ties
from bough.planning.depth import left_out
from bough.planning.named import by_group, least
from bough.planning.options import Options
from bough.planning.planner import planned
from bough.supernet.ordering import Scores
from bough.supernet.space import ElasticWidth, SubnetSpace, elastic_layers

_ROUNDS = 64  # plans at the smallest widths, each of which refuses a width or holds a group


def subnet_space(
    graph: Graph, scores: Scores, *, round_to: int | str, minimum: float | Mapping[Any, float], depth: bool | Iterable[str]
) -> tuple[SubnetSpace, dict[str, str], Allowed]:
    """Return (the subnets of a graph, {group or layer that is not elastic: reason}, the widths allowed).

    The smallest widths are planned, so the model's Python is run at them; groups that it contradicts there are not elastic.

    Args:
        graph: of the ordered model.
        scores: of its units, the first unit the highest.
        round_to, minimum: as for `plan`.
        depth: see `elastic_layers`.

    Raises:
        PlanError: nothing is elastic, or an option that fits no group or layer.
        ConflictError: the model does not run without the elastic layers.
    """
    allowed = widths_allowed(graph, round_to, minimum)
    depths, needed = runnable(graph, elastic_layers(graph, depth), required=not isinstance(depth, bool))
    allowed, frozen = _agreed(graph, scores, allowed)
    widths = _widths(graph, frozen, allowed)
    if not widths and not depths:
        reasons = "; ".join(f"{n}: {why}" for n, why in frozen.items()) or "no group has another width"
        raise PlanError(
            f"{type(graph.model).__name__} has nothing elastic: {reasons}. Lower minimum or round_to, or give depth"
        )
    return SubnetSpace(graph, widths, depths), {**frozen, **needed}, allowed


def _agreed(graph: Graph, scores: Scores, allowed: Allowed) -> tuple[Allowed, dict[str, str]]:
    """Plan at the smallest widths until the model's Python agrees with them: widths that it contradicts are not allowed."""
    frozen = dict(ties(graph, {}).frozen)
    for _ in range(_ROUNDS):
        smallest = {n: int(w.counts[-1][i]) for w in _widths(graph, frozen, allowed) for i, n in enumerate(w.groups)}
        plan = planned(graph, scores, smallest, Options()) if smallest else None
        other = {n: k for n, k in smallest.items() if plan is not None and plan.groups[n][0] != k}
        if plan is None or not other:
            break
        frozen |= {n: plan.frozen[n] for n in other if n in plan.frozen}
        refused = {n: frozenset({k}) | allowed.refused.get(n, frozenset()) for n, k in other.items() if n not in plan.frozen}
        allowed = replace(allowed, refused={**allowed.refused, **refused})
    return allowed, frozen


def runnable(
    graph: Graph, depths: tuple[tuple[str, ...], ...], *, required: bool
) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    """Return (the lists without the layers that the model does not run without, {such a layer: reason}).

    Args:
        graph: of the model.
        depths: lists of layers; all of them may be left out together.
        required: raise where the model does not run without them, instead of keeping layers.

    Raises:
        ConflictError: it does not, and they are required.
    """

    def leave_out(names: Iterable[str]) -> None:
        left_out(graph, [x for x in graph.layers if x.name in names])

    every = SubnetSpace(graph, (), depths).layers
    try:
        leave_out(every)
    except ConflictError:
        if required:
            raise
    else:
        return depths, {}
    gone: list[str] = []
    needed: dict[str, str] = {}
    for name in every:
        try:
            leave_out([*gone, name])
            gone.append(name)
        except ConflictError as error:
            needed[name] = str(error)
    lists = (tuple(n for n in names if n in gone) for names in depths)
    return tuple(names for names in lists if names), needed


def widths_allowed(graph: Graph, round_to: int | str, minimum: float | Mapping[Any, float]) -> Allowed:
    """Return the widths that the options `round_to` and `minimum` of `plan` allow.

    Raises:
        PlanError: an option that is out of range, or that fits no group.
    """
    multiple = Options(round_to=round_to).round_to
    lowest = least(graph.groups, by_group(graph, minimum, "minimum") if isinstance(minimum, Mapping) else minimum)
    return Allowed(aligned(multiple), lowest)


def _widths(graph: Graph, frozen: Mapping[str, str], allowed: Allowed) -> tuple[ElasticWidth, ...]:
    by_name = {g.name: g for g in graph.groups}
    found = []
    for classes in ties(graph, frozen).classes:
        counts = allowed.widths([by_name[n] for n in classes])
        if len(counts) > 1:
            found.append(ElasticWidth(classes, counts))
    return tuple(found)
