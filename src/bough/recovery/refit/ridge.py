"""Ridge regression from running sums, in float64, block by block, with the strength chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bough.calibration import TINY, add_over_processes, gather_objects, rounding_floor
from bough.errors import PlanError

RIDGES = tuple(10.0**k for k in range(-3, 3))
"""Candidate strengths, ascending."""

FOLDS = 4
"""Number of parts of the data for cross-validation."""

_SumsByConstant = dict[str, tuple[Tensor, Tensor]]
"""For each constant: sums of [x y 1]^T [x 1], [blocks, d + outputs + 1, d + 1], and of y^2, [blocks, outputs]."""

_PART = 1 << 22
"""Elements of a weight that are solved at a time: 32 MB in float64."""

_TOLERANCE = 1.05
"""A candidate is good enough if its error is at most this multiple of the smallest one."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Solution of y ~ x w + constant. A block without rows keeps its weight.

    Attributes:
        weight: w, [blocks, d, outputs].
        shifts: the constants by name, [blocks, outputs].
        before, after: E|y - x w - constant|^2 as a share of E|y - E y|^2, with the initial weight and with the solution. If no
            constant can be added, or y does not vary, the share is of E|y|^2; if that is 0, the error itself.
        rows: number of rows of the block with the fewest.
        ridge: the strength that was used; None if the weight was not solved for.
    """

    weight: Tensor
    shifts: dict[str, Tensor]
    before: float
    after: float
    rows: int
    ridge: float | None

    def to(self, device: torch.device) -> Solution:
        """Return the solution with its tensors on a device."""
        shifts = {name: shift.to(device) for name, shift in self.shifts.items()}
        return replace(self, weight=self.weight.to(device), shifts=shifts)


class NormalEquations:
    """Running sums of rows x [N, d] and y [N, outputs] of each block, from which w and the constants are solved.

    Memory is d x (d + outputs) per block, constant and fold, for any number of rows. Rows of the same w may have different
    constants, as when a layer is used with several batch norms; constants are identified by name.
    """

    def __init__(self) -> None:
        self._folds: list[_SumsByConstant] = [{} for _ in range(FOLDS)]
        self._rows: list[int] = []

    def add(
        self, x: Sequence[Tensor] | Tensor, y: Sequence[Tensor] | Tensor, weights: Sequence[Tensor] | None = None,
        shift: str = "", fold: int | None = 0,
    ) -> None:  # fmt: skip
        """Add the rows of one batch.

        Args:
            x: [N, d] per block.
            y: [N, outputs] per block.
            weights: weight of each row, [N] per block; 1 unless given.
            shift: name of the constant of these rows; "" if no constant can be added.
            fold: to which the rows belong; None splits them evenly among all folds.
        """
        if fold is None:
            for i in range(FOLDS):
                part = None if weights is None else [_rows_of_fold(w, i) for w in weights]
                self.add([_rows_of_fold(a, i) for a in x], [_rows_of_fold(b, i) for b in y], part, shift, i)
            return
        row_weights = list(weights) if weights is not None else [torch.ones(len(a), device=a.device) for a in x]
        if shift not in self._folds[fold]:
            d, outputs = x[0].shape[-1], y[0].shape[-1]
            like = torch.zeros((), dtype=torch.float64, device=x[0].device)
            products, squares = like.new_zeros(len(x), d + outputs + 1, d + 1), like.new_zeros(len(x), outputs)
            self._folds[fold][shift] = products, squares
        for total, square, a, b, w in zip(*self._folds[fold][shift], x, y, row_weights, strict=True):
            _add_weighted(total, square, a, b, w)
        self._rows = [len(a) + n for a, n in zip(x, self._rows or [0] * len(x), strict=True)]

    def add_over_processes(self) -> None:
        """Replace the sums by their totals over all processes, equal in all of them."""
        names = list(dict.fromkeys(n for part in gather_objects([n for f in self._folds for n in f]) for n in part))
        sums = {
            f"{fold} {names.index(name)} {k}": tensor
            for fold, by_name in enumerate(self._folds)
            for name, pair in by_name.items()
            for k, tensor in enumerate(pair)
        }
        rows = {"rows": torch.tensor(self._rows)} if self._rows else {}
        device = next((t.device for t in sums.values()), None)
        add_over_processes(sums, device=device)
        add_over_processes(rows)
        self._rows = [int(n) for n in rows.get("rows", [])]
        for fold in range(FOLDS):
            keys = [(name, f"{fold} {i} {{}}") for i, name in enumerate(names) if f"{fold} {i} 0" in sums]
            self._folds[fold] = {name: (sums[key.format(0)], sums[key.format(1)]) for name, key in keys}

    @property
    def rows(self) -> int:
        """Number of rows of all blocks together."""
        return sum(self._rows)

    def solve(self, weight: Tensor, shifts: Mapping[str, Tensor], *, ridge: float | None) -> Solution:
        """Return the minimizer of E|y - x w - constant|^2 + ridge mean(diag H) |w - weight|^2 over w and the constants.

        H is E[x x^T], of x - E[x] for rows with a constant. With ridge = 0, w stays equal to `weight` along directions in
        which the data does not vary.

        Source: Stone, 1974 (cross-validation).

        Args:
            weight: the initial w, [blocks, d, outputs].
            shifts: the initial constants by name, [blocks, outputs].
            ridge: the strength. None chooses the weakest of `RIDGES` whose cross-validation error is within 5 % of the best.

        Raises:
            PlanError: the sums or the solution are not finite.
        """
        parts = _parts_of_outputs(weight)
        if not all(t.isfinite().all() for fold in self._folds for sums in fold.values() for t in sums):
            raise PlanError("not finite: the model gives NaN or infinity on this data")
        strength = self._cross_validated_ridge(weight, parts) if ridge is None else ridge
        solved = torch.empty(weight.shape, dtype=torch.float64, device=weight.device)
        constants = {name: torch.empty(shift.shape, dtype=torch.float64, device=shift.device) for name, shift in shifts.items()}
        errors, sizes = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for part in parts:
            total, start = self._moments(self._folds, part), weight[:, :, part].double()
            solved[:, :, part] = w = total.solve(start, strength)
            if not w.isfinite().all():
                raise PlanError("not finite: least squares has no solution on this data")
            misfit = torch.zeros((), dtype=torch.float64, device=w.device)
            for p in total.parts:
                if p.name:
                    shift = shifts[p.name][:, part]
                    constants[p.name][:, part] = torch.where(p.share == 0, shift, p.constant(w))
                    misfit += (p.share * (p.constant(start) - shift).square()).sum()
            errors += torch.stack((total.error(start) + misfit, total.error(w))).cpu()
            sizes += torch.stack((total.squares.sum(), total.power)).cpu()
        before, after = (errors / _scale(*sizes)).clamp_min(0).tolist()
        return Solution(solved, constants, before, after, min(self._rows), strength)

    def _moments(self, folds: Iterable[_SumsByConstant], part: slice) -> _Moments:
        """Return the moments of some folds together, for a part of the outputs."""
        return _moments_of(_merged(_of_outputs(fold, part) for fold in folds))

    def _cross_validated_ridge(self, weight: Tensor, parts: Sequence[slice]) -> float:
        """Return the weakest ridge whose error is within the tolerance; stop at the first ridge that is worse than the last."""
        errors: list[float] = []
        for strength in RIDGES:
            errors.append(self._cross_validation_error(weight, parts, strength))
            if errors[-1] > min(errors):
                break
        return next(s for s, error in zip(RIDGES, errors, strict=False) if error <= _TOLERANCE * min(errors))

    def _cross_validation_error(self, weight: Tensor, parts: Sequence[slice], ridge: float) -> float:
        """Return the sum over folds of the error of the solution from the other folds."""
        folds = [f for f in self._folds if f]
        assert len(folds) > 1
        error = 0.0
        for test in folds:
            of_fold = 0.0
            for part in parts:
                w = self._moments((f for f in folds if f is not test), part).solve(weight[:, :, part].double(), ridge)
                of_fold += float(self._moments((test,), part).error(w))
            error += max(of_fold, 0.0)
        return error


@dataclass(frozen=True, slots=True)
class _ConstantPart:
    """Rows with one constant: their share of all rows [blocks, 1], their means, and their terms of the total moments."""

    name: str
    share: Tensor
    x_mean: Tensor
    y_mean: Tensor
    terms: tuple[Tensor, ...]

    def constant(self, w: Tensor) -> Tensor:
        """Return the best constant for a given w."""
        return self.y_mean - (self.x_mean[:, None] @ w)[:, 0]


@dataclass(frozen=True, slots=True)
class _Moments:
    """Moments of all rows.

    Attributes:
        parts: by constant.
        is_empty: blocks without rows, [blocks, 1, 1].
        raw: E[x x^T].
        second, cross, squares: E[x x^T], E[x y^T] and E[y^2], around the means of rows that have a constant.
        power: E[y^2], summed over blocks and outputs.
    """

    parts: list[_ConstantPart]
    is_empty: Tensor
    raw: Tensor
    second: Tensor
    cross: Tensor
    squares: Tensor
    power: Tensor

    def solve(self, start: Tensor, ridge: float) -> Tensor:
        """Return the w of least error, regularized towards `start`."""
        change = _solve_ridge(self.second, self.cross - self.second @ start, ridge, self.raw)
        return start + torch.where(self.is_empty, 0.0, change)

    def error(self, w: Tensor) -> Tensor:
        """Return E|y - x w - constant|^2 with the best constants, summed over blocks."""
        return self.squares.sum() - 2 * (w * self.cross).sum() + (w * (self.second @ w)).sum()


def _parts_of_outputs(weight: Tensor) -> list[slice]:
    """Return the outputs of a weight [blocks, d, outputs] in parts that take little memory each.

    A part has at least d outputs: each part factors the d x d sums of x again, which then is a small share of the work.
    """
    blocks, d, outputs = weight.shape
    size = max(_PART // max(blocks * d, 1), d, 1)
    return [slice(first, first + size) for first in range(0, outputs, size)]


def _of_outputs(sums: _SumsByConstant, part: slice) -> _SumsByConstant:
    """Return the sums of a part of the outputs; in the same memory if it is all of them."""
    found: _SumsByConstant = {}
    for name, (products, squares) in sums.items():
        d, few = products.shape[-1] - 1, squares[:, part]
        if few.shape != squares.shape:
            products = torch.cat([products[:, :d], products[:, d:-1][:, part], products[:, -1:]], 1)
        found[name] = products, few
    return found


def _scale(squares: Tensor, power: Tensor) -> Tensor:
    """Return the quantity that errors are shares of."""
    return next((s for s in (squares, power) if s > 1e-30 * power), torch.ones_like(power))


def _rows_of_fold(rows: Tensor, i: int) -> Tensor:
    """Return part number `i` of `FOLDS` equal parts of the rows."""
    return rows[len(rows) * i // FOLDS : len(rows) * (i + 1) // FOLDS]


def _merged(folds: Iterable[_SumsByConstant]) -> _SumsByConstant:
    """Return the sums of several folds together."""
    total: _SumsByConstant = {}
    for fold in folds:
        for name, (products, squares) in fold.items():
            if name in total:
                products, squares = products + total[name][0], squares + total[name][1]
            total[name] = products, squares
    return total


def _moments_of(sums: _SumsByConstant) -> _Moments:
    """Return moments from sums."""
    total = sum((products[:, -1:, -1:] for products, _ in sums.values()), torch.zeros(()))
    is_empty = total == 0
    parts = [_part_of(*part, torch.where(is_empty, 1.0, total), name) for name, part in sums.items()]
    return _Moments(parts, is_empty, *(sum(terms[1:], terms[0]) for terms in zip(*(p.terms for p in parts), strict=True)))


def _part_of(products: Tensor, squares: Tensor, total: Tensor, name: str) -> _ConstantPart:
    """Return the part of one constant; `total` [blocks, 1, 1] is the number of rows of all constants."""
    d, count = products.shape[-1] - 1, products[:, -1:, -1]
    x_mean, y_mean = (m / torch.where(count == 0, 1.0, count) for m in (products[:, :d, -1], products[:, d:-1, -1]))
    share, powers = count / total[:, 0], squares / total[:, 0]
    raw, cross = products[:, :d, :d] / total, products[:, d:-1, :d].mT / total
    second, power = raw, powers.sum()
    if name:
        weighted_mean = share[:, :, None] * x_mean[:, :, None]
        second, cross = raw - weighted_mean * x_mean[:, None, :], cross - weighted_mean * y_mean[:, None, :]
        powers = powers - share * y_mean.square()
    return _ConstantPart(name, share, x_mean, y_mean, (raw, second, cross, powers, power))


def _add_weighted(products: Tensor, squares: Tensor, x: Tensor, y: Tensor, weight: Tensor) -> None:
    """Add the sums of weight [x y 1]^T [x 1] and of weight y^2 over rows in place, without memory for another such sum."""
    x, y = x.double(), y.double()
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    root = weight.double().sqrt()[:, None]
    x, y = x * root, y * root
    products.addmm_(torch.cat([x[:, :-1], y, x[:, -1:]], 1).mT, x)
    squares += y.square().sum(0)


def _solve_ridge(second: Tensor, cross: Tensor, ridge: float, raw: Tensor) -> Tensor:
    """Return (second + ridge mean(diag second) I)^-1 cross, block by block; the pseudo-inverse for ridge = 0.

    Args:
        second: around means, [blocks, d, d].
        cross: [blocks, d, outputs].
        ridge: the strength.
        raw: `second` before means were subtracted, from which the possible size of rounding errors follows.
    """
    scale = second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    if ridge == 0:
        values, vectors = torch.linalg.eigh(second)
        largest = values[:, -1:].clamp_min(0) * second.shape[-1] * torch.finfo(second.dtype).eps
        is_null = values <= torch.maximum(largest, rounding_floor(raw)[:, 0])
        return vectors @ (torch.where(is_null, 0.0, 1 / values)[:, :, None] * (vectors.mT @ cross))
    damped = second.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(torch.maximum(ridge * scale, rounding_floor(raw) + TINY)[:, :, 0])
    factor, failed = torch.linalg.cholesky_ex(damped)
    return torch.linalg.solve(damped, cross) if failed.any() else torch.cholesky_solve(cross, factor)
