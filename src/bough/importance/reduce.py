"""Saliency is elementwise; types say which unit each element belongs to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.graph import Graph
from bough.spaces import Atom, Space, coordinates, normal

_CHUNK = 1 << 24  # elements turned to float at a time

Reduce = Callable[[Tensor, int], Tensor]
"""(tensor, dim) -> its saliency summed over all other dims: float [size of dim]."""


def elementwise(saliency: Callable[[Tensor], Tensor]) -> Reduce:
    """A `Reduce` from a saliency that maps a tensor to one of the same shape; in chunks, so memory stays small."""

    def reduce(tensor: Tensor, dim: int) -> Tensor:
        rows = max(1, _CHUNK * len(tensor) // max(tensor.numel(), 1))
        sums = []
        for part in tensor.split(rows):
            values = saliency(part)
            others = [d for d in range(values.dim()) if d != dim]
            sums.append(values.sum(others) if others else values)
        return torch.cat(sums) if dim == 0 else torch.stack(sums).sum(0)

    return reduce


@torch.no_grad()
def per_unit(graph: Graph, reduce: Reduce, *, inputs: bool) -> dict[str, NDArray[np.float64]]:
    """Adds a saliency up over each group's members: {group: float64 [units]}.

    And of groups whose units may differ for each unit of another: {its `Ragged.scores`: float64 [units of it, units]}.

    Args:
        graph: of the model.
        reduce: gives the saliency of a parameter along one dim.
        inputs: whether members that consume the units (dim 1 and later of a weight) count too.
    """
    totals = {g.atom: np.zeros(g.size) for g in graph.groups}
    each = _Each(graph)
    done: set[tuple[str, int]] = set()
    for group in graph.groups:
        for m in group.members:
            if (m.name, m.dim) not in done and graph.states[m.name].parameter and (inputs or m.dim == 0):
                done.add((m.name, m.dim))
                values = reduce(graph.tensor(m.name).detach(), m.dim).double().cpu().numpy()
                _add(totals, graph.states[m.name].axes[m.dim], values)
                each.add(graph.states[m.name].axes[m.dim], values)
    return {**{g.name: totals[g.atom] for g in graph.groups}, **each.totals}


def _add(totals: dict[Atom, NDArray[np.float64]], space: Space, values: NDArray[np.float64]) -> None:
    for atom in normal(space).atoms:
        if atom in totals:
            for units in coordinates(space, atom):
                there = units >= 0
                totals[atom] += np.bincount(units[there], weights=values[there], minlength=atom.size)


class _Each:
    """Sums per unit of a group for each unit of another, where they may differ."""

    def __init__(self, graph: Graph) -> None:
        atoms = {g.name: g.atom for g in graph.groups}
        pairs = [(atoms[r.group], atoms[r.over], r.scores) for r in graph.ragged if r.reason is None]
        self._over = {atom: (over, key) for atom, over, key in pairs}
        self.totals = {key: np.zeros((over.size, atom.size)) for atom, over, key in pairs}

    def add(self, space: Space, values: NDArray[np.float64]) -> None:
        for atom in normal(space).atoms:
            if atom in self._over:
                over, key = self._over[atom]
                units, others = coordinates(space, atom)[0], coordinates(space, over)[0]  # each unit has one other
                there = units >= 0
                np.add.at(self.totals[key], (others[there], units[there]), values[there])
