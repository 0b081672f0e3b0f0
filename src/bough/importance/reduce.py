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


def per_unit(graph: Graph, saliency: Callable[[Tensor], Tensor], *, inputs: bool) -> dict[str, NDArray[np.float64]]:
    """Adds an elementwise saliency up over each group's members: {group: float64 [units]}.

    Args:
        graph: of the model.
        saliency: tensor -> tensor of the same shape.
        inputs: whether members that consume the units (dim 1 and later of a weight) count too.
    """
    wanted: dict[str, set[int]] = {}
    for group in graph.groups:
        for m in group.members:
            if graph.states[m.name].parameter and (inputs or m.dim == 0):
                wanted.setdefault(m.name, set()).add(m.dim)
    totals = {g.atom: np.zeros(g.size) for g in graph.groups}
    for name, dims in wanted.items():
        sums = _sums(graph.tensor(name), saliency, dims)
        for dim, values in sums.items():
            _add(totals, graph.states[name].axes[dim], values)
    return {g.name: totals[g.atom] for g in graph.groups}


@torch.no_grad()
def _sums(tensor: Tensor, saliency: Callable[[Tensor], Tensor], dims: set[int]) -> dict[int, NDArray[np.float64]]:
    """The saliency summed over all dims but one, for each of `dims`; in chunks of dim 0, so memory stays small."""
    rows = max(1, _CHUNK // max(tensor[0].numel(), 1)) if tensor.dim() else 1
    result: dict[int, NDArray[np.float64]] = {}
    for part in tensor.detach().split(rows) if tensor.dim() else (tensor.detach(),):
        values = saliency(part)
        matrix = values.reshape(values.shape[0], -1) if values.dim() > 1 else values
        for dim in dims:
            others = [d for d in range(values.dim()) if d != dim]
            piece = matrix.sum(1) if dim == 0 and values.dim() > 1 else values.sum(others) if others else values
            array = piece.double().cpu().numpy()
            if dim == 0:
                result[0] = np.concatenate([result[0], array]) if 0 in result else array
            else:
                result[dim] = result.get(dim, 0.0) + array
    return result


def _add(totals: dict[Atom, NDArray[np.float64]], space: Space, values: NDArray[np.float64]) -> None:
    for atom in normal(space).atoms:
        if atom in totals:
            for units in coordinates(space, atom):
                there = units >= 0
                totals[atom] += np.bincount(units[there], weights=values[there], minlength=atom.size)
