"""Criteria from the magnitude of weights, and random scores."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.protocols import Criterion, UnitScores
from bough.importance.reduce import Reduce, elementwise, group_members, per_unit


def _powers(p: float) -> Reduce:
    """Return the `Reduce` that sums |w|^p, computed in float32 or the tensor's own wider type."""
    return elementwise(_Powers(p))


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return float32, or the tensor's dtype if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


class _Powers:
    """Computes |w|^p of each element, in a buffer that the next call reuses."""

    def __init__(self, p: float) -> None:
        self.p = p
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the powers, valid until the next call."""
        dtype = _compute_dtype(tensor).to_real()
        key = dtype, tensor.device
        if key not in self._buffers or self._buffers[key].numel() < tensor.numel():
            self._buffers[key] = torch.empty(tensor.numel(), dtype=dtype, device=tensor.device)
        values = self._buffers[key][: tensor.numel()].view(tensor.shape)
        if tensor.is_complex():
            torch.abs(tensor, out=values)
        elif self.p == 2 and tensor.dtype == dtype:
            return torch.square(tensor, out=values)
        else:
            values.copy_(tensor)
        return values.square_() if self.p == 2 else values.abs_().pow_(self.p)


@dataclass(frozen=True, slots=True)
class _Norm:
    """Lp norm over members of each unit: I_u = (sum over members of |w|^p)^(1/p)."""

    p: float = 2.0
    includes_consumers: ClassVar[bool]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.p <= 0:
            raise PlanError(f"{type(self).__name__}(p={self.p}): p must be positive")

    def __call__(self, graph: Graph) -> UnitScores:
        """Return the scores of all groups."""
        sums = per_unit(graph, _powers(self.p), inputs=self.includes_consumers)
        return {name: values ** (1 / self.p) for name, values in sums.items()}

    def parameters_summed(self, graph: Graph) -> frozenset[str]:
        """Return the names of the parameters all of whose elements are summed, so that NaN shows in the scores."""
        return frozenset(name for name, _ in group_members(graph, inputs=self.includes_consumers))


@dataclass(frozen=True, slots=True)
class Magnitude(_Norm):
    """Lp norm of the weights that produce a unit: I_u = (sum over producing members of |w|^p)^(1/p).

    Producing members are rows of weights, biases, and affine parameters of normalizations, but not the columns of the weights
    that consume the unit (see `GroupNorm`).

    Source: Li et al., 2017.

    Attributes:
        p: of the norm, above 0; 1 gives L1, 2 gives L2.

    Raises:
        ArgumentError, PlanError: `p` is not a positive number.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), Magnitude(p=1))["0"].shape
        (8,)
    """

    includes_consumers: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class GroupNorm(_Norm):
    """Lp norm over all members of a unit, those that consume the unit included: I_u = (sum over members of |w|^p)^(1/p).

    Source: Fang et al., 2023 (DepGraph).

    Attributes and Raises: as for `Magnitude`.

    Example:
        >>> import torch, bough
        >>> graph = bough.trace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(1, 4))
        >>> (bough.score(graph, GroupNorm())["0"] >= bough.score(graph, Magnitude())["0"]).all().item()
        True
    """

    includes_consumers: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LAMP:
    """Layer-adaptive magnitude: I_u = s_u^2 / (sum of s_v^2 over all units v with s_v >= s_u).

    s is the L2 norm of the weights that produce a unit. Scores of different groups can be compared directly.

    Source: Lee et al., 2021.
    """

    def __call__(self, graph: Graph) -> UnitScores:
        """Return the scores of all groups."""
        squares = per_unit(graph, _powers(2.0), inputs=False)
        return {name: _lamp(values) for name, values in squares.items()}


def _lamp(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each squared norm divided by the sum of all squared norms that are at least as large."""
    flat = squares.reshape(-1)
    order = np.argsort(flat, kind="stable")
    tails = np.cumsum(flat[order][::-1])[::-1]  # sums over each unit and all larger ones
    tails = tails[np.searchsorted(flat[order], flat[order], side="left")]  # units of equal norm are in each other's sums
    result = np.zeros_like(flat)
    result[order] = np.divide(flat[order], tails, out=np.zeros_like(tails), where=tails > 0)
    return result.reshape(squares.shape)


_NORMS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")


@dataclass(frozen=True, slots=True)
class NormScale:
    """Scale of the normalizations of a unit: I_u = sum over normalizations of |gamma_u|.

    Meant for models trained with an L1 penalty on these scales, such as `bough.recovery.regularize.Slimming`.

    Source: Liu et al., 2017 (network slimming).

    Attributes:
        otherwise: criterion for groups without a scale of a normalization; None if there must not be any.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: from its call: a group has no scale, with `otherwise=None`.
    """

    otherwise: Criterion | None = Magnitude(p=1.0)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph) -> UnitScores:
        """Return the scores of all groups."""
        scales = _norm_scales(graph)
        sums = per_unit(graph, _powers(1.0), inputs=False, tensors={n: graph.tensor(n).detach() for n in scales})
        unscaled = [g.name for g in graph.groups if not any(m.name in scales for m in g.members)]
        if unscaled and self.otherwise is None:
            raise PlanError(
                f"no norm scales the group {unscaled[0]!r}: give NormScale(otherwise=...) a criterion for such groups"
            )
        other_scores = self.otherwise(graph) if unscaled and self.otherwise is not None else {}
        return {**sums, **{name: other_scores[name] for name in unscaled}}


def _norm_scales(graph: Graph) -> set[str]:
    """Return the parameters by which normalizations multiply: the first parameter of each normalization."""
    scales: set[str] = set()
    for op in graph.all_ops:
        if op.name in _NORMS:
            affine = [s for s in op.states if s and graph.states[s].parameter]
            scales.update(affine[:1])
    return scales


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform random scores: the control that every criterion has to beat.

    Attributes:
        seed: not negative.

    Raises:
        ArgumentError, PlanError: the seed is not a whole number, or negative.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> (bough.score(graph, Random(1))["0"] == bough.score(graph, Random(1))["0"]).all().item()
        True
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise PlanError(f"Random(seed={self.seed!r}): must be a whole number, not negative")

    def __call__(self, graph: Graph) -> UnitScores:
        """Return random scores of all groups and ragged groups."""
        generator = np.random.default_rng(self.seed)
        size = {g.name: g.size for g in graph.groups}
        scores = {name: generator.random(n) for name, n in size.items()}
        can_be_ragged = [r for r in graph.ragged if r.reason is None]
        return {**scores, **{r.scores: generator.random((size[r.over], size[r.group])) for r in can_be_ragged}}
