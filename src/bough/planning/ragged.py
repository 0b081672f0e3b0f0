"""Ragged cuts: units that are other ones for each unit of another group, such as every head's own head dims.

Each unit of the other group keeps as many, so what is cut stays an ordinary dense module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bough.errors import PlanError
from bough.graph import Graph
from bough.planning.plan import Plan
from bough.spaces import Atom, Each, Kept

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Differing:
    """The groups of a graph whose units are to differ: `each[name]` is (the other group, scores [its units, own units]).

    `alike` says, of the groups that another one leads, why their units are the same for all.
    """

    each: dict[str, tuple[str, NDArray[np.float64]]]
    alike: dict[str, str]

    def ranked(self, scores: Scores) -> Scores:
        """The scores that tell what it costs to go down to a count: the n-th lowest of each unit of the other group goes."""
        return {**scores, **{name: np.sort(own, axis=1).mean(0) for name, (_, own) in self.each.items()}}

    def chosen(self, graph: Graph, counts: Mapping[str, int]) -> dict[Atom, Kept]:
        """Of each group that is cut, the units with the highest scores for each unit of the other, ascending."""
        atoms = {g.name: g.atom for g in graph.groups}
        kept: dict[Atom, Kept] = {}
        for name, (over, own) in self.each.items():
            if counts[name] < own.shape[1]:
                best = np.sort(np.argsort(-own, axis=1, kind="stable")[:, : counts[name]], axis=1)
                kept[atoms[name]] = Each(atoms[over], best.astype(np.int64))
        return kept

    def noted(self, plan: Plan) -> Plan:
        """`plan`, which was made by `chosen`, with what it says about the groups that it cuts."""
        cut = {name for name, (after, before) in plan.groups.items() if after < before}
        done = {name: over for name, (over, _) in self.each.items() if name in cut}
        return replace(plan, ragged=done, alike={name: why for name, why in self.alike.items() if name in cut})


def differing(graph: Graph, scores: Scores, wanted: bool) -> Differing:
    """What may differ in `graph`, by its types and by the scores there are; nothing unless `wanted`.

    Raises:
        PlanError: scores of a wrong shape.
    """
    sizes = {g.name: g.size for g in graph.groups}
    each: dict[str, tuple[str, NDArray[np.float64]]] = {}
    alike: dict[str, str] = {}
    for r in graph.ragged if wanted else ():
        if r.group not in sizes or r.over not in sizes:
            continue
        if r.reason is not None:
            alike[r.group] = r.reason
        elif r.scores not in scores:
            alike[r.group] = f"there are no scores {r.scores!r} for each of {r.over}"
        else:
            own = np.asarray(scores[r.scores], dtype=np.float64)
            if own.shape != (sizes[r.over], sizes[r.group]):
                raise PlanError(
                    f"scores[{r.scores!r}] has shape {own.shape}, and must have {(sizes[r.over], sizes[r.group])}: one row for "
                    f"each unit of {r.over}"
                )
            each[r.group] = (r.over, own)
    return Differing(each, alike)
