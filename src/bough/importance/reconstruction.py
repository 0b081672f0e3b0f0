"""Criteria that remove units one by one, each time the one whose loss changes the consumers' outputs least.

The score of a unit is the error of the consumers' outputs once it and all before it are gone: the order of removal, with
the error that each width costs. Every consumer of a group takes part, its errors added; units are neurons, channels (with
their kernel positions), heads (with their dims), key-value groups (with the dims of all their queries).

Such scores are no importances to be summed up: `gives_errors` says so, and `allocation="error"` is made for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.calibration import (
    TINY,
    Data,
    InnerProducts,
    InputAxis,
    Moments,
    collect_moments,
    consumer_inputs,
    observed_axes,
    rounding_floor,
    scale_by_output_sensitivity,
    scale_by_output_variance,
)
from bough.errors import PlanError
from bough.graph import Graph, Group
from bough.importance.score import UnitScores

_LOST = 0.99


@dataclass(frozen=True, slots=True)
class ThiNet:
    """Greedy reconstruction without repair: I_u = E||sum over removed units v, u included, of x_v W_v||^2 when u leaves (Luo
    et al., 2017), over all outputs, not sampled ones. `sites`: output positions of each sample that a convolution is
    looked at. `step`: how many units leave between two looks at what each would cost. `relative`, `probes`: as for `OBS`."""

    sites: int = 128
    step: int = 1
    relative: bool = False
    probes: int = 0
    needs_data: ClassVar[bool] = True
    gives_errors: ClassVar[bool] = True
    share: ClassVar[float] = 1.0  # the cost of losing all of an output, if `relative`

    def __post_init__(self) -> None:
        check_fields(self)
        _check(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return _removed(graph, data, self, lambda m, g: _Plain(_inner(m, g)))


@dataclass(frozen=True, slots=True)
class OBS:
    """Greedy reconstruction with repair: units leave by the exact error that is left when the weights of the others are
    solved anew by least squares (optimal brain surgeon; ZipLM, Frantar et al., 2023; OSSCAR, Meng et al., 2024).

    For a consumer y = x W, H = E[x x^T] + ridge * mean(diag H) I (of x - E[x] where a bias makes up for means), and S the
    columns of unit u: cost 1/2 tr(W_S^T [(H^-1)_SS]^-1 W_S); then W -= (H^-1)_S [(H^-1)_SS]^-1 W_S and H^-1 is downdated.
    I_u is the sum of the costs of u and of all that left before. A product of two activations has no weights to solve: its
    costs are ThiNet's. Time grows with units times the square of a consumer's input width; `step` units may leave between two
    looks at what each would cost, which is faster and less exact.

    `relative`: outputs count as the batch norm after them scales them, and errors as a share e of the variance of what comes
    of them (the residual stream, where they are added to it; a product of activations, such as queries by keys, itself); the
    score is the sum of -log(1 - e) over the n consumers, divided by the square root of n (see `lost_signal`). Scores of
    different groups can then be compared.

    `probes`: if not 0, outputs of a linear layer or convolution count by how much what the model returns depends on them (the
    diagonal of Gauss-Newton): outputs that the next nonlinearity keeps at zero, or that nothing goes on to read, are then free
    to be wrong. That takes as many backward passes a batch, and no labels. Without `relative`, scores are squared changes of
    what the model returns, to first order.
    """

    ridge: float = 0.01
    sites: int = 128
    step: int = 1
    relative: bool = False
    probes: int = 0
    needs_data: ClassVar[bool] = True
    gives_errors: ClassVar[bool] = True
    share: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        _check(self)
        if self.ridge <= 0:
            raise PlanError(f"OBS(ridge={self.ridge}): must be positive, so that H can be inverted whatever the data")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        def problem(found: Moments | InnerProducts, group: Group) -> Problem:
            if isinstance(found, InnerProducts):
                return _Plain(_inner(found, group) / 2)
            raw = found.merge_uneven_blocks(group.atom)
            left = replace(found, second=found.covariance).merge_uneven_blocks(group.atom) if found.biased else raw
            return Repaired(left.second, left.weight, raw.columns(group.atom), self.ridge, rounding_floor(raw.second))

        return _removed(graph, data, self, problem)


def _check(given: ThiNet | OBS) -> None:
    counts = (given.sites, given.step, given.probes)
    if not all(isinstance(n, Integral) for n in counts) or min(counts) < 0 or 0 in counts[:2]:
        name, options = type(given).__name__, f"sites={given.sites}, step={given.step}, probes={given.probes}"
        raise PlanError(f"{name}({options}): whole numbers, sites and step at least 1")


class Problem(Protocol):
    """A consumer that loses units."""

    def costs(self, units: Sequence[int]) -> Tensor:
        """What losing each of `units` next costs."""

    def remove(self, units: Sequence[int]) -> float:
        """Loses `units` together, and tells what that costs."""


class _Plain:
    """Outputs are sums of terms with inner products `inner` [units, units]; nothing is repaired."""

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner
        self._with_gone = torch.zeros(len(inner), dtype=inner.dtype, device=inner.device)

    def costs(self, units: Sequence[int]) -> Tensor:
        return (self.inner.diagonal() + 2 * self._with_gone)[list(units)]

    def remove(self, units: Sequence[int]) -> float:
        rows = self.inner[list(units)]
        cost = rows[:, list(units)].sum() + 2 * self._with_gone[list(units)].sum()
        self._with_gone += rows.sum(0)
        return float(cost)


class Repaired:
    """y = x W, blockwise, with W solved anew after each loss: H^-1 and W W^T, all that costs need, are downdated exactly."""

    def __init__(
        self, second: Tensor, weight: Tensor, columns: NDArray[np.int64], ridge: float, floor: Tensor | float = 0.0
    ) -> None:  # fmt: skip
        eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
        scale = second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        damped = second + torch.maximum(ridge * scale, torch.as_tensor(floor).to(scale) + TINY) * eye
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.outer = weight @ weight.mT
        self.columns = torch.from_numpy(columns).to(second.device)
        self._left = torch.ones(second.shape[:2], dtype=torch.bool, device=second.device)
        self._apart = all(len(np.unique(c)) == c.size for c in columns)  # no column belongs to two units

    def costs(self, units: Sequence[int]) -> Tensor:
        total = torch.zeros(len(units), dtype=self.outer.dtype, device=self.outer.device)
        for inverse, outer, columns, left in zip(
            self.inverse, self.outer, self.columns[:, list(units)], self._left, strict=True
        ):  # fmt: skip
            corner, inner = (m[columns[:, :, None], columns[:, None, :]] for m in (inverse, outer))
            if not self._apart:  # what went with another unit is all zeros
                corner = corner + torch.diag_embed((~left[columns]).to(corner))
            solved = inner / corner if corner.shape[-1] == 1 else torch.linalg.solve(corner, inner)
            total += solved.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        return total

    def remove(self, units: Sequence[int]) -> float:
        gone = self.columns[:, list(units)].flatten(1)
        cost = 0.0
        for inverse, outer, every, left in zip(self.inverse, self.outer, gone, self._left, strict=True):
            columns = every[left[every]].unique() if not self._apart else every
            left[columns] = False
            if not len(columns):
                continue
            across = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])  # [(H^-1)_SS]^-1 (H^-1)_S
            corner = torch.linalg.solve(inverse[columns][:, columns], outer[columns][:, columns])
            cost += float(corner.trace()) / 2
            half = outer[columns] - outer[columns][:, columns] @ across / 2
            outer.addmm_(across.mT, half, alpha=-1).addmm_(half.mT, across, alpha=-1)  # of W - across^T W_S
            inverse.addmm_(inverse[:, columns], across, alpha=-1)
        if len(self.inverse) == 1 and self._apart and 2 * int(self._left.sum()) < self._left.numel():
            self._close_up()
        return cost

    def _close_up(self) -> None:
        """Drops the rows and columns that are gone, so that the next downdates are smaller."""
        (keep,) = self._left[0].nonzero(as_tuple=True)
        self.inverse, self.outer = (m[:, keep][:, :, keep].contiguous() for m in (self.inverse, self.outer))
        self.columns = (self._left[0].cumsum(0) - 1)[self.columns].clamp_min(0)
        self._left = self._left[:, keep]


Combine = Callable[[NDArray[np.float64]], float]
"""From the costs so far of each consumer to the score of the unit that leaves."""


def greedy(problems: Sequence[Problem], size: int, step: int = 1, combine: Combine = np.sum) -> NDArray[np.float64]:
    """Return a score [units] for each unit: the combined costs once it leaves, the cheapest first, `step` at a time.

    Losing more may undo an error: scores do not fall, so that they give the order of removal.
    """
    scores = np.zeros(size)
    left, total, highest = list(range(size)), np.zeros(len(problems)), 0.0
    while left:
        costs = np.sum([p.costs(left).cpu().numpy() for p in problems], axis=0)
        units = [left[i] for i in np.argsort(costs, kind="stable")[:step]]
        added = np.array([p.remove(units) for p in problems])
        for k, unit in enumerate(units, 1):  # the units that leave together share their cost
            highest = scores[unit] = max(highest, float(combine(total + added * k / len(units))))
        total += added
        left = [u for u in left if u not in units]
    return scores


def lost_signal(errors: NDArray[np.float64]) -> float:
    """Return what consumers [n] lose, of their errors as shares: the sum of -log(1 - e), divided by the root of n.

    The share 1 - e that is left multiplies from layer to layer, so its logarithm adds up over groups. The consumers of one
    group, as of a residual stream, lose the same units: their losses are neither one loss (a mean) nor independent (a sum),
    and the geometric mean of the two is what measures best (docs/decisions/0014). Beyond 99 % the logarithm goes on as a
    straight line; errors above 1, which only what is not repaired has, count as they are.
    """
    share = np.minimum(errors, _LOST)
    straight = (np.clip(errors, _LOST, 1.0) - _LOST) / (1 - _LOST) + np.maximum(errors - 1.0, 0.0)
    return float((straight - np.log1p(-share)).sum() / np.sqrt(len(errors)))


def _removed(
    graph: Graph, data: Data, of: ThiNet | OBS, problem: Callable[[Moments | InnerProducts, Group], Problem]
) -> UnitScores:  # fmt: skip
    found = {name: _once(rs) for name, rs in consumer_inputs(graph).items()}
    made = collect_moments(graph, data, [r for rs in found.values() for r in rs], sites=of.sites, title=type(of).__name__)
    if of.relative:
        made = scale_by_output_variance(graph, data, made)
    if of.probes:
        made = scale_by_output_sensitivity(graph, data, made, of.probes, keep_totals=of.relative)
    combine: Combine = (lambda costs: lost_signal(costs / of.share)) if of.relative else np.sum
    scores = {}
    for group in graph.groups:
        problems = [problem(made[r], group) for r in observed_axes(group.name, found[group.name], made)]
        scores[group.name] = greedy(problems, group.size, of.step, combine)
    return scores


def _once(found: Sequence[InputAxis]) -> list[InputAxis]:
    """Of the two sides of a product of activations, one."""
    observed_axes: set[int] = set()
    result = []
    for r in found:
        if r.weight is None and r.contraction is not None:
            if id(r.contraction) in observed_axes:
                continue
            observed_axes.add(id(r.contraction))
        result.append(r)
    return result


def _inner(found: Moments | InnerProducts, group: Group) -> Tensor:
    """[units, units]: inner products of what the units add to the outputs."""
    if isinstance(found, InnerProducts):
        return _per_unit(found.inner, found.columns(group.atom))
    found = found.merge_uneven_blocks(group.atom)
    parts = found.second * (found.weight @ found.weight.mT)
    return sum(_per_unit(p, c) for p, c in zip(parts, found.columns(group.atom), strict=True))  # type: ignore[return-value]


def _per_unit(inner: Tensor, columns: NDArray[np.int64]) -> Tensor:
    belongs = torch.zeros(len(columns), len(inner), dtype=inner.dtype)
    belongs.scatter_(1, torch.from_numpy(columns), 1.0)
    belongs = belongs.to(inner.device)
    return belongs @ inner @ belongs.mT
