"""Criteria that look at the weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.reduce import Reduce, per_unit


def _powers(p: float) -> Reduce:
    """The sum of |w|^p over all dims but one."""

    def reduce(tensor: Tensor, dim: int) -> Tensor:
        others = [d for d in range(tensor.dim()) if d != dim]
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        if not others:
            return tensor.to(dtype).abs() ** p
        return torch.linalg.vector_norm(tensor, p, dim=others, dtype=dtype) ** p

    return reduce


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The Lp norm of what computes a unit: I_u = (sum over members, dim 0, of |w|^p)^(1/p) (Li et al., 2017).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), Magnitude(p=1))["0"].shape
        (8,)
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        if self.p <= 0:
            raise PlanError(f"Magnitude(p={self.p}): p must be positive")

    def __call__(self, graph: Graph) -> dict[str, NDArray[np.float64]]:
        sums = per_unit(graph, _powers(self.p), inputs=False)
        return {name: values ** (1 / self.p) for name, values in sums.items()}


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """The coupled norm: as Magnitude, over all members, the weights that consume the unit included (DepGraph, Fang et
    al., 2023): I_u = (sum over members of |w|^p)^(1/p)."""

    p: float = 2.0

    def __call__(self, graph: Graph) -> dict[str, NDArray[np.float64]]:
        sums = per_unit(graph, _powers(self.p), inputs=True)
        return {name: values ** (1 / self.p) for name, values in sums.items()}


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform random scores: the control that every criterion must beat."""

    seed: int = 0

    def __call__(self, graph: Graph) -> dict[str, NDArray[np.float64]]:
        generator = np.random.default_rng(self.seed)
        size = {g.name: g.size for g in graph.groups}
        scores = {name: generator.random(n) for name, n in size.items()}
        free = [r for r in graph.ragged if r.reason is None]
        return {**scores, **{r.scores: generator.random((size[r.over], size[r.group])) for r in free}}
