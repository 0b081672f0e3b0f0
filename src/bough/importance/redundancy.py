"""Criteria that ask which units are like others: weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.graph import Graph, Group
from bough.importance.reduce import members
from bough.importance.score import UnitScores
from bough.spaces import normal, unit_positions


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """Distance to the other units: I_u = sum over v of ||W_u - W_v||_2, W_u all that makes unit u (FPGM, He et al., 2019).

    A unit near the geometric median of its group can be replaced by the others. Time and memory grow with units squared.
    """

    def __call__(self, graph: Graph) -> UnitScores:
        return {g.name: _distances(_gram(graph, g)).sum(1) for g in graph.groups}


@dataclass(frozen=True, slots=True)
class CosineRedundancy:
    """Unlikeness to the other units: I_u = 1 - mean over v != u of cos(W_u, W_v), W_u all that makes unit u (OTO)."""

    def __call__(self, graph: Graph) -> UnitScores:
        return {g.name: _unlikeness(_gram(graph, g)) for g in graph.groups}


def unit_vectors(graph: Graph, group: Group) -> list[Tensor]:
    """[units, elements] for each place at which a parameter makes the group's units."""
    found = []
    own = {(m.name, m.dim) for m in group.members}
    for name, dim in members(graph, inputs=False):
        if (name, dim) in own:
            index = torch.from_numpy(unit_positions(normal(graph.states[name].axes[dim]), group.atom))
            rows = graph.tensor(name).detach().movedim(dim, 0)
            found.append(rows[index.to(rows.device)].reshape(group.size, -1))
    return found


@torch.no_grad()
def _gram(graph: Graph, group: Group) -> NDArray[np.float64]:
    """[units, units]: inner products of what makes the units."""
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for vectors in unit_vectors(graph, group):
        wide = vectors.double()
        total += (wide @ wide.mT).cpu()
    return total.numpy()


def _distances(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.diag(gram)
    result: NDArray[np.float64] = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))
    np.fill_diagonal(result, 0.0)
    return result


def _unlikeness(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.sqrt(np.diag(gram))
    cosines = gram / np.maximum(norms[:, None] * norms[None, :], np.finfo(np.float64).tiny)
    np.fill_diagonal(cosines, 0.0)
    result: NDArray[np.float64] = 1 - cosines.sum(1) / (len(gram) - 1)
    return result
