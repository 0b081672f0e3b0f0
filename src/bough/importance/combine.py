"""`Combined`: a weighted sum of criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.calibration import Data
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.protocols import Criterion, DataCriterion, UnitScores
from bough.importance.registry import resolve_criterion
from bough.importance.score import score

NORMALIZERS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "none": lambda s: s,
    "mean": lambda s: s / (np.abs(s).mean() or 1.0),
    "max": lambda s: s / (np.abs(s).max() or 1.0),
    "sum": lambda s: s / (np.abs(s).sum() or 1.0),
    "l2": lambda s: s / (np.sqrt((s**2).sum()) or 1.0),
    "standard": lambda s: (s - s.mean()) / (s.std() or 1.0),
    "rank": lambda s: np.argsort(np.argsort(s.reshape(-1), kind="stable")).reshape(s.shape) / max(s.size - 1, 1),
}


@dataclass(frozen=True, slots=True)
class Combined:
    """A weighted sum of criteria, each normalized within a group: I_u = sum over i of weight_i * norm(I_i)_u.

    Source: Chen et al., 2021 (OTO), for the combination of several criteria.

    Args:
        parts: criteria or their names, or (criterion, weight) pairs; a negative weight removes first what the criterion finds
            important.
        normalize: "mean", "max", "sum" or "l2" (division by that of the magnitudes), "standard" ((I - mean) / std), "rank"
            (0 to 1) or "none". A single part gives that criterion, normalized.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: no parts, or an unknown normalization.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> both = Combined([bough.importance.Magnitude(p=1), (bough.importance.GeometricMedian(), 0.5)])
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), both)["0"].shape
        (8,)
    """

    parts: Sequence[str | Criterion | DataCriterion | tuple[str | Criterion | DataCriterion, float]]
    normalize: str = "mean"

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence):
            raise PlanError(f"Combined(parts={self.parts!r}): give a list of criteria, or of (criterion, weight) pairs")
        if not self.parts:
            raise PlanError("Combined(parts=[]) combines nothing: give at least one criterion")
        if self.normalize not in NORMALIZERS:
            raise PlanError(f"normalize={self.normalize!r} is unknown: use one of {', '.join(NORMALIZERS)}")

    @property
    def needs_data(self) -> bool:
        """True if one of the criteria needs data."""
        return any(getattr(c, "needs_data", False) for c, _ in self._weighted_parts())

    def __call__(self, graph: Graph, data: Data | None = None) -> UnitScores:
        """Return the weighted sum of the normalized scores."""
        normalize = NORMALIZERS[self.normalize]
        total: UnitScores = {}
        for criterion, weight in self._weighted_parts():
            for name, values in score(graph, criterion, data).items():
                term = weight * normalize(values)
                total[name] = total[name] + term if name in total else term
        return total

    def _weighted_parts(self) -> list[tuple[Criterion | DataCriterion, float]]:
        pairs = [p if isinstance(p, tuple) else (p, 1.0) for p in self.parts]
        return [(resolve_criterion(c), weight) for c, weight in pairs]
