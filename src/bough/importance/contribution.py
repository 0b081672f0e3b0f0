"""Criteria that measure what a unit adds to the output of its layer: experts by their gated outputs (REAP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bough.calibration import Data, activation_statistics, gated_norms
from bough.graph import Graph
from bough.importance.protocols import UnitScores
from bough.importance.reduce import sum_over_axes
from bough.spaces import unit_sums


@dataclass(frozen=True, slots=True)
class REAP:
    """Mean norm of what a unit adds to the output of its layer: of experts, router-weighted expert activation pruning.

    For an expert u, it is the mean over the tokens that are routed to it of its gate value times the norm of its output,
    I_u = E_{x: g_u(x) != 0}[g_u(x) ||f_u(x)||]; 0 if no token is. For other units, it is the same of single channels,
    I_u = sum over consumers of E|x_u| ||W_u||_2, summed over the positions of a unit.

    The experts are found in the traced run, for any implementation whose experts are units that can be removed: stacked
    weights with grouped, batched or selected products, einsum, or a loop.

    Source: Lasby et al., 2025 (experts); Lin et al. (ModelOpt's independent channel contribution).

    Raises:
        PlanError: from its call: the outputs of single experts are not observable in the run, or as `Data.stream`.

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
        >>> [len(units) for units in bough.score(graph, REAP(), [torch.randn(16, 4)]).values()]  # experts, neurons
        [3, 8]
    """

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        scores = channel_contributions(graph, data, "REAP")
        for found in gated_norms(graph, data, "REAP experts"):
            for group in graph.groups:
                if group.atom in found.space.atoms:
                    norms, rows = (unit_sums(found.space, group.atom, v) for v in (found.norms, found.rows))
                    scores[group.name] = norms / np.maximum(rows, 1.0)
        return scores


def channel_contributions(graph: Graph, data: Data, title: str) -> UnitScores:
    """Return the mean norm of what single channels add to their consumers' outputs: sum over consumers of E|x_u| ||W_u||_2."""
    statistics = activation_statistics(graph, data, _norms, title)
    return sum_over_axes(graph, {axis: s.magnitude * (1.0 if s.weight is None else s.weight) for axis, s in statistics.items()})


def _norms(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of each row."""
    return torch.linalg.vector_norm(rows, 2, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
