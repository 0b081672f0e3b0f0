"""Criteria from the activations and the weights that read them: what a unit adds to its consumers' outputs.

Positions of a unit (the dims of a head) and consumers of a group are added up. Where no weight reads the units, the other
factor of the product stands for it (queries by keys); where nothing but a mean does, one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.calibration import ActivationStatistics, Data, InputAxis, activation_statistics, consumer_inputs, observed_axes
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.score import UnitScores
from bough.spaces import unit_sums


@dataclass(frozen=True, slots=True)
class Wanda:
    """Weight times activation: I_u = sum over consumers of (mean_o |W_ou|^p)^(1/p) * sqrt(E[x_u^2]) (Sun et al., 2024; its
    structured form as in FLAP's Wanda-sp).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), Wanda(), [torch.randn(16, 4)])["0"].shape
        (8,)
    """

    p: float = 1.0
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.p <= 0:
            raise PlanError(f"Wanda(p={self.p}): p must be positive")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        found = activation_statistics(graph, data, _norm(self.p, average=True), f"Wanda {self.p}")
        return added(graph, {r: w * np.sqrt(found[r].square) for r, w in _weights(found).items()})


@dataclass(frozen=True, slots=True)
class FLAP:
    """Fluctuation of the consumers' outputs: I_u = sum over consumers of Var(x_u) ||W_u||_2^2 (An et al., 2024), what is lost
    when the unit is replaced by its mean in their biases. `standardize`: each consumer's metric as (I - mean) / std first, to
    compare groups with each other; scores may then be negative, and a group's mean is 0.
    """

    standardize: bool = False
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        found = activation_statistics(graph, data, _norm(2.0, average=False), "FLAP")
        metrics = {r: w**2 * found[r].variance for r, w in _weights(found).items()}
        if self.standardize:
            metrics = {r: (m - m.mean()) / (m.std() or 1.0) for r, m in metrics.items()}
        return added(graph, metrics)


def added(graph: Graph, values: Mapping[InputAxis, NDArray[np.float64]]) -> UnitScores:
    """Per unit the sum over its positions and over the group's readings."""
    sums = {}
    for group, found in zip(graph.groups, consumer_inputs(graph).values(), strict=True):
        there = observed_axes(group.name, found, values)
        sums[group.name] = np.sum([unit_sums(r.space(graph), group.atom, values[r]) for r in there], axis=0)
    return sums


def _weights(found: Mapping[InputAxis, ActivationStatistics]) -> dict[InputAxis, NDArray[np.float64]]:
    """The norm of what each index is multiplied by."""
    return {r: _partner(r, found) if s.weight is None else s.weight for r, s in found.items()}


def _partner(reading: InputAxis, found: Mapping[InputAxis, ActivationStatistics]) -> NDArray[np.float64]:
    """The root mean square of the other factor, where it is an activation; ones where there is none."""
    places = reading.contraction.places if reading.contraction else ()
    others = [InputAxis(reading.op, i, d) for i, d in places if i != reading.argument]
    there = [found[r].square for r in others if r in found]
    return np.sqrt(there[0]) if there else np.ones_like(found[reading].square)


def _norm(p: float, average: bool) -> Callable[[Tensor], Tensor]:
    def norm(rows: Tensor) -> Tensor:
        values = torch.linalg.vector_norm(rows, p, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
        return values / rows.shape[1] ** (1 / p) if average else values

    return norm
