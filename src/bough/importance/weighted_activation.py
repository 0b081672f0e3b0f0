"""Criteria from activations and the weights that multiply them: the contribution of a unit to its consumers' outputs.

Scores are summed over the positions of a unit (the dims of a head) and over the consumers of a group. If no weight multiplies
the units, the other factor of the product takes its place (queries by keys); if only a mean reduces them, the factor is one.
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
from bough.calibration import ActivationStatistics, Data, InputAxis, activation_statistics
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.protocols import UnitScores
from bough.importance.reduce import sum_over_axes


@dataclass(frozen=True, slots=True)
class Wanda:
    """Weight times activation: I_u = sum over consumers of (mean_o |W_ou|^p)^(1/p) * sqrt(E[x_u^2]).

    Source: Sun et al., 2024; the structured form is FLAP's Wanda-sp.

    Attributes:
        p: of the norm, above 0.

    Raises:
        ArgumentError, PlanError: `p` is not a positive number.

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
        """Return the scores of all groups."""
        statistics = activation_statistics(graph, data, _row_norm(self.p, average=True), f"Wanda {self.p}")
        factors = _weight_norms(statistics)
        return sum_over_axes(graph, {axis: factors[axis] * np.sqrt(s.square) for axis, s in statistics.items()})


@dataclass(frozen=True, slots=True)
class FLAP:
    """Fluctuation of the consumers' outputs: I_u = sum over consumers of Var(x_u) ||W_u||_2^2.

    This is the error that remains if the unit is replaced by its mean in the consumers' biases.

    Source: An et al., 2024.

    Attributes:
        standardize: whether each consumer's values are first transformed to (I - mean) / std, to compare groups with each
            other; scores may then be negative, and those of a group have mean 0.

    Raises:
        ArgumentError: an argument of another type.
    """

    standardize: bool = False
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        statistics = activation_statistics(graph, data, _row_norm(2.0, average=False), "FLAP")
        values = {axis: norm**2 * statistics[axis].variance for axis, norm in _weight_norms(statistics).items()}
        if self.standardize:
            values = {axis: (v - v.mean()) / (v.std() or 1.0) for axis, v in values.items()}
        return sum_over_axes(graph, values)


def _weight_norms(statistics: Mapping[InputAxis, ActivationStatistics]) -> dict[InputAxis, NDArray[np.float64]]:
    """Return the norm of the factor that multiplies each index of each axis."""
    return {axis: _other_factor(axis, statistics) if s.weight is None else s.weight for axis, s in statistics.items()}


def _other_factor(axis: InputAxis, statistics: Mapping[InputAxis, ActivationStatistics]) -> NDArray[np.float64]:
    """Return the root mean square of the other factor of a product of activations; ones if there is none."""
    places = axis.contraction.places if axis.contraction else ()
    others = [InputAxis(axis.op, i, d) for i, d in places if i != axis.argument]
    squares = [statistics[other].square for other in others if other in statistics]
    return np.sqrt(squares[0]) if squares else np.ones_like(statistics[axis].square)


def _row_norm(p: float, average: bool) -> Callable[[Tensor], Tensor]:
    """Return a function from rows [n, m] to their Lp norms [n]; with `average`, to (mean |x|^p)^(1/p)."""

    def norm(rows: Tensor) -> Tensor:
        values = torch.linalg.vector_norm(rows, p, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
        return values / rows.shape[1] ** (1 / p) if average else values

    return norm
