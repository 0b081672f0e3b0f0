"""Criteria from the similarity of units of a group, by their weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.graph import Graph, Group
from bough.importance.protocols import UnitScores
from bough.importance.reduce import group_members
from bough.spaces import normal, unit_positions


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """Distance to the other units: I_u = sum over v of ||W_u - W_v||_2, with W_u all weights that produce unit u.

    A unit near the geometric median of its group can be replaced by the others. Time and memory grow with the square of the
    number of units.

    Source: He et al., 2019 (FPGM).
    """

    def __call__(self, graph: Graph) -> UnitScores:
        """Return the scores of all groups."""
        return {g.name: _distances(_gram_matrix(graph, g)).sum(1) for g in graph.groups}


@dataclass(frozen=True, slots=True)
class CosineRedundancy:
    """Dissimilarity to the other units: I_u = 1 - mean over v != u of cos(W_u, W_v), with W_u all weights that produce u.

    Source: Chen et al., 2021 (OTO).
    """

    def __call__(self, graph: Graph) -> UnitScores:
        """Return the scores of all groups."""
        return {g.name: _mean_dissimilarity(_gram_matrix(graph, g)) for g in graph.groups}


def unit_vectors(graph: Graph, group: Group) -> list[Tensor]:
    """Return the weights that produce each unit of a group, [units, elements] per (parameter, dim)."""
    vectors = []
    members = {(m.name, m.dim) for m in group.members}
    for name, dim in group_members(graph, inputs=False):
        if (name, dim) in members:
            index = torch.from_numpy(unit_positions(normal(graph.states[name].axes[dim]), group.atom))
            rows = graph.tensor(name).detach().movedim(dim, 0)
            vectors.append(rows[index.to(rows.device)].reshape(group.size, -1))
    return vectors


@torch.no_grad()
def _gram_matrix(graph: Graph, group: Group) -> NDArray[np.float64]:
    """Return the inner products of the weights that produce the units: [units, units]."""
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for vectors in unit_vectors(graph, group):
        wide = vectors.double()
        total += (wide @ wide.mT).cpu()
    return total.numpy()


def _distances(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return pairwise distances [units, units] from inner products."""
    squares = np.diag(gram)
    result: NDArray[np.float64] = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))
    np.fill_diagonal(result, 0.0)
    return result


def _mean_dissimilarity(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 - the mean cosine with the other units, [units], from inner products."""
    norms = np.sqrt(np.diag(gram))
    cosines = gram / np.maximum(norms[:, None] * norms[None, :], np.finfo(np.float64).tiny)
    np.fill_diagonal(cosines, 0.0)
    result: NDArray[np.float64] = 1 - cosines.sum(1) / (len(gram) - 1)
    return result
