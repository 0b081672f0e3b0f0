"""Reorder the units of groups by importance, without changing what the model computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.cutting.cut import copied
from bough.cutting.slicing import Slicer
from bough.errors import PlanError
from bough.graph import Graph
from bough.planning.allocation import unit_scores
from bough.planning.plan import Plan
from bough.spaces import Atom, indices

Scores = Mapping[str, NDArray[np.float64]]


def importance_order(graph: Graph, scores: Scores) -> dict[str, NDArray[np.int64]]:
    """Return the order of each group's units, {group: int64 [units]}: the highest score first, equal scores as they are.

    Raises:
        PlanError: scores that are missing, of a wrong shape, or not finite.
    """
    return {g.name: np.argsort(-unit_scores(scores, g), kind="stable").astype(np.int64) for g in graph.groups}


def scores_of(graph: Graph, given: Scores) -> dict[str, NDArray[np.float64]]:
    """Return scores of all groups of a graph: those given, and ones for groups that stay whole."""
    return {g.name: np.array(given[g.name], dtype=np.float64) if g.name in given else np.ones(g.size) for g in graph.groups}


def order_units(model: nn.Module, graph: Graph, order: Mapping[str, NDArray[np.int64]]) -> nn.Module:
    """Return a copy of a model whose units are in another order; the copy computes the same function.

    The parameters and buffers of a group are indexed by its permutation along every dim where the group occurs, as a cut
    indexes them by the units kept.

    Args:
        model: stays as it is.
        graph: of the model.
        order: {group: permutation of its units}, of groups that a plan can cut; other groups stay as they are. Units that the
            model's Python addresses by index, such as experts in a list, must keep their places.

    Raises:
        PlanError: an entry is not a permutation of its group's units, or the model can not be copied.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> x = torch.randn(5, 4)
        >>> turned = order_units(net, bough.trace(net, x), {"0": np.array([2, 0, 1])})
        >>> torch.allclose(turned(x), net(x), atol=1e-6), torch.equal(turned[0].weight, net[0].weight[[2, 0, 1]])
        (True, True)
    """
    atoms: dict[Atom, NDArray[np.int64]] = {}
    for g in graph.groups:
        if g.name in order:
            if sorted(np.asarray(order[g.name]).tolist()) != list(range(g.size)):
                raise PlanError(f"order[{g.name!r}] must be a permutation of the group's {g.size} units")
            atoms[g.atom] = np.asarray(order[g.name], dtype=np.int64)
    places = {(m.name, m.dim) for g in graph.groups if g.name in order for m in g.members}
    kept: dict[str, dict[int, list[int]]] = {}
    for name, dim in sorted(places):
        kept.setdefault(name, {})[dim] = indices(graph.states[name].axes[dim], atoms).tolist()
    cost = graph.cost()
    slicer = Slicer(Plan(graph.fingerprint, kept, {}, {}, (), (), {}, cost, cost))
    return copied(model, lambda name, tensor, _: slicer(name, tensor, fresh=True))[0]
