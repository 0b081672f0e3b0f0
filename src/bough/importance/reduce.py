"""Saliency is elementwise; types say which unit each element belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.graph import Graph
from bough.importance.finite import check_finite
from bough.spaces import Space, coordinates, normal, unit_sums
from bough.tracing.contractions import consumed

_CHUNK = 1 << 18  # elements at a time: 1 MB of float32, which stays in the processor's cache

Reduce = Callable[[Tensor, int], Tensor]
"""(tensor, dim) -> its saliency summed over all other dims: float [size of dim]."""


def in_parts(reduce: Reduce) -> Reduce:
    """The same `Reduce`, of one part of a large tensor after the other, so that memory stays small."""

    def reduced(tensor: Tensor, dim: int) -> Tensor:
        rows = max(1, _CHUNK * len(tensor) // max(tensor.numel(), 1))
        sums = [reduce(part, dim) for part in tensor.split(rows)]
        return torch.cat(sums) if dim == 0 else torch.stack(sums).sum(0)

    return reduced


def elementwise(saliency: Callable[[Tensor], Tensor]) -> Reduce:
    """A `Reduce` from a saliency that maps a tensor to one of the same shape."""
    return in_parts(lambda tensor, dim: summed(saliency(tensor), dim))


def summed(values: Tensor, dim: int) -> Tensor:
    """Return the sum of `values` over all dims but `dim`: [size of dim].

    The leading dims are summed first, which adds whole contiguous rows: torch is several times slower on all at once.
    """
    if dim:
        values = values.sum(tuple(range(dim)))
    return values.sum(tuple(range(1, values.dim()))) if values.dim() > 1 else values


@torch.no_grad()
def per_unit(
    graph: Graph,
    reduce: Reduce,
    *,
    inputs: bool,
    outputs: bool = True,
    tensors: Mapping[str, Tensor] | None = None,
    each: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Adds a saliency up over each group's members: {group: float64 [units]}.

    And of groups whose units may differ for each unit of another: {its `Ragged.scores`: float64 [units of it, units]}.

    Args:
        graph: of the model.
        reduce: gives the saliency of a parameter along one dim.
        inputs: whether members that read the units (the weights of consumers) count too.
        outputs: whether members that make the units count.
        tensors: what to reduce in place of the parameters, by their names; those without an entry do not count.
        each: applied to each member's sums per unit before they are added.

    Raises:
        PlanError: a sum is not finite because a parameter holds NaN or infinity.
    """
    totals = {g.atom: np.zeros(g.size) for g in graph.groups}
    others = _Each(graph)
    for name, dim in members(graph, inputs=inputs, outputs=outputs):
        tensor = graph.tensor(name).detach() if tensors is None else tensors.get(name)
        if tensor is None:
            continue
        values = reduce(tensor, dim).double().cpu().numpy()
        if tensors is None and not np.isfinite(values).all():
            check_finite(name, tensor)
        space = normal(graph.states[name].axes[dim])
        for atom in space.atoms:
            if atom in totals:
                sums = unit_sums(space, atom, values)
                totals[atom] += sums if each is None else each(sums)
        if each is None:
            others.add(space, values)
    return {**{g.name: totals[g.atom] for g in graph.groups}, **(others.totals if each is None else {})}


def members(graph: Graph, *, inputs: bool, outputs: bool = True) -> list[tuple[str, int]]:
    """The (parameter, dim)s of all groups, each once: those that read units (`inputs`), those that make them (`outputs`)."""
    read = consumed(graph)
    every = dict.fromkeys((m.name, m.dim) for g in graph.groups for m in g.members if graph.states[m.name].parameter)
    return [place for place in every if (inputs if place in read else outputs)]


class _Each:
    """Sums per unit of a group for each unit of another, where they may differ."""

    def __init__(self, graph: Graph) -> None:
        atoms = {g.name: g.atom for g in graph.groups}
        pairs = [(atoms[r.group], atoms[r.over], r.scores) for r in graph.ragged if r.reason is None]
        self._over = {atom: (over, key) for atom, over, key in pairs}
        self.totals = {key: np.zeros((over.size, atom.size)) for atom, over, key in pairs}

    def add(self, space: Space, values: NDArray[np.float64]) -> None:
        for atom in space.atoms:
            if atom in self._over:
                over, key = self._over[atom]
                units, others = coordinates(space, atom)[0], coordinates(space, over)[0]  # each unit has one other
                there = units >= 0
                np.add.at(self.totals[key], (others[there], units[there]), values[there])
