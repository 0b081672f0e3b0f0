"""Criteria that look at the weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.reduce import Reduce, elementwise, members, per_unit
from bough.importance.score import Criterion, UnitScores


def _powers(p: float) -> Reduce:
    """Return the `Reduce` that sums |w|^p, computed in float32 or the tensor's own wider type."""
    columns = elementwise(_Powers(p))

    def reduce(tensor: Tensor, dim: int) -> Tensor:
        if p == 2 and dim == 0 and tensor.dim() > 1 and tensor.dtype == _computed_in(tensor):
            return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim()))).square()  # fast on contiguous rows
        return columns(tensor, dim)

    return reduce


def _computed_in(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _Powers:
    """|w|^p of each element, in memory that is used again by the next call."""

    def __init__(self, p: float) -> None:
        self.p = p
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        dtype = _computed_in(tensor).to_real()
        if tensor.dim() < 2:  # nothing will be summed: the result must be memory of its own
            return tensor.abs().to(dtype) ** self.p
        key = dtype, tensor.device
        if key not in self._buffers or self._buffers[key].numel() < tensor.numel():
            self._buffers[key] = torch.empty(tensor.numel(), dtype=dtype, device=tensor.device)
        values = self._buffers[key][: tensor.numel()].view(tensor.shape)
        if tensor.is_complex():
            torch.abs(tensor, out=values)
        else:
            values.copy_(tensor)
        return values.square_() if self.p == 2 else values.abs_().pow_(self.p)


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The Lp norm of what makes a unit: I_u = (sum over members that make it of |w|^p)^(1/p) (Li et al., 2017).

    `p=1` is L1, `p=2` L2. Members that make a unit are rows of weights, biases, affine parameters of norms; columns of the
    weights that read it are not among them (see `GroupNorm`).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), Magnitude(p=1))["0"].shape
        (8,)
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.p <= 0:
            raise PlanError(f"Magnitude(p={self.p}): p must be positive")

    def __call__(self, graph: Graph) -> UnitScores:
        sums = per_unit(graph, _powers(self.p), inputs=False)
        return {name: values ** (1 / self.p) for name, values in sums.items()}

    def parameters_summed(self, graph: Graph) -> frozenset[str]:
        """Return the names of the parameters all of whose elements are summed, so that NaN shows."""
        return frozenset(name for name, _ in members(graph, inputs=False))


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """The coupled norm: as Magnitude, over all members, the weights that consume the unit included (DepGraph, Fang et
    al., 2023): I_u = (sum over members of |w|^p)^(1/p)."""

    p: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.p <= 0:
            raise PlanError(f"GroupNorm(p={self.p}): p must be positive")

    def __call__(self, graph: Graph) -> UnitScores:
        sums = per_unit(graph, _powers(self.p), inputs=True)
        return {name: values ** (1 / self.p) for name, values in sums.items()}

    def parameters_summed(self, graph: Graph) -> frozenset[str]:
        """Return the names of the parameters all of whose elements are summed, so that NaN shows."""
        return frozenset(name for name, _ in members(graph, inputs=True))


@dataclass(frozen=True, slots=True)
class LAMP:
    """Layer-adaptive magnitude: I_u = s_u^2 / (sum of s_v^2 over all units v with s_v >= s_u), s the L2 norm of what makes
    a unit (Lee et al., 2021). Scores of different groups can be compared as they are."""

    def __call__(self, graph: Graph) -> UnitScores:
        squares = per_unit(graph, _powers(2.0), inputs=False)
        return {name: _lamp(values) for name, values in squares.items()}


def _lamp(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = squares.reshape(-1)
    order = np.argsort(flat, kind="stable")
    tails = np.cumsum(flat[order][::-1])[::-1]  # of each unit and all larger ones
    tails = tails[np.searchsorted(flat[order], flat[order], side="left")]  # equal units count each other
    result = np.zeros_like(flat)
    result[order] = np.divide(flat[order], tails, out=np.zeros_like(tails), where=tails > 0)
    return result.reshape(squares.shape)


_NORMS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")


@dataclass(frozen=True, slots=True)
class NormScale:
    """The scale of the normalizations: I_u = sum over norms of |gamma_u| (network slimming, Liu et al., 2017).

    Meant for nets trained with an L1 penalty on these scales. `otherwise` scores the groups that no norm scales.

    Raises:
        PlanError: from its call: a group that no norm scales, with `otherwise=None`.
    """

    otherwise: Criterion | None = Magnitude(p=1.0)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph) -> UnitScores:
        scales = _norm_scales(graph)
        sums = per_unit(graph, _powers(1.0), inputs=False, tensors={n: graph.tensor(n).detach() for n in scales})
        scaled = {m.name for m in graph.groups if any(x.name in scales for x in m.members)}
        bare = [g.name for g in graph.groups if g.name not in scaled]
        if bare and self.otherwise is None:
            raise PlanError(f"no norm scales the group {bare[0]!r}: give NormScale(otherwise=...) a criterion for such groups")
        instead = self.otherwise(graph) if bare and self.otherwise is not None else {}
        return {**sums, **{name: instead[name] for name in bare}}


def _norm_scales(graph: Graph) -> set[str]:
    """The parameters that norms multiply by: the first held parameter of a norm op that is no running statistic."""
    found: set[str] = set()
    for op in graph.ops:
        if op.name in _NORMS:
            affine = [s for s in op.states if s and graph.states[s].parameter]
            found.update(affine[:1])
    return found


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform random scores: the control that every criterion must beat."""

    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise PlanError(f"Random(seed={self.seed!r}): must be a whole number, not negative")

    def __call__(self, graph: Graph) -> UnitScores:
        generator = np.random.default_rng(self.seed)
        size = {g.name: g.size for g in graph.groups}
        scores = {name: generator.random(n) for name, n in size.items()}
        free = [r for r in graph.ragged if r.reason is None]
        return {**scores, **{r.scores: generator.random((size[r.over], size[r.group])) for r in free}}
