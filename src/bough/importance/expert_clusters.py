"""Experts that can be merged: hierarchical clustering of experts by their mean outputs (HC-SMoE)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bough.calibration import Data, expert_means, gated_norms
from bough.graph import Graph
from bough.importance.contribution import channel_contributions
from bough.importance.protocols import UnitScores
from bough.spaces import unit_means


@dataclass(frozen=True, slots=True)
class ExpertClusters:
    """How much is lost if an expert is merged: the distance at which hierarchical clustering joins it to another cluster.

    Clusters of experts are joined in the order of the mean Euclidean distance between their members' mean outputs (average
    linkage). A cluster is represented by the expert that most rows are routed to; of two clusters that are joined, the
    representative with fewer rows gets their distance as its score. So the n experts that a plan keeps are the representatives
    of n clusters, into which `bough.recovery.merge_experts` merges the others. For other units the scores are those of `REAP`.

    An expert's mean output is taken over the rows that are routed to any expert, so that all see the same: a batch runs once
    for each expert.

    Source: Chen et al., 2024 (HC-SMoE).

    Raises:
        PlanError: from its call: as `REAP`.

    Example:
        >>> import torch, bough
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate = torch.nn.Linear(4, 3)
        ...         self.up, self.down = (torch.nn.Parameter(torch.randn(3, *shape)) for shape in ((4, 8), (8, 4)))
        ...     def forward(self, x):
        ...         outputs = torch.relu(x @ self.up) @ self.down  # [experts, tokens, width]
        ...         return torch.einsum("be,ebd->bd", self.gate(x).softmax(-1), outputs)
        >>> graph = bough.trace(Mixture(), torch.randn(2, 4))
        >>> [len(units) for units in bough.score(graph, ExpertClusters(), [torch.randn(16, 4)]).values()]  # experts, neurons
        [3, 8]
    """

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        scores = channel_contributions(graph, data, "ExpertClusters")
        routed = gated_norms(graph, data, "ExpertClusters rows")
        for found, norms in zip(expert_means(graph, data, "ExpertClusters outputs"), routed, strict=True):
            steps = list(joined(found.means, norms.rows))
            distances = np.full(found.mixture.space.size, 2 * max(distance for _, _, distance in steps))
            for absorbed, _, distance in steps:
                distances[absorbed] = distance
            for group in graph.groups:
                if group.atom in found.mixture.space.atoms:
                    scores[group.name] = unit_means(found.mixture.space, group.atom, distances)
        return scores


def joined(
    points: NDArray[np.float64], rows: NDArray[np.float64], apart: Sequence[int] = ()
) -> Iterator[tuple[int, int, float]]:  # fmt: skip
    """Yield the steps of hierarchical clustering with average linkage: (absorbed, absorbing, distance), of representatives.

    Args:
        points: [n, features].
        rows: [n]; a cluster is represented by its point with the most rows, or by its point of `apart`.
        apart: points of which no two come into one cluster.
    """
    distances = np.array([np.linalg.norm(points - point, axis=1) for point in points])
    distances[np.diag_indices(len(points))] = np.inf
    distances[np.ix_(apart, apart)] = np.inf
    sizes, first = np.ones(len(points)), set(apart)
    while np.isfinite(distances).any():
        one, other = map(int, np.unravel_index(distances.argmin(), distances.shape))
        distance = float(distances[one, other])
        if other in first or (one not in first and rows[other] > rows[one]):
            one, other = other, one
        average = (sizes[one] * distances[one] + sizes[other] * distances[other]) / (sizes[one] + sizes[other])
        distances[one] = distances[:, one] = average
        distances[other] = distances[:, other] = np.inf
        sizes[one] += sizes[other]
        yield other, one, distance
