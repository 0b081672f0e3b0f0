"""Greedy removal of units by the error of their consumers' outputs, with or without repair of the other weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration import TINY, InnerProducts, Moments
from bough.spaces import Atom

Combine = Callable[[NDArray[np.float64]], float]
"""Costs so far of each consumer -> score of the unit that is removed."""


class RemovalProblem(Protocol):
    """A consumer from whose inputs units are removed one after the other."""

    def costs(self, units: Sequence[int]) -> Tensor:
        """Return the cost of removing each of `units` next: [len(units)]."""

    def remove(self, units: Sequence[int]) -> float:
        """Remove `units` together; return the cost."""


class WithoutRepair:
    """A consumer whose weights stay as they are.

    Args:
        inner: inner products of the contributions of units to the outputs, [units, units].
    """

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner
        self._with_removed = torch.zeros(len(inner), dtype=inner.dtype, device=inner.device)

    def costs(self, units: Sequence[int]) -> Tensor:
        """Return the cost of removing each of `units` next."""
        return (self.inner.diagonal() + 2 * self._with_removed)[list(units)]

    def remove(self, units: Sequence[int]) -> float:
        """Remove `units` together; return the cost."""
        rows = self.inner[list(units)]
        cost = rows[:, list(units)].sum() + 2 * self._with_removed[list(units)].sum()
        self._with_removed += rows.sum(0)
        return float(cost)


class WithRepair:
    """A consumer y = x W, block by block, whose other weights are solved again by least squares after each removal.

    Costs need only H^-1 and W W^T, which are downdated exactly.

    Args:
        second: moments of x, [blocks, d, d].
        weight: W, [blocks, d, outputs].
        columns: columns of each unit, [blocks, units, columns].
        ridge: added to the diagonal, relative to its mean.
        floor: smallest value to add, for rounding errors.
    """

    def __init__(
        self, second: Tensor, weight: Tensor, columns: NDArray[np.int64], ridge: float, floor: Tensor | float = 0.0
    ) -> None:  # fmt: skip
        eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
        scale = second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        damped = second + torch.maximum(ridge * scale, torch.as_tensor(floor).to(scale) + TINY) * eye
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.outer = weight @ weight.mT
        self.columns = torch.from_numpy(columns).to(second.device)
        self._remaining = torch.ones(second.shape[:2], dtype=torch.bool, device=second.device)
        self._are_disjoint = all(len(np.unique(c)) == c.size for c in columns)  # no column belongs to two units

    def costs(self, units: Sequence[int]) -> Tensor:
        """Return the cost of removing each of `units` next."""
        total = torch.zeros(len(units), dtype=self.outer.dtype, device=self.outer.device)
        for inverse, outer, columns, remaining in zip(
            self.inverse, self.outer, self.columns[:, list(units)], self._remaining, strict=True
        ):  # fmt: skip
            corner, inner = (m[columns[:, :, None], columns[:, None, :]] for m in (inverse, outer))
            if not self._are_disjoint:  # rows of columns that were removed with another unit are zero
                corner = corner + torch.diag_embed((~remaining[columns]).to(corner))
            solved = inner / corner if corner.shape[-1] == 1 else torch.linalg.solve(corner, inner)
            total += solved.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        return total

    def remove(self, units: Sequence[int]) -> float:
        """Remove `units` together; return the cost."""
        all_columns = self.columns[:, list(units)].flatten(1)
        cost = 0.0
        for inverse, outer, removed, remaining in zip(self.inverse, self.outer, all_columns, self._remaining, strict=True):
            columns = removed[remaining[removed]].unique() if not self._are_disjoint else removed
            remaining[columns] = False
            if not len(columns):
                continue
            across = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])  # [(H^-1)_SS]^-1 (H^-1)_S
            corner = torch.linalg.solve(inverse[columns][:, columns], outer[columns][:, columns])
            cost += float(corner.trace()) / 2
            half = outer[columns] - outer[columns][:, columns] @ across / 2
            outer.addmm_(across.mT, half, alpha=-1).addmm_(half.mT, across, alpha=-1)  # of W - across^T W_S
            inverse.addmm_(inverse[:, columns], across, alpha=-1)
        if len(self.inverse) == 1 and self._are_disjoint and 2 * int(self._remaining.sum()) < self._remaining.numel():
            self._drop_removed()
        return cost

    def _drop_removed(self) -> None:
        """Drop removed rows and columns, so that later downdates are smaller."""
        (keep,) = self._remaining[0].nonzero(as_tuple=True)
        self.inverse, self.outer = (m[:, keep][:, :, keep].contiguous() for m in (self.inverse, self.outer))
        self.columns = (self._remaining[0].cumsum(0) - 1)[self.columns].clamp_min(0)
        self._remaining = self._remaining[:, keep]


def greedy_scores(
    problems: Sequence[RemovalProblem], size: int, step: int = 1, combine: Combine = np.sum
) -> NDArray[np.float64]:
    """Remove units by ascending cost; return for each unit the combined costs once it is removed: [units].

    Removing more units may undo an error; scores are made non-decreasing in the order of removal all the same.

    Args:
        problems: the consumers, which are changed.
        size: number of units.
        step: number of units removed together.
        combine: costs of the consumers -> score.
    """
    scores = np.zeros(size)
    remaining, total, highest = list(range(size)), np.zeros(len(problems)), 0.0
    while remaining:
        costs = np.sum([p.costs(remaining).cpu().numpy() for p in problems], axis=0)
        units = [remaining[i] for i in np.argsort(costs, kind="stable")[:step]]
        added = np.array([p.remove(units) for p in problems])
        for k, unit in enumerate(units, 1):  # units that are removed together share their cost
            highest = scores[unit] = max(highest, float(combine(total + added * k / len(units))))
        total += added
        remaining = [u for u in remaining if u not in units]
    return scores


def unit_inner_products(moments: Moments | InnerProducts, atom: Atom) -> Tensor:
    """Return the inner products of the contributions of units of `atom` to a consumer's outputs: [units, units]."""
    if isinstance(moments, InnerProducts):
        return _sum_by_unit(moments.inner, moments.columns(atom))
    moments = moments.merge_uneven_blocks(atom)
    products = moments.second * (moments.weight @ moments.weight.mT)
    first, *others = (_sum_by_unit(p, c) for p, c in zip(products, moments.columns(atom), strict=True))
    return sum(others, first)


def _sum_by_unit(inner: Tensor, columns: NDArray[np.int64]) -> Tensor:
    """Return inner products of units [units, units] from those of columns [d, d]."""
    belongs = torch.zeros(len(columns), len(inner), dtype=inner.dtype)
    belongs.scatter_(1, torch.from_numpy(columns), 1.0)
    belongs = belongs.to(inner.device)
    return belongs @ inner @ belongs.mT
